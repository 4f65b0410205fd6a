"""Events of jobs as a typed stream, for progress bars, logs and metrics."""

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

# Events that a stream buffers for a slow reader; the oldest ones are dropped first.
BACKLOG = 4096


@attrs.frozen(kw_only=True)
class Event:
    """Base class of the events of a job.

    Attributes:
        job_id: The library's own id of the job.
        title: The track's title.
        task_id: MusicGPT's id of the task, if it is known.
        at: Time of the event in seconds since the epoch; ignored by comparisons.
    """

    job_id: str
    title: str
    task_id: str | None = None
    at: float = attrs.field(factory=time.time, eq=False)


@attrs.frozen(kw_only=True)
class Queued(Event):
    """The job was queued for a slot."""


@attrs.frozen(kw_only=True)
class Uploading(Event):
    """Bytes of the track were sent.

    Attributes:
        sent: Bytes sent so far; a repeated upload starts at 0.
        total: Bytes of the track, or ``None`` if MusicGPT downloads a URL.
        is_waiting_for_slot: Whether the upload is ready except for its end, which is sent as soon
            as a slot is free. Until then MusicGPT has no complete track and charges nothing.
    """

    sent: int
    total: int | None
    is_waiting_for_slot: bool = False


@attrs.frozen(kw_only=True)
class Accepted(Event):
    """MusicGPT accepted the job (MusicGPT docs, Extraction).

    Attributes:
        eta: Estimated seconds until the end, or ``None`` if MusicGPT does not know.
        credit_estimate: Estimated cost in credits, or ``None`` if MusicGPT did not report it.
    """

    eta: float | None
    credit_estimate: float | None


@attrs.frozen(kw_only=True)
class Polled(Event):
    """The session polled the job's status (MusicGPT docs, status check).

    Attributes:
        status: MusicGPT's status word, such as ``"PROCESSING"``; empty if the poll failed.
    """

    status: str


@attrs.frozen(kw_only=True)
class WebhookReceived(Event):
    """A webhook arrived for the job."""


@attrs.frozen(kw_only=True)
class Throttled(Event):
    """MusicGPT responded with 429, or with 503 to a submit, and the session slows down.

    Attributes:
        call: The refused call: ``"poll"`` or ``"submit"``.
        retry_after: Seconds from the ``Retry-After`` header, or ``None``.
    """

    call: str
    retry_after: float | None


@attrs.frozen(kw_only=True)
class Completed(Event):
    """MusicGPT finished the job.

    Attributes:
        extraction: The result: links, cost in credits, duration in seconds.
    """

    extraction: Extraction


@attrs.frozen(kw_only=True)
class Failed(Event):
    """The job or its download ended with an error.

    Attributes:
        error: A copy of the error that awaiting the job raises.
    """

    error: MusicGPTError


@attrs.frozen(kw_only=True)
class Downloading(Event):
    """Bytes of one file were received.

    Attributes:
        stem: The stem's name.
        format: ``"wav"`` or ``"mp3"``.
        received: Bytes received so far; decreases if the download starts over.
        total: Bytes of the file, or ``None`` if the host did not declare them.
    """

    stem: str
    format: str
    received: int
    total: int | None


@attrs.frozen(kw_only=True)
class Downloaded(Event):
    """All requested files are complete on disk.

    Attributes:
        files: Paths by stem and format: ``{"drums": {"wav": Path("…/song - drums.wav")}}``.
    """

    files: Mapping[str, Mapping[str, Path]]


_PROGRESS = (Uploading, Downloading)


class EventBus:
    """Publisher of events to any number of streams; a slow reader delays nothing."""

    def __init__(self) -> None:
        # Weak references, so that a stream is removed when its reader drops it.
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()  # of all jobs
        self._readers_of: dict[str, weakref.WeakSet[EventStream]] = {}  # of one job each
        self._closed = False

    def __bool__(self) -> bool:
        """Return whether there are streams; if not, no event has to be created."""
        return bool(self._streams or self._readers_of)

    def publish(self, event: Event) -> None:
        """Put an event on every stream that it belongs to."""
        for stream in (*self._streams, *self._readers_of.get(event.job_id, ())):
            stream.put(event)

    def stream(self, job_id: str | None = None) -> EventStream:
        """Return a new stream of all events or of one job's."""
        stream = EventStream(self, job_id)
        if job_id is None:
            self._streams.add(stream)
        else:
            self._readers_of.setdefault(job_id, weakref.WeakSet()).add(stream)
        if self._closed:
            stream.end()
        return stream

    def unsubscribe(self, stream: EventStream) -> None:
        """Remove a stream."""
        self._streams.discard(stream)
        streams = self._readers_of.get(stream.job_id or "")
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._readers_of[stream.job_id or ""]

    def close(self) -> None:
        """End every stream after the events that it has buffered."""
        self._closed = True
        of_one_job = (stream for streams in self._readers_of.values() for stream in streams)
        for stream in (*self._streams, *of_one_job):
            stream.end()


class EventStream(AsyncIterator[Event]):
    """The stream of events of one reader."""

    def __init__(self, event_bus: EventBus, job_id: str | None) -> None:
        self._event_bus = event_bus
        self.job_id: str | None = job_id
        self._backlog: deque[Event] = deque(maxlen=BACKLOG)
        self._arrived = anyio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """Buffer an event; progress replaces unread progress of the same kind."""
        if self._backlog and _supersedes(event, self._backlog[-1]):
            self._backlog.pop()
        self._backlog.append(event)
        self._arrived.set()

    def end(self) -> None:
        """End the stream after the buffered events."""
        self._ended = True
        self._arrived.set()

    async def __anext__(self) -> Event:
        while not self._backlog:
            if self._ended:
                self._event_bus.unsubscribe(self)
                raise StopAsyncIteration
            if self._arrived.is_set():  # an unset event may have another waiter
                self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._backlog.popleft()

    async def aclose(self) -> None:
        """Close the stream."""
        self._event_bus.unsubscribe(self)


def _supersedes(event: Event, last: Event) -> bool:
    return (
        isinstance(event, _PROGRESS)
        and type(event) is type(last)
        and event.job_id == last.job_id
        and getattr(event, "stem", None) == getattr(last, "stem", None)
        and getattr(event, "format", None) == getattr(last, "format", None)
    )
