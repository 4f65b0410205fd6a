from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import termios
from typing import Any

import anyio
import anyio.to_thread
import pytest
from rich.cells import cell_len

from musicgpt_async import Extraction, TransportError
from musicgpt_async.cli.live import DETAIL
from musicgpt_async.cli.progress import QUEUED_BY_LIMIT, UNANSWERED, ProgressModel
from musicgpt_async.emulator import Fault
from musicgpt_async.events import (
    Accepted,
    Completed,
    Downloaded,
    Downloading,
    Event,
    Failed,
    Polled,
    Queued,
    Throttled,
    Uploading,
)

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
UP = re.compile(r"(?:\x1b\[1A\x1b\[2K)+")


class Clock:
    """Does not advance until it is set."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def event(kind: type[Event], job: str = "job", **facts: Any) -> Any:
    """Make an event of one track, whose name is odd."""
    return kind(job_id=job, title="A \x1b[31msong", task_id="task", **facts)


def test_a_track_is_shown_from_its_upload_to_its_last_file() -> None:
    """States, shares and speeds follow the events, and nothing stays behind."""
    clock = Clock()
    progress = ProgressModel(clock=clock)
    progress.handle(event(Queued))
    assert not progress.active
    progress.handle(event(Uploading, sent=0, total=4_000_000))
    clock.now += 1
    progress.handle(event(Uploading, sent=2_000_000, total=4_000_000))
    track = progress.active["job"]
    assert (track.title, track.state) == ("A \ufffd[31msong", "uploading")
    assert (track.share(clock.now), track.detail(clock.now)) == (0.5, "2.0 MB/s")
    progress.handle(event(Uploading, sent=4_000_000, total=4_000_000))
    assert (track.state, track.share(clock.now)) == ("uploading", 1.0)
    progress.handle(event(Accepted, eta=20.0, credit_estimate=1.0))
    clock.now += 5
    assert (track.state, track.share(clock.now)) == ("processing", 0.25)
    assert track.detail(clock.now) == "0:05 of ~0:20"
    progress.handle(event(Polled, status="IN_PROGRESS"))
    clock.now += 22
    assert (track.state, track.share(clock.now)) == ("processing", 0.99)
    clock.now += 5  # more than the estimate, a quarter of it and five seconds
    assert (track.share(clock.now), track.detail(clock.now)) == (None, "longer than expected")
    progress.handle(event(Completed, extraction=Extraction(task_id="task")))
    progress.handle(event(Polled, status="IN_PROGRESS"))
    assert track.state == "downloading"
    progress.handle(event(Downloading, stem="bass", format="wav", received=30, total=100))
    progress.handle(event(Downloading, stem="drums", format="wav", received=100, total=100))
    progress.handle(event(Downloading, stem="bass", format="wav", received=0, total=100))
    assert (track.state, track.share(clock.now)) == ("downloading", 0.5)
    progress.handle(event(Downloaded, files={}))
    assert not progress.active


def test_a_ready_upload_says_that_it_waits_for_a_slot() -> None:
    """An upload ahead of its slot stays "uploading", and says what its end waits for."""
    progress = ProgressModel()
    progress.handle(event(Uploading, sent=9, total=10))
    progress.handle(event(Uploading, sent=9, total=10, is_waiting_for_slot=True))
    track = progress.active["job"]
    assert (track.state, track.detail(0.0)) == ("uploading", "ready, waiting for a slot")
    assert cell_len(track.detail(0.0)) <= DETAIL
    progress.handle(event(Uploading, sent=10, total=10))
    assert (track.state, track.detail(0.0)) == ("uploading", "")
    progress.handle(event(Uploading, sent=9, total=10, is_waiting_for_slot=True))
    progress.handle(event(Accepted, eta=None, credit_estimate=None))
    assert track.state == "processing"
    assert track.detail(track.since or 0.0) == "0:00"


def test_a_track_that_is_refused_goes_back_in_line() -> None:
    """After a 429 a track is not shown as uploading; a failure takes it off the board."""
    progress = ProgressModel()
    progress.handle(event(Uploading, sent=1, total=2))
    progress.handle(event(Throttled, call="submit", retry_after=None))
    assert not progress.active
    progress.handle(event(Uploading, sent=1, total=2))
    progress.handle(event(Throttled, call="poll", retry_after=None))
    assert progress.active
    progress.handle(event(Failed, error=TransportError("gone")))
    assert not progress.active


def test_a_batch_that_is_held_up_is_known() -> None:
    """Nothing under way after a refusal is worth a word, until the vendor takes a track again."""
    progress = ProgressModel()
    progress.handle(event(Queued))
    assert not progress.trouble
    progress.handle(event(Accepted, job="other", eta=None, credit_estimate=None))
    progress.handle(event(Uploading, sent=2, total=2))
    progress.handle(event(Throttled, call="submit", retry_after=None))
    assert not progress.trouble
    progress.handle(event(Downloaded, job="other", files={}))
    assert progress.trouble == QUEUED_BY_LIMIT
    progress.handle(event(Uploading, sent=2, total=2))
    progress.handle(event(Accepted, eta=None, credit_estimate=None))
    progress.handle(event(Downloaded, files={}))
    assert not progress.trouble


@pytest.mark.anyio
async def test_waiting_for_a_slot_is_said(open_vendor: Any) -> None:
    """Of two commands of an account with one slot the later one says why nothing moves."""
    async with open_vendor(seconds=4.0, parallel=1) as (_, shell):
        ended = await shell.together(
            *(
                shell.run("extract", shell.track(f"{name}.wav"), "--out", name, "--no-journal")
                for name in ("one", "two")
            )
        )
    assert [each.code for each in ended] == [0, 0]
    assert sorted(each.err.count(QUEUED_BY_LIMIT) for each in ended) == [0, 1]


def test_a_vendor_that_does_not_answer_is_known() -> None:
    """Several failed polls in a row are shown, one alone is not; neither changes a state."""
    progress = ProgressModel()
    progress.handle(event(Polled, status="PENDING"))
    for trouble in ("", "", UNANSWERED):
        progress.handle(event(Polled, status=""))
        assert progress.trouble == trouble
        assert progress.active["job"].state == "processing"
    progress.handle(event(Polled, status="PENDING"))
    assert not progress.trouble


@pytest.mark.anyio
async def test_a_vendor_that_does_not_answer_is_told_once(open_vendor: Any) -> None:
    """Without a terminal one line says why nothing moves; the track is done all the same."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        vendor.script(Fault("byId", "status", status=502, times=5))
        ended = await shell.run("extract", shell.track("song.wav"), "--out", "o", "--plan", "pro")
    assert ended.code == 0
    assert ended.err.count(UNANSWERED) == 1


