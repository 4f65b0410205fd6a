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
        track: The track's title.
        task_id: The vendor's name for the job, where it is known.
        at: When it happened, in seconds since the epoch; two events that differ in nothing else
            are equal.
    """

    job_id: str
    track: str
    task_id: str | None = None
    at: float = attrs.field(factory=time.time, eq=False)


@attrs.frozen(kw_only=True)
class Queued(Event):
    """The job stands in line for a slot."""


@attrs.frozen(kw_only=True)
class Uploading(Event):
    """Bytes of the track went out.

    Attributes:
        sent: Bytes so far; an upload that is sent again begins at 0.
        total: Bytes of the track, ``None`` where the vendor fetches a URL itself.
    """

    sent: int
    total: int | None


@attrs.frozen(kw_only=True)
class Accepted(Event):
    """The vendor took the job (MusicGPT docs, Extraction).

    Attributes:
        eta: Seconds that it expects to need, ``None`` where it does not know.
        credit_estimate: Credits that it expects to charge, ``None`` where it did not say.
    """

    eta: float | None
    credit_estimate: float | None


@attrs.frozen(kw_only=True)
class Looked(Event):
    """The vendor was asked how the job stands (MusicGPT docs, status check).

    Attributes:
        status: Its own word, such as ``"PROCESSING"``; empty where the look itself failed.
    """

    status: str


@attrs.frozen(kw_only=True)
class Woken(Event):
    """A webhook arrived for the job."""


@attrs.frozen(kw_only=True)
class Slowed(Event):
    """The vendor said 429, or 503 to a submit, and the session goes slower.

    Attributes:
        call: What was refused: ``"look"`` or ``"submit"``.
        retry_after: Seconds that the vendor asked to wait, ``None`` where it did not say.
    """

    call: str
    retry_after: float | None


@attrs.frozen(kw_only=True)
class Completed(Event):
    """The vendor finished the job.

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
        total: Bytes of the whole file, ``None`` where the host did not say.
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


class Feed:
    """Hands events to any number of readers, none of which can hold anything up."""

    def __init__(self) -> None:
        # Weak, so that a stream that somebody stopped reading goes with its last reference.
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._closed = False

    def __bool__(self) -> bool:
        """Whether anybody reads: where nobody does, no event need be made."""
        return bool(self._readers)

    def publish(self, event: Event) -> None:
        """Give an event to every reader."""
        for reader in tuple(self._readers):
            reader.put(event)

    def reader(self, job_id: str | None = None) -> Reader:
        """Return a new reader, of everything or of one job."""
        reader = Reader(self, job_id)
        self._readers.add(reader)
        if self._closed:
            reader.end()
        return reader

    def drop(self, reader: Reader) -> None:
        """Stop giving events to a reader."""
        self._readers.discard(reader)

    def close(self) -> None:
        """End every reader's stream once it has read what it was given."""
        self._closed = True
        for reader in tuple(self._readers):
            reader.end()


class Reader(AsyncIterator[Event]):
    """One reader's stream of events."""

    def __init__(self, feed: Feed, job_id: str | None) -> None:
        self._feed = feed
        self._job_id = job_id
        self._backlog: deque[Event] = deque(maxlen=BACKLOG)
        self._news = anyio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """Take an event; progress replaces the progress that was not read yet."""
        if self._job_id is not None and event.job_id != self._job_id:
            return
        if self._backlog and _supersedes(event, self._backlog[-1]):
            self._backlog.pop()
        self._backlog.append(event)
        self._news.set()

    def end(self) -> None:
        """Stop after what was given so far."""
        self._ended = True
        self._news.set()

    async def __anext__(self) -> Event:
        while not self._backlog:
            if self._ended:
                self._feed.drop(self)
                raise StopAsyncIteration
            if self._news.is_set():  # never one that another reader waits on
                self._news = anyio.Event()
            await self._news.wait()
        return self._backlog.popleft()

    async def aclose(self) -> None:
        """Stop reading."""
        self._feed.drop(self)


def _supersedes(event: Event, last: Event) -> bool:
    return (
        isinstance(event, _PROGRESS)
        and type(event) is type(last)
        and event.job_id == last.job_id
        and getattr(event, "stem", None) == getattr(last, "stem", None)
        and getattr(event, "format", None) == getattr(last, "format", None)
    )
