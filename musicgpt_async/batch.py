"""Many tracks, one outcome each."""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
)
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import attrs

from musicgpt_async._engine.runtime import Runtime
from musicgpt_async._engine.supervision import as_error, run_child
from musicgpt_async._io.sources import AudioSource
from musicgpt_async.errors import InvalidOptionError, MusicGPTError, SessionClosedError
from musicgpt_async.job import ExtractionJob, Files
from musicgpt_async.models import AudioFormat, Extraction

if TYPE_CHECKING:  # anyio loads it when the first batch asks for a stream
    from anyio.streams.memory import MemoryObjectSendStream

# Tracks taken from the sources at once: enough to keep every slot and every download busy.
MAX_IN_FLIGHT = 64


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one track.

    Attributes:
        source: As it was given.
        job: The handle, ``None`` if the track was refused before it was submitted.
        files: What ``download`` returned: stem → path, or stem → format → path.
        error: Why it failed; ``None`` if it succeeded.
    """

    source: Any
    job: ExtractionJob | None = None
    files: dict[str, Path] | Files = attrs.field(factory=dict)
    error: MusicGPTError | None = None

    @property
    def ok(self) -> bool:
        """Whether every requested stem is on disk."""
        return self.error is None

    @property
    def extraction(self) -> Extraction | None:
        """The finished extraction, ``None`` if the track did not finish."""
        if self.job is None or not self.job.done() or self.job.exception() is not None:
            return None
        return self.job.result()


@attrs.frozen(kw_only=True)
class BatchItem:
    """One track of a batch with options of its own.

    Attributes:
        source: What to submit.
        options: Arguments of ``submit`` that differ from the batch's.
        folder: The value of ``{folder}`` in the layout, such as ``"disc 1"``.
    """

    source: AudioSource
    options: dict[str, Any] = attrs.field(factory=dict)
    folder: str = ""


BatchSources = Iterable[AudioSource | BatchItem] | AsyncIterable[AudioSource | BatchItem]


class Batch:
    """Submits tracks as slots become free, and yields their outcomes as they finish.

    Args:
        runtime: The session's.
        submit: Submits a track.
        directory: Where the stems go.
        format: Which files of each stem.
    """

    def __init__(
        self,
        runtime: Runtime,
        submit: Callable[..., ExtractionJob],
        directory: Path,
        *,
        format: AudioFormat,  # noqa: A002 - as in download()
    ) -> None:
        self._runtime = runtime
        self._submit = submit
        self._directory = directory
        self._format = format
        self._capacity = anyio.Semaphore(MAX_IN_FLIGHT)
        self._jobs: set[ExtractionJob] = set()
        self._scope = anyio.CancelScope()
        self._started = self._yielded = 0
        self._source_error: Exception | None = None

    async def outcomes(self, sources: BatchSources) -> AsyncIterator[Outcome]:
        """Yield one outcome for each track, in order of finishing.

        Leaving the loop early detaches the tracks in flight, and takes nothing more from the
        sources. An error of the sources is raised here, after the outcomes of the tracks before it.
        """
        send, receive = anyio.create_memory_object_stream[Outcome](math.inf)
        self._runtime.start_background_task(
            partial(self._submit_all, sources, send), on_failure=self._on_failure
        )
        try:
            with receive:
                async for outcome in receive:
                    self._yielded += 1
                    yield outcome
                    self._capacity.release()
        finally:
            self._scope.cancel()
            for job in tuple(self._jobs):
                job.cancel()
        if self._source_error is not None:
            raise self._source_error
        if self._yielded != self._started:
            raise SessionClosedError(
                f"The session was closed before the batch's end: {self._yielded} of "
                f"{self._started} tracks that were begun have an outcome."
            )

    def _on_failure(self, error: Exception) -> None:
        """Have the iterator of the outcomes raise an error at its end."""
        self._source_error = self._source_error or error

    async def _submit_all(
        self, sources: BatchSources, send: MemoryObjectSendStream[Outcome]
    ) -> None:
        with send:
            try:
                with self._scope:
                    async with anyio.create_task_group() as tracks:
                        await self._iterate(sources, tracks, send)
            except anyio.get_cancelled_exc_class():
                closed = SessionClosedError("The session was closed before the batch's end.")
                self._on_failure(closed)
                raise

    async def _iterate(
        self,
        sources: BatchSources,
        tracks: anyio.abc.TaskGroup,
        send: MemoryObjectSendStream[Outcome],
    ) -> None:
        try:
            async with aclosing(_iterate_sources(sources)) as each:
                async for source in each:
                    await self._acquire()
                    await self._runtime.wait_for_space()
                    self._started += 1
                    item = source if isinstance(source, BatchItem) else BatchItem(source=source)
                    on_failure = partial(self._on_track_failure, item, send)
                    tracks.start_soon(run_child, self._process, (item, send), on_failure)
        except BaseException as error:  # noqa: BLE001 - as_error raises again what is no failure
            # The tracks that were begun continue, and their outcomes come first.
            self._on_failure(as_error(error))

    async def _acquire(self) -> None:
        try:
            self._capacity.acquire_nowait()
        except anyio.WouldBlock:
            with self._runtime.exclude_from_drain():
                await self._capacity.acquire()

    def _on_track_failure(
        self, item: BatchItem, send: MemoryObjectSendStream[Outcome], error: Exception
    ) -> None:
        """Make an error of a track the outcome of that track, never of the batch."""
        if not isinstance(error, MusicGPTError):
            words = f"{str(item.source)[:200]} was not extracted: {error!r}."
            error = InvalidOptionError(words)
        _send(send, Outcome(source=item.source, error=error))

    async def _process(self, item: BatchItem, send: MemoryObjectSendStream[Outcome]) -> None:
        try:
            job = self._submit(item.source, **item.options)
        except MusicGPTError:
            raise
        except Exception as error:
            words = f"{str(item.source)[:200]} cannot be submitted: {error!r}."
            raise InvalidOptionError(words) from error
        self._jobs.add(job)
        outcome = Outcome(source=item.source, job=job)
        try:
            self._runtime.set_output(job, self._directory, self._format, item.folder)
            files = await job.download(self._directory, format=self._format)
            outcome = attrs.evolve(outcome, files=files)
        except BaseException as error:  # noqa: BLE001 - as_error raises again what is no failure
            outcome = attrs.evolve(outcome, error=_as_library_error(as_error(error), job))
        finally:
            self._jobs.discard(job)
        _send(send, outcome)


def _send(send: MemoryObjectSendStream[Outcome], outcome: Outcome) -> None:
    with suppress(anyio.BrokenResourceError):  # the loop was left
        send.send_nowait(outcome)


def _as_library_error(error: Exception, job: ExtractionJob) -> MusicGPTError:
    if isinstance(error, MusicGPTError):
        return error
    return MusicGPTError(f"{job.title} was not downloaded: {error!r}.", job=job)


async def _iterate_sources(sources: BatchSources) -> AsyncGenerator[AudioSource | BatchItem, None]:
    if isinstance(sources, AsyncIterable):
        async for source in sources:
            yield source
    else:
        for source in sources:
            yield source
