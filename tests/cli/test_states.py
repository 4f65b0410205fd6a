from __future__ import annotations

import pytest

from musicgpt_async.cli.states import TrackState, state_of
from musicgpt_async.cli.track_json import describe_record
from musicgpt_async.models import JobRecord, JobState, StemFile, StemLinks

DOWNLOADED = (StemFile(stem="bass", format="mp3", path="/o/a.mp3", size=1, sha256=""),)
LINKS = {"bass": StemLinks(mp3="https://example.org/a.mp3")}


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"state": JobState.COMPLETED, "links": LINKS}, TrackState.DONE),
        ({"state": JobState.COMPLETED, "links": LINKS, "directory": "/o"}, TrackState.DOWNLOADING),
        (
            {"state": JobState.COMPLETED, "links": LINKS, "directory": "/o", "files": DOWNLOADED},
            TrackState.DONE,
        ),
        ({"state": JobState.TIMED_OUT, "task_id": "t"}, TrackState.PROCESSING),
        ({"state": JobState.DETACHED, "task_id": "t"}, TrackState.PROCESSING),
        ({"state": JobState.DETACHED, "sent_at": 1.0}, TrackState.UNKNOWN),
        ({"state": JobState.DETACHED}, TrackState.STOPPED),
    ],
)
def test_the_state_says_what_is_left_to_do(facts: dict[str, object], state: TrackState) -> None:
    """A finished job is done once its stems are on disk; a detached one continues if accepted."""
    assert state_of(JobRecord(id="1", fingerprint="f", source="a.wav", **facts)) is state  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [state for state in JobState if state != JobState.DETACHED])
def test_every_state_has_a_word(state: JobState) -> None:
    """No state of a job is without a word for people."""
    assert state_of(JobRecord(id="1", fingerprint="f", source="a.wav", state=state)) in TrackState


def test_a_track_that_is_done_has_no_error() -> None:
    """What once stopped it, such as a Ctrl-C, is over: programs that read JSON see no failure."""
    done = JobRecord(
        id="1", fingerprint="f", source="a.wav", state=JobState.COMPLETED, error="It was detached."
    )
    assert describe_record(done, in_work=False).error is None
