"""Job: the state of one job in a session. Jobs changes it, and handles show it."""

from __future__ import annotations

from typing import Any, TypeVar

import anyio
import attrs

from musicgpt_async.errors import MusicGPTError
from musicgpt_async.events import Downloaded, Event, EventStream, Failed
from musicgpt_async.job import Callback, ExtractionJob
from musicgpt_async.journal import Claim
from musicgpt_async.models import Extraction, JobRecord

_E = TypeVar("_E", bound=Event)


@attrs.define(eq=False, repr=False)
class DownloadStatus:
    """What is known of the downloads of one job; most jobs never need it.

    Attributes:
        requested: Downloads that were asked for and have not ended.
        writers: Downloads, of this job or of one that follows it, that write into its record.
        end: How the last one ended.
        streams: Streams of this job's events.
    """

    requested: int = 0
    writers: int = 0
    end: Downloaded | Failed | None = None
    streams: list[EventStream] = attrs.field(factory=list)


@attrs.define(eq=False, repr=False)
class Job:
    """One job as a session follows it. Only Jobs changes its record and its outcome.

    Attributes:
        id: The id of its handle. A handle that follows another job keeps its own id, while its
            record is that of the other job.
        record: Its state, as the journal saves it.
        title: The track's name in files and messages.
        source: What was submitted, as it was given.
        deadline: Seconds from acceptance, ``None`` for no end.
        position: Its place in the queue.
        outcome: How it ended.
        handle: The public object.
        primary: The job of this session that writes the record for this one, too.
        is_response_due: Whether the response to its submit is on its way.
        claim: The right to save its record, while it has that; the store's to change.
    """

    id: str
    record: JobRecord
    title: str
    source: Any
    deadline: float | None
    position: int
    outcome: Extraction | MusicGPTError | None = None
    handle: ExtractionJob = attrs.field(init=False)
    primary: Job | None = None
    is_response_due: bool = False
    claim: Claim | None = None
    downloading: DownloadStatus | None = None
    _changed: anyio.Event | None = None
    _callbacks: list[Callback] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, well or not."""
        return self.outcome is not None

    @property
    def is_downloading(self) -> bool:
        """Whether a download was asked for that has not ended."""
        return self.downloading is not None and self.downloading.requested > 0

    @property
    def is_free(self) -> bool:
        """Whether its claim can be given back with the next save: nothing more happens to it."""
        if not self.has_ended or self.is_response_due or self.is_downloading:
            return False
        return self.downloading is None or not self.downloading.writers

    def downloads(self) -> DownloadStatus:
        """Return what is known of its downloads."""
        if self.downloading is None:
            self.downloading = DownloadStatus()
        return self.downloading

    def make_event(self, kind: type[_E], **facts: Any) -> _E:
        """Return an event of this job."""
        return kind(job_id=self.id, title=self.title, task_id=self.record.task_id, **facts)

    async def wait_changed(self) -> None:
        """Wait for the next change of its state."""
        # Made on the first wait: of ten thousand handles most are never awaited one by one.
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def add_callback(self, callback: Callback) -> None:
        """Have a callback called at its end."""
        self._callbacks = [*(self._callbacks or ()), callback]

    def remove_callback(self, callback: Callback) -> int:
        """Remove a callback; return how many times it was there."""
        before = self._callbacks or []
        self._callbacks = [each for each in before if each != callback]
        return len(before) - len(self._callbacks)

    def notify(self) -> list[Callback]:
        """Wake its waiters; return the callbacks to call, which is none before its end."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()
        if not self.has_ended:
            return []
        callbacks, self._callbacks = self._callbacks, None
        return callbacks or []
