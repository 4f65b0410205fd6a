"""Attempts at one track: a journal has a record of each."""

from __future__ import annotations

from collections.abc import AsyncIterable, Hashable

from musicgpt_async._rules import filenames
from musicgpt_async.cli.namesakes import Namesakes
from musicgpt_async.cli.states import TrackState, state_of
from musicgpt_async.models import JobRecord


def track_key(record: JobRecord) -> Hashable:
    """Return what all attempts at the same track with the same options have in common."""
    if not record.source:
        return record.fingerprint
    options = (frozenset(record.stems), frozenset(record.preprocessing), record.eco_mode)
    return (record.source, *options)


class Overview:
    """What has to be known of all jobs before the first one is shown."""

    def __init__(self) -> None:
        self._last: dict[int, str] = {}  # hash of a track's key → the job that tried last
        self._namesakes = Namesakes()

    async def read(self, records: AsyncIterable[JobRecord]) -> None:
        """Read the records of a journal; the oldest come first."""
        async for record in records:
            # Only the key's hash: a hundred thousand paths would take much more memory.
            self._last[hash(track_key(record))] = record.id
            self._namesakes.add(_title(record), record.source)

    def is_outdated(self, record: JobRecord) -> bool:
        """Return whether a job cost nothing, and its track was submitted again later."""
        is_free = record.task_id is None and state_of(record) in (
            TrackState.FAILED,
            TrackState.STOPPED,
        )
        return is_free and self._last[hash(track_key(record))] != record.id

    def name(self, record: JobRecord) -> str:
        """Return what a track is called, distinguished from others of its name."""
        return self._namesakes.name(_title(record), record.source)


def _title(record: JobRecord) -> str:
    return record.label or filenames.name_of(record.source) or record.id
