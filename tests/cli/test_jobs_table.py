from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from rich.cells import cell_len

from musicgpt_async.cli.attempts import Overview
from musicgpt_async.cli.commands.jobs import format_lines
from musicgpt_async.models import JobRecord, JobState

TASK = "5b7a1c3e-0a1b-4c2d-8e3f-123456789abc"
LONG = f"{'日本語 ' * 20}.flac"


def make_record(**facts: object) -> JobRecord:
    """A job."""
    values = {"id": "job-1", "source": "/music/song.flac", "task_id": TASK, **facts}
    return JobRecord(fingerprint="f", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_job_fits_the_terminal(width: int) -> None:
    """The line is as wide as the terminal at most; a wide one shows the task's whole id."""
    (line,) = format_lines(make_record(state=JobState.PROCESSING), None, width, name=LONG)
    if width < 110:
        assert cell_len(line) <= width
        assert f"processing  {TASK[:8]}…" in line
    else:
        assert TASK in line


def test_without_a_terminal_a_job_is_one_whole_line() -> None:
    """Programs that read the table get whole ids, names and reasons."""
    failed = make_record(state=JobState.FAILED, error="MusicGPT could not process it.")
    (line,) = format_lines(failed, None, None, name="song.flac")
    assert TASK in line
    assert line.endswith(".flac: MusicGPT could not process it.")


def test_a_terminal_shows_reasons_and_ids_below() -> None:
    """What a user has to act on is not cut off: the reason, and the id that --found needs."""
    lost = make_record(state=JobState.UNKNOWN, task_id=None, sent_at=1.0, error="No response.")
    _, found, reason = format_lines(lost, None, 80, name="song.flac")
    assert (found, reason) == ("  job job-1", "  No response.")


def test_a_reason_breaks_between_words() -> None:
    """A terminal would break it anywhere."""
    failed = make_record(state=JobState.FAILED, error="MusicGPT could not process it. " * 5)
    _, *reason = format_lines(failed, None, 60, name="song.flac")
    assert reason[0].endswith(("MusicGPT", "could", "process", "it."))
    assert max(map(len, reason)) <= 60


@pytest.mark.anyio
async def test_attempts_that_cost_nothing_are_left_out_once_there_is_another() -> None:
    """A refusal that a later attempt made good is no failure; what was paid for stays."""
    attempts = [
        make_record(id="refused", state=JobState.FAILED, task_id=None),
        make_record(id="stopped", state=JobState.DETACHED, task_id=None),
        make_record(id="paid", state=JobState.FAILED),
        make_record(id="done", state=JobState.COMPLETED),
        make_record(id="other", source="/music/b.flac", state=JobState.FAILED, task_id=None),
    ]
    overview = await read(attempts)
    assert [each.id for each in attempts if not overview.is_outdated(each)] == [
        "paid", "done", "other",
    ]  # fmt: skip


@pytest.mark.anyio
async def test_tracks_of_one_name_are_told_apart() -> None:
    """A name that two tracks have comes with the folder, and for both of them."""
    first, second = make_record(source="/a/1/intro.flac"), make_record(source="/a/2/intro.flac")
    overview = await read([first, second, make_record(source="/a/2/outro.flac")])
    assert overview.name(first) == "1/intro.flac"
    assert overview.name(second) == "2/intro.flac"
    assert overview.name(make_record(source="/a/2/outro.flac")) == "outro.flac"


async def read(records: list[JobRecord]) -> Overview:
    """What is known of a journal's jobs before the first one is shown."""

    async def stored() -> AsyncIterator[JobRecord]:
        for record in records:
            yield record

    overview = Overview()
    await overview.read(stored())
    return overview
