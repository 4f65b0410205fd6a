"""One track as one line of JSON: the same fields from every command, null if unknown."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import attrs

from musicgpt_async import MusicGPTError, Outcome
from musicgpt_async._rules import filenames
from musicgpt_async.cli.states import TrackState, state_of
from musicgpt_async.models import JobRecord


@attrs.frozen(kw_only=True)
class TrackJSON:
    """The fields, in their order.

    Attributes:
        track: The track's name for people.
        source: Its path or URL, or the id of a task that was submitted elsewhere.
        ok: Whether all stems are on disk.
        state: One of `TrackState`; null for a track that is not submitted yet.
        id: The library's own id of the job.
        task_id: MusicGPT's id of the job.
        conversion_id: MusicGPT's id of the conversion.
        label: The caller's name for the track.
        stems: The stems that were asked for; empty for MusicGPT's default.
        preprocessing: The options that were asked for.
        eco_mode: Whether the faster separation was asked for.
        format: Which files of each stem were asked for.
        directory: The directory of the stems.
        size: Bytes of the track.
        files: Stem → format → path.
        duration: Seconds of audio.
        credits_estimated: Credits that MusicGPT expected to charge.
        credits_charged: Credits that MusicGPT charged.
        created: When the track was queued, in UTC.
        accepted: When MusicGPT accepted it, in UTC.
        in_work: Whether a process works on it now.
        error: Type, message, status and MusicGPT's own message; null without an error.
    """

    track: str
    source: str
    ok: bool
    state: TrackState | None = None
    id: str | None = None
    task_id: str | None = None
    conversion_id: str | None = None
    label: str | None = None
    stems: tuple[str, ...] = ()
    preprocessing: tuple[str, ...] = ()
    eco_mode: bool = False
    format: str | None = None
    directory: str | None = None
    size: int | None = None
    files: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    duration: float | None = None
    credits_estimated: float | None = None
    credits_charged: float | None = None
    created: str | None = None
    accepted: str | None = None
    in_work: bool = False
    error: Mapping[str, Any] | None = None

    def encode(self, **more: Any) -> str:
        """Return one line in ASCII, which is safe for any terminal and pipe.

        Args:
            more: Fields that one command has alone.
        """
        return json.dumps({**_as_dict(self), **more})


_FIELDS = tuple(field.name for field in attrs.fields(TrackJSON))


def _as_dict(track: TrackJSON) -> dict[str, Any]:
    return {name: getattr(track, name) for name in _FIELDS}


def describe_record(record: JobRecord, *, in_work: bool) -> TrackJSON:
    """Return what a journal holds of a track."""
    files: dict[str, dict[str, str]] = {}
    for file in record.files:
        files.setdefault(file.stem, {})[file.format] = file.path
    state = state_of(record)
    is_done = state is TrackState.DONE
    return TrackJSON(
        track=title_of(record),
        source=record.source,
        ok=is_done,
        state=state,
        id=record.id,
        task_id=record.task_id,
        conversion_id=record.conversion_id,
        label=record.label,
        stems=record.stems,
        preprocessing=record.preprocessing,
        eco_mode=record.eco_mode,
        format=record.format,
        directory=record.directory,
        size=record.size,
        files=files,
        duration=record.duration,
        credits_estimated=record.credit_estimate,
        credits_charged=record.cost,
        created=_format_time(record.created_at or None),
        accepted=_format_time(record.accepted_at),
        in_work=in_work,
        error=describe_error(None, record.error) if record.error and not is_done else None,
    )


def describe_outcome(
    outcome: Outcome, record: JobRecord | None, files: Mapping[str, Mapping[str, str]]
) -> TrackJSON:
    """Return the outcome of a track.

    Args:
        outcome: The outcome.
        record: The record of its job; ``None`` if it was not submitted.
        files: Stem → format → path.
    """
    error = None
    if outcome.error is not None:
        error = describe_error(outcome.error, outcome.error.message)
    if record is None or outcome.job is None:
        name = filenames.title_of(str(outcome.source))
        state = TrackState.FAILED
        return TrackJSON(track=name, source=str(outcome.source), ok=False, state=state, error=error)
    state = state_of(record)
    if outcome.ok:
        state = TrackState.DONE
    elif state is TrackState.DONE:  # without a journal it is not known that stems are missing
        state = TrackState.DOWNLOADING
    return attrs.evolve(
        describe_record(record, in_work=False),
        track=outcome.job.title,
        source=str(outcome.source),
        ok=outcome.ok,
        state=state,
        files=files,
        error=error,
    )


def title_of(record: JobRecord) -> str:
    """Return a track's name for people: the caller's, or the file's without its ending."""
    return record.label or record.title or filenames.title_of(record.source) or record.id


def describe_error(error: MusicGPTError | None, message: str) -> dict[str, Any]:
    """Return an error as JSON has it; of one from a journal only the message is known."""
    return {
        "type": error and type(error).__name__,
        "message": message,
        "status": error and error.status,
        "vendor_message": error and error.vendor_message,
    }


def _format_time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
