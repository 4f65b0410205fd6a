"""ExtractionJob: a read-only handle on one job, which advances by itself.

It shows what the session knows of the job. What its user asks for, other than to wait, goes to the
session: see :class:`JobRuntime`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Generator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload

import anyio
import attrs

from musicgpt_async._rules.formats import DEFAULT_FORMAT, check_format
from musicgpt_async._rules.lifecycle import TERMINAL
from musicgpt_async.errors import (
    DeadlineError,
    MusicGPTError,
    NotFinishedError,
)
from musicgpt_async.events import (
    Accepted,
    Completed,
    Downloaded,
    Event,
    EventStream,
    Failed,
    Queued,
)
from musicgpt_async.models import (
    Acceptance,
    AudioFormat,
    Extraction,
    JobRecord,
    JobState,
    Stem,
)

Callback = Callable[["ExtractionJob"], object]
Files = dict[str, dict[str, Path]]
_Event = TypeVar("_Event", bound=Event)


class JobRuntime(Protocol):
    """What a handle asks of its session."""

    def check_loop(self) -> None:
        """Refuse to be used in another event loop than the session's."""

    def detach(self, job: Any) -> None:
        """Stop following a job."""

    def call_soon(self, callback: Callback, handle: Any) -> None:
        """Call a done callback in the loop, not inside the change that caused it."""

    def event_stream(self, job_id: str) -> EventStream:
        """Return a stream of the job's events."""

    def begin_download(self, job: Any) -> None:
        """Remember that a download is asked for, with which `events` end."""

    def end_download(self, job: Any) -> None:
        """Forget a download that was asked for."""

    async def download(
        self,
        job: Any,
        directory: Path,
        *,
        stems: Collection[str] | None,
        format: AudioFormat,  # noqa: A002 - as in download()
    ) -> Files:
        """Download a finished job's files to a directory: stem → format → path."""


class FollowedJob(Protocol):
    """What a handle shows: a job as the session follows it."""

    id: str
    record: JobRecord
    title: str
    source: Any
    deadline: float | None
    outcome: Extraction | MusicGPTError | None

    def make_event(self, kind: type[_Event], **facts: Any) -> _Event:
        """Return an event of the job."""

    def downloads(self) -> Any:
        """Return what is known of its downloads."""

    def add_callback(self, callback: Callback) -> None:
        """Have a callback called at its end."""

    def remove_callback(self, callback: Callback) -> int:
        """Remove a callback; return how many times it was there."""

    async def wait_changed(self) -> None:
        """Wait for the next change of its state."""


