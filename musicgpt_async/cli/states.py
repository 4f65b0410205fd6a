"""The state of a track, in the same words for the terminal, the report, `jobs` and JSON."""

from __future__ import annotations

from enum import StrEnum

from musicgpt_async._rules.records import is_unfinished, was_delivered
from musicgpt_async.models import JobRecord, JobState


class TrackState(StrEnum):
    """The state of a track, as the command shows it.

    Attributes:
        QUEUED: It waits for a slot; nothing was sent.
        UPLOADING: It is being sent.
        PROCESSING: MusicGPT has accepted it and works on it.
        DOWNLOADING: MusicGPT has finished it; not all stems are on disk.
        DONE: Its stems are on disk.
        FAILED: It ended in an error; nothing of it runs at MusicGPT.
        UNKNOWN: It was sent, and the response was lost: it may have been accepted.
        STOPPED: The command was interrupted before it was sent; nothing was paid for.
    """

    QUEUED = "queued"
    UPLOADING = "uploading"
    PROCESSING = "processing"
    DOWNLOADING = "downloading"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    STOPPED = "stopped"


_STATES = {
    JobState.QUEUED: TrackState.QUEUED,
    JobState.UPLOADING: TrackState.UPLOADING,
    JobState.UNACKNOWLEDGED: TrackState.UPLOADING,
    JobState.PROCESSING: TrackState.PROCESSING,
    JobState.TIMED_OUT: TrackState.PROCESSING,
    JobState.FAILED: TrackState.FAILED,
    JobState.UNKNOWN: TrackState.UNKNOWN,
}


def state_of(record: JobRecord) -> TrackState:
    """Return the state of the track that a record is about."""
    if record.state is JobState.COMPLETED:
        return TrackState.DOWNLOADING if is_unfinished(record) else TrackState.DONE
    if record.state is JobState.DETACHED:
        if record.task_id is not None:
            return TrackState.PROCESSING
        return TrackState.UNKNOWN if was_delivered(record) else TrackState.STOPPED
    return _STATES[record.state]
