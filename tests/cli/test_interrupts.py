from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import pytest
from factories.watching import until

from musicgpt_async.emulator import Emulator, Fault, LoggedRequest

pytestmark = pytest.mark.anyio

QUICK = ("--plan", "pro")


def answered(vendor: Emulator) -> list[LoggedRequest]:
    """Return the submits that got their answer."""
    return [each for each in vendor.requests if each.method == "POST" and each.status == 200]


def names(vendor: Emulator) -> Counter[str | None]:
    """How often each file was submitted."""
    return Counter(each.upload.file_name for each in vendor.submissions)


@pytest.mark.long
async def test_the_first_interrupt_lets_go_and_resume_takes_up(open_vendor: Any) -> None:
    """What runs on at the vendor is named with its task, and `resume` finishes just that."""
    async with open_vendor(seconds=10) as (vendor, shell):
        for name in ("one", "two", "three"):
            shell.track(f"in/{name}.wav")
        out, layout = ("--out", "my stems"), ("--layout", "{track}/{stem}.{ext}")
        async with shell.start("extract", "in", *out, *layout, "-j", "2", *QUICK) as running:
            await running.says("accepted", times=2)
            running.interrupt()
            ended = await running.ended()
        assert ended.code == 130
        assert "2 tracks still processing at MusicGPT" in ended.err
        for submission in vendor.submissions:
            assert f"task {submission.task_id}" in ended.err
        assert "musicgpt-async resume --out 'my stems'\n" in ended.err
        assert "the same command again" in ended.err
        assert "Traceback" not in ended.err

        # Interrupting that is no worse than interrupting the run that it resumes.
        before = vendor.polls
        async with shell.start("resume", *out, *QUICK) as running:
            await until(lambda: vendor.polls > before)
            running.interrupt()
            ended = await running.ended()
        assert ended.code == 130
        assert "still processing at MusicGPT" in ended.err

        taken_up = await shell.run("resume", *out, "--json", *QUICK)
        assert taken_up.code == 0
        assert {each["task_id"] for each in taken_up.tracks} == {
            each.task_id for each in vendor.submissions
        }
        paths = [path for each in taken_up.tracks for path in each["files"].values()]
        assert len(paths) == 8
        assert len(vendor.submissions) == 2
        assert (await shell.run("extract", "in", *out, *layout, "-q", *QUICK)).code == 0
        assert set(names(vendor).values()) == {1}
        assert len(list((shell.directory / "my stems").glob("*/*.wav"))) == 12


async def test_the_second_interrupt_leaves_at_once(open_vendor: Any) -> None:
    """While an answer is still waited for, a second Ctrl-C ends the process, with code 130."""
    async with open_vendor(faults=[Fault("submit", "stall_answer")]) as (vendor, shell):
        track = shell.track("song.wav")
        async with shell.start("extract", track, "--out", "o", *QUICK) as running:
            await until(lambda: vendor.submissions)
            running.interrupt()
            await running.says("again to quit")
            running.interrupt()
            ended = await running.ended()
        assert ended.code == 130
        assert "still running" not in ended.err  # it did not stay to say so
        table = await shell.run("jobs", "--out", "o", "--json")
        assert [each["source"] for each in table.tracks] == [str(track)]


async def test_without_a_journal_an_interrupt_says_what_is_left(open_vendor: Any) -> None:
    """After SIGTERM without a journal the task ids are all there is, and it says so."""
    async with open_vendor(seconds=5) as (vendor, shell):
        track = shell.track("song.wav")
        async with shell.start(
            "extract", track, "--out", "o", "--no-journal", "-q", *QUICK
        ) as running:
            await until(lambda: vendor.polls)
            running.interrupt(signal.SIGTERM)
            ended = await running.ended()
        assert ended.code == 128 + signal.SIGTERM
        assert f"task {vendor.submissions[0].task_id}" in ended.err
        assert "musicgpt-async fetch --out o TASK_ID" in ended.err
        assert "resume --out" not in ended.err


@pytest.mark.long
async def test_killed_and_run_again_everything_is_there_once(open_vendor: Any) -> None:
    """After kill -9 at several moments every track is submitted once and comes out whole."""
    stems = ("vocals", "drums", "bass", "piano", "guitar", "keys")
    async with open_vendor(seconds=2, stem_bytes=300_000) as (vendor, shell):
        rows = [f"{shell.track(f'{stem}.wav')},{stem}\n" for stem in stems]
        (shell.directory / "list.csv").write_text("".join(["source,stems\n", *rows]))
        command = ("extract", "--list", "list.csv", "--out", "o", "--jobs", "1", *QUICK)
        # One at a time: while the vendor works no other track is in flight, of which it would be
        # unknown whether the vendor has it.
        for submitted in (1, 3):
            async with shell.start(*command) as running:
                await until(lambda least=submitted: len(answered(vendor)) >= least)
                running.process.kill()
                await running.process.wait()
        # A dead process of this machine is known to be dead: its lease is not waited for.
        resumed = await shell.run("resume", "--out", "o", *QUICK)
        assert resumed.code == 0, resumed.err
        assert "0 tracks done" not in resumed.err
        assert "left to another process" not in resumed.err
        assert "Another process works on" not in resumed.err
        ended = await shell.run(*command)
        assert ended.code == 0, ended.err
        assert names(vendor) == Counter(f"{stem}.wav" for stem in stems)
        files = {path.name: path.stat().st_size for path in (shell.directory / "o").glob("*.wav")}
        assert files == {f"{stem} - {stem}.wav": 300_000 for stem in stems}
        assert not list((shell.directory / "o").glob(".*.part"))