@attrs.define(eq=False, repr=False)
class ExtractionJob:
    """A job that runs in the background, or has ended.

    Any number of tasks may await it; cancelling one of them never affects the job or the others. It
    advances without being awaited, and each raise is a new exception.
    """

    _job: FollowedJob
    _runtime: JobRuntime

    def __repr__(self) -> str:
        task = f" task_id={self.task_id}" if self.task_id else ""
        return f"<ExtractionJob {self.title!r} {self.state}{task}>"

    @property
    def id(self) -> str:
        """The library's own id of the job, the same in journals and events."""
        return self._job.id

    @property
    def source(self) -> Any:
        """What was submitted, as it was given; ``None`` for an attached task."""
        return self._job.source

    @property
    def title(self) -> str:
        """The track's name in files and messages."""
        return self._job.title

    @property
    def deadline(self) -> float | None:
        """Seconds from acceptance in which it has to finish, ``None`` for no end."""
        return self._job.deadline

    @property
    def task_id(self) -> str | None:
        """MusicGPT's id of the task, ``None`` until it is accepted."""
        return self._job.record.task_id

    @property
    def conversion_id(self) -> str | None:
        """MusicGPT's id of the conversion, ``None`` until it is accepted."""
        return self._job.record.conversion_id

    @property
    def state(self) -> JobState:
        """The state of the job."""
        state = self._job.record.state
        if self.done() and state not in TERMINAL:
            return JobState.DETACHED  # its record is unchanged, so that it can be resumed
        return state

    @property
    def eta(self) -> float | None:
        """Seconds from acceptance that MusicGPT expects to need, ``None`` while unknown."""
        return self._job.record.eta

    @property
    def credit_estimate(self) -> float | None:
        """Credits that MusicGPT expects to charge, ``None`` while unknown."""
        return self._job.record.credit_estimate

    @property
    def label(self) -> str | None:
        """The caller's name for the track."""
        return self._job.record.label

    @property
    def stems(self) -> tuple[str, ...]:
        """The requested stems; empty means MusicGPT's default four."""
        return self._job.record.stems

    def done(self) -> bool:
        """Return whether the job has ended, successfully or not."""
        return self._job.outcome is not None

    def result(self) -> Extraction:
        """Return the finished extraction.

        Raises:
            NotFinishedError: The job has not ended yet.
            MusicGPTError: The error that the job ended in; a new exception each time.
        """
        if self._job.outcome is None:
            raise NotFinishedError(
                f"{self.title} is still {self.state}; await the job first.", job=self
            )
        if isinstance(self._job.outcome, MusicGPTError):
            raise self._job.outcome.copy()
        return self._job.outcome

    def exception(self) -> MusicGPTError | None:
        """Return a new copy of the error that the job ended in, ``None`` if it succeeded.

        Raises:
            NotFinishedError: The job has not ended yet.
        """
        try:
            self.result()
        except NotFinishedError:
            raise
        except MusicGPTError as error:
            return error.with_traceback(None)
        return None

    def __await__(self) -> Generator[Any, Any, Extraction]:
        return self.wait().__await__()

    async def wait(self, timeout: float | None = None) -> Extraction:  # noqa: ASYNC109 - of the wait
        """Wait for the end, for at most ``timeout`` seconds, and return the extraction.

        Raises:
            DeadlineError: The timeout expired; the job continues and may be awaited again.
            MusicGPTError: The error that the job ended in.
        """
        with anyio.move_on_after(timeout):
            while self._job.outcome is None:
                await self._wait_changed()
        if self._job.outcome is None:
            raise DeadlineError(
                f"{self.title} is still {self.state} after {timeout:g} s; it continues, and may be "
                "awaited again.",
                task_id=self.task_id,
                job=self,
            )
        return self.result()

    async def accepted(self) -> Acceptance:
        """Wait until MusicGPT has accepted the job, and return its response.

        From then on the job costs credits.

        Raises:
            MusicGPTError: The job ended before that.
        """
        while self._job.record.task_id is None:
            if self.done():
                self.result()
            await self._wait_changed()
        return Acceptance(
            task_id=self._job.record.task_id,
            conversion_id=self.conversion_id,
            eta=self.eta,
            credit_estimate=self.credit_estimate,
        )

    def cancel(self) -> bool:
        """Detach the job: its handle ends in a JobDetachedError.

        A track that was not delivered yet is never sent. The API has no call that stops a job, so
        an accepted one continues at MusicGPT: ``session.attach(task_id)`` follows it again.

        Returns:
            False if the job had ended already.
        """
        if self.done():
            return False
        self._runtime.detach(self._job)
        return True

    def add_done_callback(self, callback: Callback) -> None:
        """Call ``callback(job)`` in the event loop once the job has ended.

        An error that it raises goes to the loop's exception handler and affects nothing else.
        """
        if self.done():
            self._runtime.call_soon(callback, self)
        else:
            self._job.add_callback(callback)

    def remove_done_callback(self, callback: Callback) -> int:
        """Remove a callback; return how many times it had been added."""
        return self._job.remove_callback(callback)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events of the job, from its present state to its end.

        The last event is ``Failed``, ``Completed`` if no download was requested by then, or else
        ``Downloaded``, unless that download is cancelled.
        """
        stream = self._runtime.event_stream(self.id)
        streams: list[EventStream] = self._job.downloads().streams
        event: Event | None = self._current_event()
        streams.append(stream)
        try:
            while event is not None:
                yield event
                if self._is_final(event):
                    return
                event = await anext(stream, None)
        finally:
            streams.remove(stream)
            await stream.aclose()

    @overload
    async def download(
        self,
        directory: str | Path,
        *,
        stems: Collection[str | Stem] | None = None,
        format: Literal["best", "wav", "mp3"] = "best",
    ) -> dict[str, Path]: ...

    @overload
    async def download(
        self,
        directory: str | Path,
        *,
        stems: Collection[str | Stem] | None = None,
        format: Literal["both"],
    ) -> Files: ...

    async def download(
        self,
        directory: str | Path,
        *,
        stems: Collection[str | Stem] | None = None,
        format: AudioFormat = DEFAULT_FORMAT,  # noqa: A002 - the word that users look for
    ) -> dict[str, Path] | Files:
        """Wait for the end, then download the stems in parallel.

        Files are named ``<track> - <stem>.<ext>``; each is complete or absent.

        Args:
            directory: Output directory, created if it does not exist.
            stems: Which of the stems; all by default.
            format: ``"best"`` for the WAV if MusicGPT has it, else the MP3, as the ending of the
                path says; ``"both"`` for whatever there is; ``"wav"`` or ``"mp3"`` for that alone.

        Returns:
            Stem name → path; with ``"both"``, stem name → ``{"wav": path, "mp3": path}``.

        Raises:
            InvalidOptionError: There is no such format, or the job has no such stem.
            DownloadError: A file did not arrive whole.
            MusicGPTError: The error that the job ended in.
        """
        check_format(format)
        names = None if stems is None else [str(stem) for stem in stems]
        self._runtime.begin_download(self._job)
        try:
            await self.wait()
            files = await self._runtime.download(
                self._job, Path(directory), stems=names, format=format
            )
        finally:
            self._runtime.end_download(self._job)
        if format == "both":
            return files
        return {stem: path for stem, paths in files.items() for path in paths.values()}

    async def _wait_changed(self) -> None:
        self._runtime.check_loop()
        await self._job.wait_changed()

    def _current_event(self) -> Event:
        """Return the event that says what has become of the job so far."""
        job, end = self._job, self._job.downloads().end
        if end is not None:
            last: Event = end
            return last
        if isinstance(job.outcome, Extraction):
            return job.make_event(Completed, extraction=job.outcome)
        if job.outcome is not None:
            return job.make_event(Failed, error=job.outcome.copy())
        if self.task_id is not None:
            return job.make_event(Accepted, eta=self.eta, credit_estimate=self.credit_estimate)
        return job.make_event(Queued)

    def _is_final(self, event: Event) -> bool:
        if isinstance(event, Completed):
            downloads = self._job.downloads()
            return downloads.end is None and not downloads.requested
        return isinstance(event, (Failed, Downloaded))
