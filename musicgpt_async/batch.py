"""Many tracks, one outcome each."""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import AbstractContextManager, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import attrs

from musicgpt_async._io.sources import AudioSource
from musicgpt_async.errors import InvalidOptionError, MusicGPTError, SessionClosedError
from musicgpt_async.job import ExtractionJob, Files
from musicgpt_async.models import AudioFormat, Extraction

if TYPE_CHECKING:  # anyio loads it when the first batch asks for a stream
    from anyio.streams.memory import MemoryObjectSendStream

# Tracks taken from the sources at once: enough to keep every slot and every download busy.
MOST_AT_ONCE = 64


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one track.

    Attributes:
        source: As it was given.
        job: The handle, ``None`` where the track was refused before it was submitted.
        files: What ``download`` returned: stem → path, or stem → format → path.
        error: Why it failed; ``None`` where all went well.
    """

    source: Any
    job: ExtractionJob | None = None
    files: dict[str, Path] | Files = attrs.field(factory=dict)
    error: MusicGPTError | None = None

    @property
    def ok(self) -> bool:
        """Whether every stem that was asked for lies on disk."""
        return self.error is None

    @property
    def extraction(self) -> Extraction | None:
        """The finished job, where it got so far."""
        if self.job is None or not self.job.done() or self.job.exception() is not None:
            return None
        return self.job.result()


@attrs.frozen(kw_only=True)
class Item:
    """One track of a batch with options of its own.

    Attributes:
        source: What to submit.
        options: Arguments of ``submit`` that differ from the batch's.
        folder: What ``{folder}`` in the layout stands for, such as ``"disc 1"``.
    """

    source: AudioSource
    options: dict[str, Any] = attrs.field(factory=dict)
    folder: str = ""


Sources = Iterable[AudioSource | Item] | AsyncIterable[AudioSource | Item]


class Session(Protocol):
    """What a batch needs of a session."""

    @property
    def submit(self) -> Callable[..., ExtractionJob]:
        """Submits a track."""

    @property
    def announce(self) -> Callable[..., None]:
        """Says where a job's stems are to be before it has ended."""

    async def room_for_another(self) -> None:
        """Wait until the line is short enough for one more track."""

    def standing_idle(self) -> AbstractContextManager[None]:
        """Do not hold up a session that drains."""

    def run_errand(self, errand: Callable[[], Awaitable[None]]) -> None:
        """Run something in the session's task group."""


class Batch:
    """Takes tracks as slots come free, and hands out their outcomes as they finish.

    Args:
        session: Does the work.
        directory: Where the stems are to lie.
        format: Which files of each stem.
        options: Arguments of ``submit`` for every track.
    """

    def __init__(
        self,
        session: Session,
        directory: Path,
        *,
        format: AudioFormat,  # noqa: A002 - as in download()
        options: dict[str, Any],
    ) -> None:
        self._session = session
        self._directory = directory
        self._format = format
        self._options = options
        self._room = anyio.Semaphore(MOST_AT_ONCE)
        self._jobs: set[ExtractionJob] = set()
        self._left = False
        self._broken: Exception | None = None

    async def outcomes(self, sources: Sources) -> AsyncIterator[Outcome]:
        """Yield one outcome for each track, in order of finishing.

        Leaving the loop early lets go of the tracks that are on their way. What the sources
        themselves raise is raised here, after the outcomes of the tracks before it.
        """
        send, receive = anyio.create_memory_object_stream[Outcome](math.inf)
        self._session.run_errand(partial(self._feed, sources, send))
        try:
            with receive:
                async for outcome in receive:
                    yield outcome
                    self._room.release()
        finally:
            self._left = True
            self._room.release()
            for job in tuple(self._jobs):
                job.cancel()
        if self._broken is not None:
            raise self._broken

    async def _feed(self, sources: Sources, send: MemoryObjectSendStream[Outcome]) -> None:
        with send:
            async with anyio.create_task_group() as tracks:
                try:
                    async with aclosing(_each(sources)) as each:
                        async for source in each:
                            await self._take_room()
                            await self._session.room_for_another()
                            if self._left:
                                return
                            tracks.start_soon(self._track, source, send)
                except anyio.get_cancelled_exc_class():
                    self._broken = SessionClosedError(
                        "The session was closed before the batch's end."
                    )
                    raise
                except Exception as error:  # noqa: BLE001 - the caller's iterable's own, raised to him
                    self._broken = error

    async def _take_room(self) -> None:
        try:
            self._room.acquire_nowait()
        except anyio.WouldBlock:
            with self._session.standing_idle():
                await self._room.acquire()

    async def _track(
        self, source: AudioSource | Item, send: MemoryObjectSendStream[Outcome]
    ) -> None:
        if self._left:
            return
        outcome = await self._outcome(source if isinstance(source, Item) else Item(source=source))
        with suppress(anyio.BrokenResourceError):  # the loop was left
            send.send_nowait(outcome)

    async def _outcome(self, item: Item) -> Outcome:
        outcome = Outcome(source=item.source)
        try:
            job = self._session.submit(item.source, **{**self._options, **item.options})
        except MusicGPTError as error:
            return attrs.evolve(outcome, error=error)
        except Exception as error:  # noqa: BLE001 - one track's failure is never the batch's
            refusal = InvalidOptionError(
                f"{str(item.source)[:200]} cannot be submitted: {error!r}."
            )
            return attrs.evolve(outcome, error=refusal)
        outcome = attrs.evolve(outcome, job=job)
        self._jobs.add(job)
        self._session.announce(job, self._directory, self._format, item.folder)
        try:
            files = await job.download(self._directory, format=self._format)
        except MusicGPTError as error:
            return attrs.evolve(outcome, error=error)
        finally:
            self._jobs.discard(job)
        return attrs.evolve(outcome, files=files)


async def _each(sources: Sources) -> AsyncGenerator[AudioSource | Item, None]:
    if isinstance(sources, AsyncIterable):
        async for source in sources:
            yield source
    else:
        for source in sources:
            yield source
