"""What happens to jobs, as one typed stream for progress bars, logs and metrics."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio
import attrs

from musicgpt_async.errors import MusicGPTError
from musicgpt_async.models import Extraction

# Events that a reader may fall behind by; the oldest go first.
BACKLOG = 4096


@attrs.frozen(kw_only=True)
class Event:
    """Something happened to a job.

    Attributes:
        job_id: The library's own name for the job.
        title: The track's title.
        task_id: MusicGPT's name for the job, if it is known.
        at: When it happened, in seconds since the epoch; two events that differ in nothing else
            are equal.
    """

    job_id: str
    title: str
    task_id: str | None = None
    at: float = attrs.field(factory=time.time, eq=False)


@attrs.frozen(kw_only=True)
class Queued(Event):
    """The job is queued for a slot."""


@attrs.frozen(kw_only=True)
class Uploading(Event):
    """Bytes of the track went out.

    Attributes:
        sent: Bytes so far; an upload that is sent again begins at 0.
        total: Bytes of the track, ``None`` if MusicGPT fetches a URL itself.
    """

    sent: int
    total: int | None


@attrs.frozen(kw_only=True)
class Accepted(Event):
    """MusicGPT took the job (MusicGPT docs, Extraction).

    Attributes:
        eta: Seconds that it expects to need, ``None`` if it does not know.
        credit_estimate: Credits that it expects to charge, ``None`` if it did not say.
    """

    eta: float | None
    credit_estimate: float | None


@attrs.frozen(kw_only=True)
class Polled(Event):
    """MusicGPT was asked how the job stands (MusicGPT docs, status check).

    Attributes:
        status: Its own word, such as ``"PROCESSING"``; empty where the look itself failed.
    """

    status: str


@attrs.frozen(kw_only=True)
class WebhookReceived(Event):
    """A webhook arrived for the job."""


@attrs.frozen(kw_only=True)
class Throttled(Event):
    """MusicGPT said 429, or 503 to a submit, and the session goes slower.

    Attributes:
        call: What was refused: ``"poll"`` or ``"submit"``.
        retry_after: Seconds that MusicGPT asked to wait, ``None`` if it did not say.
    """

    call: str
    retry_after: float | None


@attrs.frozen(kw_only=True)
class Completed(Event):
    """MusicGPT finished the job.

    Attributes:
        extraction: What came of it: links, cost in credits, duration in seconds.
    """

    extraction: Extraction


@attrs.frozen(kw_only=True)
class Failed(Event):
    """The job, or its download, ended in an error.

    Attributes:
        error: A copy of what awaiting the job raises.
    """

    error: MusicGPTError


@attrs.frozen(kw_only=True)
class Downloading(Event):
    """Bytes of one file came.

    Attributes:
        stem: The stem's name.
        format: ``"wav"`` or ``"mp3"``.
        received: Bytes of the file so far; fewer than before when a host makes it start over.
        total: Bytes of the whole file, ``None`` if the host did not say.
    """

    stem: str
    format: str
    received: int
    total: int | None


@attrs.frozen(kw_only=True)
class Downloaded(Event):
    """All files that were asked for lie whole under their names.

    Attributes:
        files: Stem → format → path: ``{"drums": {"wav": Path("…/song - drums.wav")}}``.
    """

    files: Mapping[str, Mapping[str, Path]]


_PROGRESS = (Uploading, Downloading)


class EventBus:
    """Hands events to any number of readers, none of which can hold anything up."""

    def __init__(self) -> None:
        # Weak, so that a stream that somebody stopped reading goes with its last reference.
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()  # of all jobs
        self._readers_of: dict[str, weakref.WeakSet[EventStream]] = {}  # of one job each
        self._closed = False

    def __bool__(self) -> bool:
        """Whether anybody reads: where nobody does, no event need be made."""
        return bool(self._streams or self._readers_of)

    def publish(self, event: Event) -> None:
        """Give an event to every reader."""
        for stream in (*self._streams, *self._readers_of.get(event.job_id, ())):
            stream.put(event)

    def stream(self, job_id: str | None = None) -> EventStream:
        """Return a new reader, of everything or of one job."""
        stream = EventStream(self, job_id)
        if job_id is None:
            self._streams.add(stream)
        else:
            self._readers_of.setdefault(job_id, weakref.WeakSet()).add(stream)
        if self._closed:
            stream.end()
        return stream

    def unsubscribe(self, stream: EventStream) -> None:
        """Stop giving events to a reader."""
        self._streams.discard(stream)
        streams = self._readers_of.get(stream.job_id or "")
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._readers_of[stream.job_id or ""]

    def close(self) -> None:
        """End every reader's stream once it has read what it was given."""
        self._closed = True
        of_one_job = (stream for streams in self._readers_of.values() for stream in streams)
        for stream in (*self._streams, *of_one_job):
            stream.end()


class EventStream(AsyncIterator[Event]):
    """One reader's stream of events."""

    def __init__(self, event_bus: EventBus, job_id: str | None) -> None:
        self._event_bus = event_bus
        self.job_id: str | None = job_id
        self._backlog: deque[Event] = deque(maxlen=BACKLOG)
        self._arrived = anyio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """Take an event; progress replaces the progress that was not read yet."""
        if self._backlog and _supersedes(event, self._backlog[-1]):
            self._backlog.pop()
        self._backlog.append(event)
        self._arrived.set()

    def end(self) -> None:
        """Stop after what was given so far."""
        self._ended = True
        self._arrived.set()

    async def __anext__(self) -> Event:
        while not self._backlog:
            if self._ended:
                self._event_bus.unsubscribe(self)
                raise StopAsyncIteration
            if self._arrived.is_set():  # never one that another reader waits on
                self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._backlog.popleft()

    async def aclose(self) -> None:
        """Stop reading."""
        self._event_bus.unsubscribe(self)


def _supersedes(event: Event, last: Event) -> bool:
    return (
        isinstance(event, _PROGRESS)
        and type(event) is type(last)
        and event.job_id == last.job_id
        and getattr(event, "stem", None) == getattr(last, "stem", None)
        and getattr(event, "format", None) == getattr(last, "format", None)
    )