def test_a_track_that_was_done_before_is_never_shown() -> None:
    """A completed job from the journal passes the board by, under its own id."""
    progress = ProgressModel()
    progress.handle(event(Queued, job="new"))
    progress.handle(event(Completed, job="old", extraction=Extraction(task_id="task")))
    assert not progress.active
    progress.handle(event(Downloaded, job="old", files={}))
    assert not progress.active


def read_all(terminal: int) -> str:
    """Read what was written to a terminal until its other end is closed."""
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()


@pytest.mark.anyio
@pytest.mark.parametrize("size", [(24, 80), (8, 60)])
async def test_ten_active_tracks_fit_into_the_terminal(
    open_vendor: Any, size: tuple[int, int]
) -> None:
    """No line is wider than the terminal, the moving part never higher, and it is taken away."""
    height, width = size
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    # Long enough for ten uploads, so that ten tracks are active at once.
    async with open_vendor(seconds=2.0) as (_, shell):
        for number in range(12):
            shell.track(f"in/{number} 日本語 {'long ' * 20}.wav")
        command = ("extract", "in", "--out", "o", "--plan", "pro", "--no-journal")
        async with shell.start(*command, stderr=end) as running:
            os.close(end)
            told = await anyio.to_thread.run_sync(read_all, terminal)
            ended = await running.ended()
    assert ended.code == 0
    highest = max(each.group().count("A") + 1 for each in UP.finditer(told))
    assert min(height - 1, 11) <= highest <= height - 1
    for line in CODES.sub("", told).replace("\r", "\n").split("\n"):
        assert cell_len(line) <= width
    assert told.count("\x1b[?25h") == told.count("\x1b[?25l") == 1  # the cursor is there again
    last = CODES.sub("", told[told.rindex("\x1b[?25h") :])
    assert "12 tracks done" in last
    assert "\x1b[1A\x1b[2K" in told[told.rindex("━") :]


@pytest.mark.anyio
async def test_no_color_is_honoured(open_vendor: Any) -> None:
    """With NO_COLOR set a terminal gets bars without a colour."""
    terminal, end = pty.openpty()
    async with open_vendor(seconds=0.1) as (_, shell):
        track = shell.track("song.wav")
        command = ("extract", track, "--out", "o", "--plan", "pro", "--no-journal")
        async with shell.start(*command, stderr=end, NO_COLOR="1") as running:
            os.close(end)
            told = await anyio.to_thread.run_sync(read_all, terminal)
            assert (await running.ended()).code == 0
    assert "1 track done" in told
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38)", told)


@pytest.mark.anyio
async def test_bars_and_json_do_not_mix(open_vendor: Any) -> None:
    """Where stdout is the same terminal each JSON object has lines of its own, without bars."""
    terminal, end = pty.openpty()
    async with open_vendor(seconds=0.1) as (_, shell):
        command = ("extract", shell.track("song.wav"), "--out", "o", "--json", "--no-journal")
        async with shell.start(*command, stdout=end, stderr=end) as running:
            os.close(end)
            told = await anyio.to_thread.run_sync(read_all, terminal)
            assert (await running.ended()).code == 0
    lines = told.splitlines()
    assert [json.loads(line)["ok"] for line in lines if "{" in line] == [True]
    assert "━" not in told
