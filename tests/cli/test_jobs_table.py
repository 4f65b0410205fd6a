from __future__ import annotations

import pytest
from rich.cells import cell_len

from musicgpt_async.cli.commands.jobs import format_lines
from musicgpt_async.models import JobRecord, JobState

TASK = "5b7a1c3e-0a1b-4c2d-8e3f-123456789abc"


def make_record(**facts: object) -> JobRecord:
    """A job of a track with a long name."""
    values = {"source": f"/music/{'日本語 ' * 20}.flac", "task_id": TASK, **facts}
    return JobRecord(id="job-1", fingerprint="f", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_job_fits_the_terminal(width: int) -> None:
    """The line is as wide as the terminal at most; a wide one shows the task's whole id."""
    (line,) = format_lines(make_record(state=JobState.PROCESSING), None, width)
    if width < 110:
        assert cell_len(line) <= width
        assert f"processing  {TASK[:8]}…" in line
    else:
        assert TASK in line


def test_without_a_terminal_a_job_is_one_whole_line() -> None:
    """Programs that read the table get whole ids, names and reasons."""
    failed = make_record(state=JobState.FAILED, error="MusicGPT could not process it.")
    (line,) = format_lines(failed, None, None)
    assert TASK in line
    assert line.endswith(".flac: MusicGPT could not process it.")


def test_a_terminal_shows_reasons_and_ids_below() -> None:
    """What a user has to act on is not cut off: the reason, and the id that --found needs."""
    lost = make_record(state=JobState.UNKNOWN, task_id=None, sent_at=1.0, error="No response.")
    _, found, reason = format_lines(lost, None, 80)
    assert (found, reason) == ("  job job-1", "  No response.")
