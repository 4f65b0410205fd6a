"""Commands on one journal, chosen by `--journal`: they share the account, and pay nothing twice."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from factories.postgres_fixtures import POSTGRES, make_place_fixture
from factories.watching import until

from musicgpt_async.cli import main
from musicgpt_async.emulator import Emulator

place = make_place_fixture(POSTGRES[-1:])
QUICK = ("-s", "bass", "--plan", "pro")
one_version = pytest.mark.parametrize("postgres_url", POSTGRES[-1:], indirect=True)


def paid(vendor: Emulator) -> Counter[str | None]:
    """Return how often each file was submitted."""
    return Counter(each.upload.file_name for each in vendor.submissions)


def stems(directory: Path) -> set[str]:
    """Return the names of the stems in a directory."""
    return {path.name for path in directory.glob("*.wav")}


@pytest.mark.anyio
async def test_two_commands_at_once_share_slots_and_pay_nothing_twice(
    open_vendor: Any, place: str
) -> None:
    """Two commands with four tracks in common never have a submit refused, nor one paid twice."""
    async with open_vendor(seconds=1.0, parallel=2) as (vendor, shell):
        common = [shell.track(f"{number}.wav") for number in range(4)]
        outs = ("one", "two")
        ended = await shell.together(
            *(
                shell.run(
                    *("extract", shell.track(f"{out}.wav"), *common, "--out", out),
                    *("--journal", place, "--jobs", "2", *QUICK),
                )
                for out in outs
            )
        )
        assert [each.code for each in ended] == [0, 0], ended
        assert paid(vendor) == dict.fromkeys(
            ("one.wav", "two.wav", *(each.name for each in common)), 1
        )
        assert not vendor.throttled["parallel"]
        for out in outs:
            names = {f"{number} - bass.wav" for number in range(4)} | {f"{out} - bass.wav"}
            assert stems(shell.directory / out) == names
            assert not list((shell.directory / out).glob(".musicgpt-async*"))


@pytest.mark.anyio
async def test_max_credits_counts_what_other_commands_have_spent(
    open_vendor: Any, place: str
) -> None:
    """A second command with the same --max-credits submits nothing once the first has used it."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        shared = ("--journal", place, "--max-credits", "0.01", *QUICK)
        first = await shell.run("extract", shell.track("one.wav"), "--out", "one", *shared)
        assert first.code == 0, first.err
        second = await shell.run("extract", shell.track("two.wav"), "--out", "two", *shared)
        assert second.code == 1
        assert paid(vendor) == {"one.wav": 1}


@pytest.mark.anyio
async def test_a_killed_command_is_resumed_from_the_shared_journal(
    open_vendor: Any, place: str
) -> None:
    """`resume`, `jobs`, `report`, `fetch` and `--dry-run` read the journal that --journal names."""
    async with open_vendor(seconds=2.0) as (vendor, shell):
        track, shared = shell.track("song.wav"), ("--journal", place)
        extract = ("extract", track, "--out", "o", *shared, *QUICK)
        async with shell.start(*extract) as running:
            await until(lambda: vendor.polls)
            running.interrupt(signal.SIGKILL)
            await running.ended()
        (job,) = (await shell.run("jobs", *shared, "--json")).tracks
        assert (job["state"], job["in_work"]) == ("processing", False)
        resumed = await shell.run("resume", "--out", "other", *shared, "--plan", "pro", "--json")
        assert resumed.code == 0, resumed.err
        assert [each["track"] for each in resumed.tracks] == ["song"]
        assert stems(shell.directory / "o") == {"song - bass.wav"}
        other = await shell.run("extract", shell.track("2.wav"), "--out", "other", *shared, *QUICK)
        assert other.code == 0, other.err

        (submission, _) = vendor.submissions
        table, page, dry, fetched = await shell.together(
            shell.run("jobs", *shared),
            shell.run("report", "--out", "o", *shared),
            shell.run(*extract, "--dry-run"),
            shell.run("fetch", submission.task_id, "--json", *shared, "--plan", "pro"),
        )
        assert [line.split()[0] for line in table.out.splitlines()] == ["STATE", "done", "done"]
        assert page.code == 0, page.err
        assert "2 - bass" not in (shell.directory / "o/report.html").read_text("utf-8")
        assert "[done already]" in dry.out
        (known,) = fetched.tracks  # the journal knows where its files are
        assert known["files"] == {"bass": {"wav": str(shell.directory / "o/song - bass.wav")}}
        assert set(paid(vendor).values()) == {1}


@pytest.mark.anyio
@one_version
async def test_what_another_site_sent_is_downloaded_there(
    open_vendor: Any, postgres_url: str
) -> None:
    """`resume` on another site waits for its conversions and leaves the download to that site."""
    async with open_vendor(seconds=2.0) as (vendor, shell):
        shared = ("--out", "o", "--journal", postgres_url, "--plan", "pro")
        extract = ("extract", shell.track("song.wav"), "-s", "bass", *shared, "--site", "one")
        async with shell.start(*extract) as running:
            await running.says("accepted")
            running.interrupt(signal.SIGTERM)
            ended = await running.ended()
        masked = postgres_url.replace(str(urlsplit(postgres_url).password), "***")
        assert f"resume --journal '{masked}' --out o" in ended.err
        there = await shell.run("resume", *shared, "--site", "two")
        assert there.code == 0, there.err
        assert "1 track to be downloaded on the machine that sent them" in there.err
        assert stems(shell.directory / "o") == set()
        here = await shell.run("resume", *shared, "--site", "one")
        assert here.code == 0, here.err
        assert stems(shell.directory / "o") == {"song - bass.wav"}
        assert paid(vendor) == {"song.wav": 1}


@pytest.mark.parametrize("command", ["resume", "jobs"])
def test_a_shared_journal_that_does_not_exist_is_not_made(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`resume` and `jobs` name the missing file, and leave none behind."""
    path = tmp_path / "nowhere.db"
    assert main([command, "--out", str(tmp_path), "--journal", str(path)]) == 2
    assert f"no journal {path}" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extract", "a.wav", "--journal", "x.db", "--no-journal"], "not both"),
        (["jobs", "--journal", "mysql://host/name"], "SQLite or PostgreSQL"),
        (["extract", "--journal"], "requires an argument"),
    ],
)
def test_a_wrong_journal_is_wrong_usage(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be a journal is refused with exit code 2 before anything is sent."""
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
