from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from factories.sessions import free_port

from musicgpt_async.cli import main
from musicgpt_async.emulator import Fault, FaultContext

pytestmark = pytest.mark.anyio

QUICK = ("--plan", "pro")
BARE = (*QUICK, "--no-journal")
# Every control character but the end of a line.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


async def test_tracks_go_in_and_stems_lie_there(open_vendor: Any) -> None:
    """Files, directories and globs are found, each once, and all their stems are in --out."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        named = shell.track("a song.wav")
        shell.track("album/one.wav")
        shell.track("album/deep/two.MP3")
        shell.track("album/.hidden.wav")
        (shell.directory / "album/cover.jpg").write_bytes(b"no audio")
        shell.track("more/three.flac")
        ended = await shell.run(
            "extract", named, "album", "mo*/*", "album/one.wav",
            "--out", "stems", "--stem", "vocals", "--stem", "drums", *BARE,
        )  # fmt: skip
        assert (ended.code, ended.out) == (0, "")
        assert sorted(each.upload.file_name for each in vendor.submissions) == [
            "a song.wav", "one.wav", "three.flac", "two.MP3",
        ]  # fmt: skip
        stems = {path.name for path in (shell.directory / "stems").glob("*.wav")}
        tracks = ("a song", "one", "two", "three")
        assert stems == {
            f"{track} - {stem}.wav" for track in tracks for stem in ("vocals", "drums")
        }
        assert "4 tracks done in 0:0" in ended.err
        cost = sum(each.cost for each in vendor.submissions)
        assert f"{round(cost, 2):g} credits charged, {round(cost, 2):g} credits est" in ended.err


async def test_json_is_one_object_a_track_and_nothing_else(open_vendor: Any) -> None:
    """Stdout holds one whole JSON object for each track, failed ones too; words go to stderr."""

    def is_bad(occasion: FaultContext) -> bool:
        return occasion.submission.upload.file_name == "bad.wav"

    faults = [Fault("job", "fails", message="Cannot decode", when=is_bad)]
    async with open_vendor(seconds=0.1, faults=faults) as (vendor, shell):
        tracks = [shell.track("good.wav"), shell.track("bad.wav")]
        ended = await shell.run(
            "extract", *tracks, "--out", "o", "--json", "--format", "both", "-s", "bass", *BARE
        )
        assert ended.code == 1
        good, bad = sorted(ended.tracks, key=lambda each: not each["ok"])
        task = {each.upload.file_name: each for each in vendor.submissions}
        files = {
            kind: str(shell.directory / "o" / f"good - bass.{kind}") for kind in ("wav", "mp3")
        }
        assert good == {
            "track": "good",
            "source": str(tracks[0]),
            "ok": True,
            "state": "done",
            "id": good["id"],
            "task_id": task["good.wav"].task_id,
            "conversion_id": task["good.wav"].conversion_id,
            "label": None,
            "stems": ["bass"],
            "preprocessing": [],
            "eco_mode": False,
            "format": "both",
            "directory": str(shell.directory / "o"),
            "size": 20_000,
            "files": {"bass": files},
            "duration": task["good.wav"].duration,
            "credits_estimated": task["good.wav"].credit_estimate,
            "credits_charged": task["good.wav"].cost,
            "created": good["created"],
            "accepted": good["accepted"],
            "in_work": False,
            "error": None,
        }
        assert all(Path(path).is_file() for path in files.values())
        assert not bad["ok"]
        assert bad["error"]["type"] == "ExtractionFailedError"
        assert bad["error"]["vendor_message"] == "Cannot decode"
        assert bad["task_id"] == task["bad.wav"].task_id
        assert "Cannot decode" in ended.err


async def test_failures_are_grouped_by_reason(open_vendor: Any) -> None:
    """One bad track fails alone, and the summary shows each reason once, with its tracks."""

    def is_bad(occasion: FaultContext) -> bool:
        return occasion.submission.upload.file_name.startswith("bad")

    faults = [Fault("job", "fails", times=None, message="Cannot decode", when=is_bad)]
    async with open_vendor(seconds=0.1, faults=faults) as (_, shell):
        for name in ("bad1", "good", "bad2"):
            shell.track(f"in/{name}.wav")
        ended = await shell.run("extract", "in", "--out", "o", *BARE)
        assert ended.code == 1
        summary = ended.err[ended.err.index("1 track done") :]
        assert "2 tracks failed:" in summary
        assert len(re.findall("^failed  ", ended.err, re.MULTILINE)) == 2
        assert summary.count("Cannot decode") == 1
        assert "2 x " in summary
        assert {"bad1", "bad2"} <= set(re.findall(r"bad\d", summary))
        assert len(list((shell.directory / "o").glob("good*.wav"))) == 4


async def test_quiet_leaves_only_failures(open_vendor: Any) -> None:
    """With --quiet nothing is said of what goes well, and one line of what does not."""
    faults = [Fault("job", "fails", after=1, message="Cannot decode")]
    async with open_vendor(seconds=0.1, faults=faults) as (_, shell):
        tracks = [shell.track("one.wav"), shell.track("two.wav")]
        well = await shell.run("extract", tracks[0], "--out", "o", "--quiet", *BARE)
        assert (well.code, well.out, well.err) == (0, "", "")
        badly = await shell.run("extract", tracks[1], "--out", "o", "-q", *BARE)
        assert (badly.code, badly.out, badly.err.count("\n")) == (1, "", 1)
        assert "two" in badly.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["song.wav", "-s", "voclas"], "vocals"),
        (["song.wav", "--preprocess", "denoise!"], "Denoise"),
        (["song.wav", "nowhere.wav"], "nowhere.wav"),
        (["song.wav", "nothing/*.wav"], "nothing/*.wav"),
        (["song.wav", "--jobs", "0"], "--jobs"),
        (["song.wav", "--max-credits", "-1"], "--max-credits"),
        (["song.wav", "--layout", "../{stem}.{ext}"], "layout"),
        (["song.wav", "--webhook", "nonsense"], "https://example.com"),
        (["song.wav", "--listen", "nonsense"], "127.0.0.1:8080"),
        (["song.wav", "--format", "flac"], "--format"),
        (["song.wav", "--no-such-option"], "--no-such-option"),
        (["empty"], "nothing to do"),
        ([], "nothing to do"),
        (["--list", "nowhere.csv"], "nowhere.csv"),
        (["--list", "typo.csv"], "stems"),
        (["--list", "stem.csv"], "line 3"),
        (["--list", "missing.jsonl"], "missing.jsonl, line 1"),
        (["--list", "broken.jsonl"], "line 2"),
        (["--list", "headless.csv"], "source"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_sent(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each mistake is one clear line on stderr and exit code 2, without any connection."""
    monkeypatch.chdir(tmp_path)
    Path("song.wav").write_bytes(b"RIFF")
    Path("empty").mkdir()
    Path("typo.csv").write_text("source,stem\nsong.wav,bass\n")
    Path("stem.csv").write_text("source,stems\nsong.wav,bass\nsong.wav,voclas\n")
    Path("missing.jsonl").write_text('{"source": "nowhere.wav"}\n')
    Path("broken.jsonl").write_text('{"source": "song.wav"}\n{"source"\n')
    Path("headless.csv").write_text("song.wav,bass\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("MUSICGPT_API_KEY", "secret")
        monkeypatch.setenv("MUSICGPT_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert main(["extract", *arguments, "--out", "o"]) == 2
        with pytest.raises(BlockingIOError):
            server.accept()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("musicgpt-async: ")
    assert words in said.err


async def test_no_key_is_said_before_anything_is_sent(shell: Any) -> None:
    """Without a key the command ends with exit code 2 and names the variable to set."""
    ended = await shell.run("extract", shell.track("song.wav"), "--out", "o")
    assert ended.code == 2
    assert ended.err == (
        "musicgpt-async: There is no API key: set MUSICGPT_API_KEY, or MUSICGPT_API_KEY_FILE to a "
        "file that holds it, or run `keyring set musicgpt-async api-key`. To try the command "
        "without a key: `musicgpt-async emulate`.\n"
    )
    assert not (shell.directory / "o").exists()


async def test_odd_names_cannot_touch_the_terminal(open_vendor: Any) -> None:
    """Control characters, markup and undecodable bytes in names reach no terminal."""
    async with open_vendor(seconds=0.1) as (_, shell):
        names = ["esc\x1b[31m\x07 [red]bold.wav", "right\u202eleft.wav", "sürrøg.wav"]
        for name in names:
            shell.track(f"in/{name}")
        raw = os.fsencode(shell.directory / "in") + b"/broken \xff.wav"
        os.link(shell.directory / "in" / names[2], raw)
        ended = await shell.run("extract", "in", "--out", "o", "--json", *QUICK)
        assert ended.code == 0
        assert not CONTROL.search(ended.err)
        assert "\u202e" not in ended.err
        assert "[red]bold" in ended.err
        assert ended.out.isascii()
        sources = {os.fsencode(each["source"]) for each in ended.tracks}
        assert b"in/broken \xff.wav" in sources
        table = await shell.run("jobs", "--out", "o")
        assert not CONTROL.search(table.out)


async def test_a_list_gives_each_track_its_own_options(open_vendor: Any) -> None:
    """CSV and JSON lines name sources, stems, preprocessing and labels, beside the command's."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        for name in ("one", "two", "three", "four"):
            shell.track(f"lists/{name}.wav")
        (shell.directory / "lists/a.csv").write_text(
            "\ufeffsource,stems,preprocessing,label\n"
            'one.wav,"vocals, drums",Denoise,First\n'
            "two.wav,,,\n"
        )
        (shell.directory / "lists/b.jsonl").write_text(
            '{"source": "three.wav", "stems": ["piano"], "label": "Third"}\n\n'
            '{"source": "four.wav", "stems": "bass keys", "preprocessing": []}\n'
        )
        options = ("--out", "o", "--stem", "winds", "--preprocess", "Deecho", *BARE)
        both = await shell.together(
            *(
                shell.run("extract", "--list", f"lists/{name}", *options)
                for name in ("a.csv", "b.jsonl")
            )
        )
        assert [each.code for each in both] == [0, 0]
        sent = {
            each.upload.file_name: (each.upload.stems, each.upload.preprocessing)
            for each in vendor.submissions
        }
        assert sent == {
            "one.wav": (("vocals", "drums"), ("Denoise",)),
            "two.wav": (("winds",), ("Deecho",)),
            "three.wav": (("piano",), ("Deecho",)),
            "four.wav": (("bass", "keys"), ()),
        }
        stems = {path.name for path in (shell.directory / "o").glob("*.wav")}
        assert {"First - vocals.wav", "two - winds.wav", "Third - piano.wav"} <= stems


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
async def test_a_list_comes_through_a_pipe(open_vendor: Any, kind: str) -> None:
    """With --list - each kind of list is read from standard input, its paths from here."""
    lines = {
        "csv": "source,stems,label\nin/one.wav,vocals,First\nin/two.wav,,\n",
        "jsonl": '{"source": "in/one.wav", "stems": ["vocals"], "label": "First"}\n'
        '{"source": "in/two.wav"}\n',
    }
    async with open_vendor(seconds=0.1) as (_, shell):
        for name in ("one", "two"):
            shell.track(f"in/{name}.wav")
        options = ("--list", "-", "--out", "o", "--stem", "bass", *BARE)
        ended = await shell.run("extract", *options, stdin=piped(lines[kind]))
        assert ended.code == 0
        stems = {path.name for path in (shell.directory / "o").glob("*.wav")}
        assert stems == {"First - vocals.wav", "two - bass.wav"}
        wrong = await shell.run("extract", *options, stdin=piped(lines[kind].replace("two", "3")))
        assert wrong.code == 2
        assert "standard input, line " in wrong.err


async def test_a_list_that_does_not_come_is_said_at_once(shell: Any) -> None:
    """A terminal is not waited for, and an empty pipe is no list without tracks."""
    _, terminal = os.openpty()
    for stdin in (terminal, subprocess.DEVNULL, piped("")):
        ended = await shell.run("extract", "--list", "-", "--out", "o", stdin=stdin)
        assert ended.code == 2
        assert ended.err.startswith("musicgpt-async: --list - reads the list from standard input")
        assert ended.err.count("\n") == 1


def piped(text: str) -> int:
    """Return the reading end of a pipe that holds a short text."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    return reading


async def test_a_dry_run_sends_nothing_and_says_what_it_would(open_vendor: Any) -> None:
    """--dry-run lists every track, knows what the journal has already, and sends no request."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        shell.track("in/one.wav")
        command = ("extract", "in", "--out", "o", "--stem", "bass", *QUICK)
        before = await shell.run(*command, "--dry-run", "--json")
        assert [each["would_submit"] for each in before.tracks] == [True]
        assert not vendor.requests
        assert not (shell.directory / "o").exists()
        assert (await shell.run(*command)).code == 0
        asked = len(vendor.requests)
        shell.track("in/two.wav")
        after = await shell.run(*command, "--dry-run")
        assert after.code == 0
        one, two = after.out.splitlines()
        assert "one.wav" in one
        assert one.endswith("[done already]")
        assert "two.wav" in two
        assert two.endswith("bass")
        assert "1 track would be submitted" in after.err
        assert len(vendor.requests) == asked


async def test_the_same_command_again_pays_and_fetches_nothing(open_vendor: Any) -> None:
    """A second run submits nothing, downloads nothing, and repairs what was damaged meanwhile."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        for name in ("one", "two"):
            shell.track(f"{name}.wav")
        # The stems are beside the tracks, and are not submitted as tracks.
        command = ("extract", ".", "*.wav", "--out", ".", "--stem", "bass", *QUICK)
        assert (await shell.run(*command)).code == 0
        asked = len(vendor.requests)
        again = await shell.run(*command)
        assert again.code == 0
        assert "2 tracks done" in again.err
        assert "2 of them submitted by an earlier run" in again.err
        assert len(vendor.requests) == asked
        (shell.directory / "one - bass.wav").write_bytes(b"damaged")
        assert (await shell.run(*command)).code == 0
        assert len(vendor.submissions) == 2
        assert (shell.directory / "one - bass.wav").stat().st_size == 4096


async def test_stems_below_the_tracks_are_no_tracks(open_vendor: Any) -> None:
    """An output directory inside the input is never walked into, whatever its layout."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        shell.track("in/one.wav")
        command = ("extract", "in", "--out", "in/o", *QUICK)
        assert (await shell.run(*command, "--layout", "{stem}/{track}.{ext}")).code == 0
        assert (shell.directory / "in/o/bass/one.wav").is_file()
        assert (await shell.run(*command)).code == 0
        assert len(vendor.submissions) == 1


async def test_jobs_bounds_what_is_unfinished(open_vendor: Any) -> None:
    """--jobs N alone keeps N tracks unfinished at the vendor, and never one more."""
    async with open_vendor(seconds=0.4) as (vendor, shell):
        port = free_port()
        door = ("--webhook", f"http://127.0.0.1:{port}/hook", "--listen", f"127.0.0.1:{port}")
        for number in range(7):
            shell.track(f"in/{number}.wav")
        ended = await shell.run("extract", "in", "--out", "o", "--jobs", "3", *door)
        assert ended.code == 0
        assert vendor.most_unfinished == 3
        assert vendor.throttled["parallel"] == 0
        assert [each.status for each in vendor.deliveries] == [200] * 7
        assert vendor.polls <= 14


async def test_max_credits_stops_the_batch(open_vendor: Any) -> None:
    """Once the estimates reach --max-credits nothing more is submitted, and the rest is counted."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        for number in range(100):
            shell.track(f"in/{number:03}.wav", size=400_000)  # 25 s at 128 kbit/s: 0.63 credits
        ended = await shell.run("extract", "in", "--out", "o", "--max-credits", "1", *BARE)
        assert ended.code == 1
        assert len(vendor.submissions) == 2
        assert "2 tracks done" in ended.err
        assert "max_credits=1" in ended.err
        assert re.search(r"\d\d tracks not done", ended.err)


async def test_a_refused_key_is_not_tried_a_hundred_times(open_vendor: Any) -> None:
    """After a 401 no further track is submitted; one line says so, and the exit code is 2."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        for number in range(200):
            shell.track(f"in/{number:03}.wav", size=2048)
        ended = await shell.run(
            "extract", "in", "--out", "o", "-q", *BARE, MUSICGPT_API_KEY="wrong"
        )
        assert ended.code == 2
        assert len(vendor.requests) < 100
        assert "MUSICGPT_API_KEY" in ended.err
        told = await shell.run("extract", "in", "--out", "o", *BARE, MUSICGPT_API_KEY="wrong")
        assert told.err.startswith("MusicGPT rejected the API key (401")
        assert [ended.err.count("\n"), told.err.count("\n")] == [1, 1]


async def test_a_reason_is_said_once_in_a_row(open_vendor: Any) -> None:
    """Tracks that fail alike one after another name the reason once."""
    faults = [Fault("job", "fails", times=None, message="Cannot decode")]
    async with open_vendor(seconds=0.1, faults=faults) as (_, shell):
        tracks = [shell.track(f"bad{number}.wav") for number in range(3)]
        ended = await shell.run("extract", *tracks, "--out", "o", "-s", "bass", "-q", *BARE)
        assert ended.code == 1
        assert ended.err.count("Cannot decode") == 1
        assert ended.err.count("(same reason)") == 2


async def test_what_is_tried_again_is_told_in_a_sentence(open_vendor: Any) -> None:
    """A lost connection is one line for people, and none where it is to be quiet."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        for number, options in enumerate(((), ("--quiet",))):
            vendor.script(Fault("submit", "drop_before_body"))
            track = shell.track(f"{number}.wav", size=16_000_000)  # not out whole before it
            ended = await shell.run("extract", track, "--out", "o", *options, *BARE)
            assert ended.code == 0
            assert "stamina" not in ended.err
            assert ended.err.count("Retrying.") == 1 - number
    assert ended.err == ""


async def test_without_sqlalchemy_it_goes_on_and_says_so_once(
    open_vendor: Any, tmp_path: Path
) -> None:
    """Where the journal's extra is missing the tracks are done all the same."""
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "sqlalchemy.py").write_text("raise ModuleNotFoundError(name='sqlalchemy')")
    async with open_vendor(seconds=0.1) as (vendor, shell):
        track = shell.track("song.wav")
        ended = await shell.run("extract", track, "--out", "o", *QUICK, PYTHONPATH=str(missing))
        assert ended.code == 0
        assert ended.err.count("journal") >= 1
        assert ended.err.count("This run keeps no journal") == 1
        assert len(vendor.submissions) == 1
        assert len(list((shell.directory / "o").iterdir())) == 4


async def test_a_reader_that_goes_away_ends_the_run_cleanly(open_vendor: Any) -> None:
    """When the reader of stdout is gone, tracks are detached and no traceback is shown."""
    async with open_vendor(seconds=0.3) as (vendor, shell):
        for number in range(9):
            shell.track(f"in/{number}.wav")
        out, end = os.pipe()
        command = ("extract", "in", "--out", "o", "--json", "--jobs", "1", *QUICK)
        async with shell.start(*command, stdout=end) as running:
            os.close(end)
            await anyio.to_thread.run_sync(os.read, out, 1)
            os.close(out)
            ended = await running.ended()
        assert ended.code == 1
        assert "Traceback" not in ended.err
        assert "the same command again" in ended.err
        assert len(vendor.submissions) < 9


async def test_a_foreign_journal_is_refused_and_left_alone(open_vendor: Any) -> None:
    """A file that is no journal stops the command before anything is sent."""
    async with open_vendor() as (vendor, shell):
        (shell.directory / "o").mkdir()
        foreign = shell.directory / "o/.musicgpt-async.sqlite"
        foreign.write_bytes(b"something else altogether" * 100)
        ended = await shell.run("extract", shell.track("song.wav"), "--out", "o")
        assert ended.code == 2
        assert "journal" in ended.err
        assert "Traceback" not in ended.err
        assert not vendor.requests
        assert foreign.read_bytes() == b"something else altogether" * 100


async def test_a_file_that_is_not_audio_is_not_sent(open_vendor: Any) -> None:
    """It fails alone, in one sentence, and the others continue; --force sends it anyway."""
    options = (*BARE, "-s", "bass", "--out", "o")
    async with open_vendor(seconds=0.1) as (vendor, shell):
        good, page = shell.track("good.wav"), shell.track("page.mp3")
        page.write_bytes(b"<!DOCTYPE html><title>404</title>")
        shown = await shell.run("extract", page, good, *options, "--dry-run", "--json")
        assert [each["would_submit"] for each in shown.tracks] == [False, True]
        ended = await shell.run("extract", page, good, *options)
        assert ended.code == 1
        words = "page.mp3 was not sent: it is a page or a message, not audio (--force sends it)."
        assert ended.err.splitlines().count(f"failed  {words}") == 1
        assert "1 track done" in ended.err
        assert [each.upload.file_name for each in vendor.submissions] == ["good.wav"]
        forced = await shell.run("extract", page, *options, "--force")
        assert forced.code == 0


async def test_two_tracks_of_one_name_are_told_apart(open_vendor: Any) -> None:
    """Once a title comes twice, the lines name the folder and the file."""
    async with open_vendor(seconds=0.1) as (_, shell):
        for folder in ("disc 1", "disc 2"):
            shell.track(f"{folder}/intro.wav")
        ended = await shell.run("extract", "disc 1", "disc 2", "--out", "o", "-s", "bass", *BARE)
        assert ended.code == 0
        first, second = re.findall("^done +(.*) \\(1 file", ended.err, re.MULTILINE)
        assert first == "intro"
        assert second in ("disc 1/intro.wav", "disc 2/intro.wav")
