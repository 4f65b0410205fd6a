"""Predicates on a job's record: whether it may be paid for, what is left to do.

Whether a track may be submitted again is derived from evidence, never from an exception: the track
was never delivered, MusicGPT refused the submit, or MusicGPT could not process the extraction.
"""

from __future__ import annotations

from musicgpt_async._rules.formats import is_downloaded
from musicgpt_async.models import Extraction, JobRecord, JobState

MAX_TASK_ID_LENGTH = 512  # characters; MusicGPT's are UUIDs
# How long a conversion is taken to run that nothing follows. A slot that is freed too early costs a
# refused submit; one that is freed too late keeps the account's next job waiting.
RUN_TIME_FACTOR = 1.5  # of MusicGPT's estimate
UNKNOWN_RUN_TIME = 300.0  # seconds, without an estimate


def was_delivered(record: JobRecord) -> bool:
    """Return whether MusicGPT has, or may have, received the track, so that it may be charged."""
    return record.task_id is not None or record.sent_at is not None


def is_unacknowledged(record: JobRecord) -> bool:
    """Return whether MusicGPT may run a task for this job whose id the record does not have."""
    refused = record.state is JobState.FAILED
    return record.sent_at is not None and record.task_id is None and not refused


def may_be_submitted_again(record: JobRecord) -> bool:
    """Return whether submitting the same track again cannot be a second payment.

    An accepted job becomes FAILED only if MusicGPT reports that it could not process it (see
    ``lifecycle``). A job without a task becomes FAILED by a refusal, or before anything was sent.
    """
    if record.state is JobState.DETACHED:
        return not was_delivered(record)
    return record.state is JobState.FAILED


def estimate_time_left(record: JobRecord, *, now: float) -> float:
    """Return the seconds for which MusicGPT may still process a job that was delivered."""
    run_time = UNKNOWN_RUN_TIME
    if record.eta is not None and record.eta >= 0.0:
        run_time = RUN_TIME_FACTOR * max(record.eta, 1.0)
    began = record.accepted_at or record.sent_at or now
    return max(began + run_time - now, 0.0)


def is_unfinished(record: JobRecord) -> bool:
    """Return whether a job still has to be submitted, polled, reconciled or downloaded.

    A job that was detached before its track was delivered is finished: nothing was paid.
    """
    match record.state:
        case JobState.FAILED:
            return False
        case JobState.DETACHED:
            return was_delivered(record)
        case JobState.COMPLETED:
            return record.directory is not None and not is_downloaded(record)
        case _:
            return True


def why_not_bindable(record: JobRecord) -> str | None:
    """Return why a task cannot be bound to this job, or ``None`` if it can."""
    if record.task_id is not None:
        return f"it has the task {record.task_id} already"
    if not is_unacknowledged(record):
        return f"it is {record.state} and was not accepted, so it has no task"
    return None


def has_same_options(one: JobRecord, other: JobRecord) -> bool:
    """Return whether two jobs have the same stems, preprocessing and mode."""
    return _options(one) == _options(other)


def _options(record: JobRecord) -> tuple[list[str], list[str], bool]:
    return sorted(record.stems), sorted(record.preprocessing), record.eco_mode


def is_task_id(text: str) -> bool:
    """Return whether a text can be a task_id: short and printable, for journals and URLs."""
    return 0 < len(text) <= MAX_TASK_ID_LENGTH and text.isprintable()


def make_extraction(record: JobRecord) -> Extraction:
    """Return the result of a completed job, from its record."""
    return Extraction(
        task_id=record.task_id or "",
        conversion_id=record.conversion_id,
        stems=record.links,
        cost=record.cost,
        duration=record.duration,
    )
