"""ExtractionJob: a handle on one job that moves by itself.

It knows no session: whoever moves it calls :meth:`ExtractionJob.advance`, and what users ask of it
that needs the network goes to its :class:`Owner`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Generator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload

import anyio
import attrs

from musicgpt_async._rules import lifecycle
from musicgpt_async._rules.formats import DEFAULT_FORMAT, check_format
from musicgpt_async._rules.lifecycle import Change
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
    Failed,
    Queued,
    Reader,
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


class Owner(Protocol):
    """What moves a job, as the job sees it."""

    def check_loop(self) -> None:
        """Refuse to be used in another event loop than the owner's."""

    def release(self, job: ExtractionJob) -> None:
        """Let go of a job."""

    def call_soon(self, callback: Callback, job: ExtractionJob) -> None:
        """Call a done callback in the loop, not inside the change that caused it."""

    def reader(self, job_id: str) -> Reader:
        """Return a stream of the job's events."""

    async def download(
        self,
        job: ExtractionJob,
        directory: Path,
        *,
        stems: Collection[str] | None,
        format: AudioFormat,  # noqa: A002 - as in download()
    ) -> Files:
        """Bring a finished job's files to a directory: stem → format → path."""


@attrs.define(eq=False, repr=False)
class ExtractionJob:
    """A job on its way, or at its end.

    Many may await it; cancelling one of them never hurts the job or the others. It ends with nobody
    awaiting, and each raise is a fresh exception.

    Attributes:
        source: What was submitted, as it was given; ``None`` for an attached task.
        title: The track's name in files and messages.
        deadline: Seconds from acceptance in which it has to finish, ``None`` for no end.
        id: The library's own name for the job, the same in journals and events.
    """

    _record: JobRecord
    source: Any
    title: str
    _owner: Owner
    deadline: float | None
    _outcome: Extraction | MusicGPTError | None = None
    _changed: anyio.Event | None = None
    _callbacks: list[Callback] | None = None
    # What the parts that move the job keep with it.
    place: int = 0
    """Where it stands in the session's line; for whoever moves the job."""
    holds_slot: bool = False
    """Whether it counts against the account's limit; for whoever moves the job."""
    id: str = attrs.field(init=False)
    _fetch_end: Downloaded | Failed | None = None
    _downloads: int = 0
    _readers: list[Reader] | None = None

    def __attrs_post_init__(self) -> None:
        # The record of another job may be taken up: what the caller knows it by stays.
        self.id = self._record.id

    def __repr__(self) -> str:
        task = f" task_id={self.task_id}" if self.task_id else ""
        return f"<ExtractionJob {self.title!r} {self.state}{task}>"

    @property
    def task_id(self) -> str | None:
        """The vendor's name for the job, ``None`` until it is accepted."""
        return self._record.task_id

    @property
    def conversion_id(self) -> str | None:
        """The vendor's name for the conversion, ``None`` until it is accepted."""
        return self._record.conversion_id

    @property
    def state(self) -> JobState:
        """Where the job stands."""
        return self._record.state

    @property
    def eta(self) -> float | None:
        """Seconds from acceptance that the vendor expects to need, ``None`` while unknown."""
        return self._record.eta

    @property
    def credit_estimate(self) -> float | None:
        """Credits that the vendor expects to charge, ``None`` while unknown."""
        return self._record.credit_estimate

    @property
    def label(self) -> str | None:
        """The caller's name for the track."""
        return self._record.label

    @property
    def stems(self) -> tuple[str, ...]:
        """The stems that were asked for; empty means the vendor's own four."""
        return self._record.stems

    @property
    def record(self) -> JobRecord:
        """All that has to be remembered of the job."""
        return self._record

    def done(self) -> bool:
        """Return whether the job has ended, well or not."""
        return self._outcome is not None

    def result(self) -> Extraction:
        """Return the finished extraction.

        Raises:
            NotFinishedError: The job has not ended yet.
            MusicGPTError: The error that it ended in, a fresh one each time.
        """
        if self._outcome is None:
            raise NotFinishedError(
                f"{self.title} is still {self.state}; await the job first.", job=self
            )
        if isinstance(self._outcome, MusicGPTError):
            raise self._outcome.fresh()
        return self._outcome

    def exception(self) -> MusicGPTError | None:
        """Return a fresh copy of the error that the job ended in, ``None`` if it ended well.

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
            DeadlineError: The time is over; the job goes on and may be awaited again.
            MusicGPTError: The error that the job ended in.
        """
        with anyio.move_on_after(timeout):
            while self._outcome is None:
                await self._change()
        if self._outcome is None:
            raise DeadlineError(
                f"{self.title} is still {self.state} after {timeout:g} s; it goes on, and may be "
                "awaited again.",
                task_id=self.task_id,
                job=self,
            )
        return self.result()

    async def accepted(self) -> Acceptance:
        """Wait until the vendor has accepted the job, and return its answer.

        It is money spent from then on.

        Raises:
            MusicGPTError: The job ended before that.
        """
        while self._record.task_id is None:
            if self.done():
                self.result()
            await self._change()
        return Acceptance(
            task_id=self._record.task_id,
            conversion_id=self.conversion_id,
            eta=self.eta,
            credit_estimate=self.credit_estimate,
        )

    def cancel(self) -> bool:
        """Let go of the job: it ends in a ReleasedError here.

        What was not handed over yet is never sent. The API has no call that stops a job, so what
        was accepted goes on at the vendor: ``session.attach(task_id)`` takes it up again.

        Returns:
            Whether there was anything to let go of.
        """
        if self.done():
            return False
        self._owner.release(self)
        return True

    def add_done_callback(self, callback: Callback) -> None:
        """Call ``callback(job)`` in the event loop once the job has ended.

        An error that it raises goes to the loop's exception handler, and hurts nothing else.
        """
        if self.done():
            self._owner.call_soon(callback, self)
        else:
            self._callbacks = [*(self._callbacks or ()), callback]

    def remove_done_callback(self, callback: Callback) -> int:
        """Take a callback back; return how many times it was there."""
        before = self._callbacks or []
        self._callbacks = [each for each in before if each != callback]
        return len(before) - len(self._callbacks)

    async def events(self) -> AsyncIterator[Event]:
        """Yield what happens to the job, from where it stands now to its end.

        The end is ``Failed``; ``Completed`` where no download is asked for by then; else
        ``Downloaded``, unless that download is broken off.
        """
        reader = self._owner.reader(self.id)
        event: Event | None = self._present()
        self._readers = [*(self._readers or ()), reader]
        try:
            while event is not None:
                yield event
                if self._ends(event):
                    return
                event = await anext(reader, None)
        finally:
            self._readers = [each for each in self._readers or () if each is not reader] or None
            await reader.aclose()

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
        """Wait for the end, then bring the stems down in parallel.

        Files are named ``<track> - <stem>.<ext>``; each is whole or absent.

        Args:
            directory: Made where it does not exist.
            stems: Which of the stems; all that the vendor made by default.
            format: ``"best"`` for the WAV if the vendor has it, else the MP3, as the ending of the
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
        self.begin_download()
        try:
            await self.wait()
            files = await self._owner.download(self, Path(directory), stems=names, format=format)
        finally:
            self.end_download()
        if format == "both":
            return files
        return {stem: path for stem, paths in files.items() for path in paths.values()}

    def advance(
        self, change: Change, *, outcome: Extraction | MusicGPTError | None = None, **facts: Any
    ) -> None:
        """Change the state; for whoever moves the job.

        Args:
            change: What happened; the table in ``lifecycle`` says what follows.
            outcome: How the job ended, where the change ends it.
            facts: What became known with it: attributes of the record.
        """
        state = lifecycle.after(self.state, change)
        self._record = attrs.evolve(self._record, state=state, **facts)
        if outcome is not None:
            self._outcome = outcome
        self._tell()

    def take_up(self, record: JobRecord) -> None:
        """Become the job that a record remembers, before it goes on; for whoever moves the job."""
        self._record = attrs.evolve(record, state=JobState.QUEUED)

    def note(self, **facts: Any) -> None:
        """Remember what became known without a change of state; for whoever moves the job."""
        self._record = attrs.evolve(self._record, **facts)

    def note_fetch(self, end: Downloaded | Failed | None) -> None:
        """Remember how the last download ended, ``None`` while one is under way; for its mover."""
        self._fetch_end = end

    def begin_download(self) -> None:
        """Remember that a download is asked for, with which `events` end; for its mover."""
        self._downloads += 1

    def end_download(self) -> None:
        """Forget a download that was asked for; one that was broken off has no event of its own."""
        self._downloads -= 1
        if self.done() and self._fetch_end is None and not self._downloads:
            for reader in self._readers or ():
                reader.end()

    def event(self, kind: type[_Event], **facts: Any) -> _Event:
        """Return an event of this job."""
        return kind(job_id=self.id, track=self.title, task_id=self.task_id, **facts)

    def _tell(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()
        if self.done():
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks or ():
                self._owner.call_soon(callback, self)

    async def _change(self) -> None:
        self._owner.check_loop()
        # Made when somebody waits: of ten thousand handles most are never awaited one by one.
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _present(self) -> Event:
        """Return the event that tells where the job stands."""
        if self._fetch_end is not None:
            return self._fetch_end
        if isinstance(self._outcome, Extraction):
            return self.event(Completed, extraction=self._outcome)
        if self._outcome is not None:
            return self.event(Failed, error=self._outcome.fresh())
        if self.task_id is not None:
            return self.event(Accepted, eta=self.eta, credit_estimate=self.credit_estimate)
        return self.event(Queued)

    def _ends(self, event: Event) -> bool:
        if isinstance(event, Completed):
            return self._fetch_end is None and not self._downloads
        return isinstance(event, (Failed, Downloaded))


def extraction_of(record: JobRecord) -> Extraction:
    """Return the finished job that a record remembers."""
    return Extraction(
        task_id=record.task_id or "",
        conversion_id=record.conversion_id,
        stems=record.links,
        cost=record.cost,
        duration=record.duration,
    )
