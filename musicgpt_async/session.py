"""MusicGPTSession: the one place where the parts meet; it owns the task group."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import anyio
import anyio.to_thread
import attrs

from musicgpt_async import batch
from musicgpt_async._io import receiving
from musicgpt_async._io.download import Downloader
from musicgpt_async._io.http import Transport
from musicgpt_async._io.sources import AudioSource, track_of
from musicgpt_async._rules import hosts, lifecycle, names, plans, protocol
from musicgpt_async._rules.credit import Credit
from musicgpt_async._rules.endpoints import DEFAULT_BASE_URL
from musicgpt_async._rules.formats import DEFAULT_FORMAT, check_format
from musicgpt_async._rules.lifecycle import Change
from musicgpt_async._rules.polling import Schedule
from musicgpt_async._rules.slots import Slots
from musicgpt_async._work.desk import Desk
from musicgpt_async._work.fetching import Fetcher
from musicgpt_async._work.ledger import Ledger
from musicgpt_async._work.mailroom import Mailroom
from musicgpt_async._work.resuming import Resumer
from musicgpt_async._work.submitting import Submitter
from musicgpt_async._work.waiting import Watcher
from musicgpt_async.errors import (
    ConfigurationError,
    InvalidOptionError,
    MusicGPTError,
    ReleasedError,
    SessionClosedError,
)
from musicgpt_async.events import Completed, Event, Failed, Feed, Reader
from musicgpt_async.job import Callback, ExtractionJob, Files
from musicgpt_async.journal import Journal
from musicgpt_async.models import (
    AudioFormat,
    Extraction,
    JobRecord,
    JobState,
    Limits,
    Preprocessing,
    Stem,
)
from musicgpt_async.webhooks import WebhookReceiver

_log = logging.getLogger(__name__)

KEY_VARIABLE = "MUSICGPT_API_KEY"
BASE_URL_VARIABLE = "MUSICGPT_BASE_URL"
# Threads that read and write files, apart from the loop's own executor, which looks names up.
FILE_THREADS = 8


class MusicGPTSession:
    """A connection to one MusicGPT account, for any number of jobs.

    Use it as an async context manager, or call :meth:`start` and :meth:`aclose`. Leaving the block
    normally waits for the jobs that still run; leaving it by an exception lets go of them.

    Args:
        api_key: The account's key; by default from ``MUSICGPT_API_KEY``.
        base_url: The API's; by default from ``MUSICGPT_BASE_URL``, else the vendor's own.
        limits: What the account may do; by default what ``MUSICGPT_PLAN`` (``free``, ``plus`` or
            ``pro``) allows, else the session learns it.
        webhooks: The door that the vendor's webhooks come in by; without it jobs are polled.
        journal: The durable record, or the path of one; what was accepted is never forgotten.
        http: The caller's own client session, used for all calls and never closed.
        deadline: Seconds from acceptance in which a job has to finish, ``None`` for no end.
        max_credits: Credits after which nothing more is submitted.
        request_timeout: Seconds without a byte after which one call is given up.
        stall_timeout: Seconds without the vendor taking a byte of an upload.
        downloads: Files on their way down at once.
        layout: Names of the files in a directory, out of ``{track}``, ``{stem}``, ``{ext}`` and
            ``{folder}`` (``Item.folder``; empty for other tracks).

    Raises:
        ConfigurationError: There is no key, or a URL, plan or limit that cannot be used.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        limits: Limits | None = None,
        webhooks: WebhookReceiver | None = None,
        journal: Journal | str | os.PathLike[str] | None = None,
        http: aiohttp.ClientSession | None = None,
        deadline: float | None = 3600.0,
        max_credits: float | None = None,
        request_timeout: float = 60.0,
        stall_timeout: float = 60.0,
        downloads: int = 8,
        layout: str = names.DEFAULT_TEMPLATE,
    ) -> None:
        url = hosts.checked_base_url(
            base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
        )
        if limits is None:
            limits = plans.limits_of(plans.check_plan(os.environ.get(plans.PLAN_VARIABLE)))
        on_loopback = hosts.is_loopback(url)
        self._deadline = deadline
        self._layout = names.checked_template(layout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host: asyncio.Task[None] | None = None
        self._closed = False
        self._closing = anyio.Lock()
        self._count = 0
        self._jobs: set[ExtractionJob] = set()
        self._errands = 0
        self._executor = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="musicgpt-files")
        self._feed = Feed()
        self._http = Transport(
            _checked_key(api_key or os.environ.get(KEY_VARIABLE)),
            http=http,
            request_timeout=request_timeout,
            downloads=_checked_downloads(downloads),
            allows=lambda address: (
                hosts.is_public(address) or (on_loopback and hosts.is_loopback_address(address))
            ),
        )
        self._journal = Journal(journal) if isinstance(journal, (str, os.PathLike)) else journal
        self._ledger = Ledger(self._journal, lost=self._lost)
        self._mail = Mailroom(webhooks, wake=self._wake, keep=self._ledger.keep, feed=self._feed)
        desk = Desk(
            base_url=url,
            http=self._http,
            executor=self._executor,
            feed=self._feed,
            ledger=self._ledger,
            mail=self._mail,
            end=self._end,
        )
        self._watcher = Watcher(
            desk,
            Schedule(
                polls_per_minute=None if limits is None else limits.polls_per_minute,
                reliability=None if webhooks is None else webhooks.inbox.reliability,
            ),
        )
        self._slots = Slots(parallel=None if limits is None else limits.parallel)
        self._credit = Credit(max_credits)
        self._submitter = Submitter(
            desk,
            slots=self._slots,
            credit=self._credit,
            watcher=self._watcher,
            known=self._known,
            stall_timeout=stall_timeout,
        )
        self._resumer = Resumer(
            desk, submitter=self._submitter, watcher=self._watcher, handle=self._handle_of
        )
        self._fetcher = Fetcher(
            desk,
            watcher=self._watcher,
            downloader=Downloader(
                fetch=self._http.fetch,
                executor=self._executor,
                allow_loopback=on_loopback,
                digests=self._journal is not None,
                receive=partial(receiving.pieces, patience=request_timeout),
            ),
            template=self._layout,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._host else "not started"
        return f"<MusicGPTSession {state}, {len(self._jobs)} jobs>"

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose(drain=error is None)

    async def start(self) -> Self:
        """Open the session in the loop that runs now.

        Raises:
            ConfigurationError: It was started before, or ``http`` is closed.
            JournalError: The journal cannot be used.
        """
        if self._host is not None or self._closed:
            raise ConfigurationError("A session is started once; make another one.")
        self._loop = asyncio.get_running_loop()
        self._leaving, self._ready, self._idle = anyio.Event(), anyio.Event(), anyio.Event()
        self._http.open()
        try:
            if self._journal is not None:
                await self._journal.open()
        except BaseException:
            await self._http.close()
            raise
        # A task of its own: a service may start a session in one task and close it in another.
        self._host = asyncio.create_task(self._live(), name="musicgpt-async session")
        try:
            await self._ready.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose(drain=False)
            raise
        return self

    async def aclose(self, *, drain: bool = True) -> None:
        """Close the session.

        Args:
            drain: Whether to wait for the jobs that still run, or to let go of them.
        """
        if self._host is None:
            self._closed = True
            return
        try:
            if drain:
                await self._drained()
        finally:
            with anyio.CancelScope(shield=True):
                async with self._closing:
                    if not self._closed:
                        await self._shut_down()

    def submit(
        self,
        source: AudioSource,
        *,
        stems: Iterable[str | Stem] = (),
        preprocessing: Iterable[str | Preprocessing] = (),
        eco_mode: bool = False,
        label: str | None = None,
        force: bool = False,
    ) -> ExtractionJob:
        """Submit a track and return its handle at once.

        Args:
            source: A path, an http(s) URL that MusicGPT fetches, bytes, anything with ``read()``
                (file objects, uploads, aiofiles handles) or an async iterable of bytes; the last
                three may come with a name: ``(name, source)``.
            stems: Which parts; the vendor makes drums, bass, piano and guitar by default.
            preprocessing: What to do to the track before it is split.
            eco_mode: Whether to ask for MusicGPT's faster parallel separation. The first generation
                of the API does not know it (MusicGPT docs, Extraction).
            label: The track's name in files and messages; its file name by default.
            force: Whether to submit it even if the journal has the same track already.

        Raises:
            InvalidOptionError: A stem, an option or the source is nothing that can be sent.
            SessionClosedError: The session is not open.
        """
        self.check_loop()
        track = track_of(source, label=label)
        record = JobRecord(
            id=uuid.uuid4().hex,
            fingerprint="",
            source=track.location,
            label=label,
            stems=protocol.checked_names(stems, Stem, "stem"),
            preprocessing=protocol.checked_names(preprocessing, Preprocessing, "option"),
            eco_mode=protocol.check_flag(eco_mode, "eco_mode"),
            created_at=time.time(),
        )
        job = self._handle(record, source, label or track.title)
        self._submitter.enqueue(job, track, force=force)
        return job

    def attach(self, task_id: str) -> ExtractionJob:
        """Return a handle on a job that somebody submitted before.

        Raises:
            SessionClosedError: The session is not open.
        """
        self.check_loop()
        _check_task_id(task_id)
        record = JobRecord(
            id=uuid.uuid4().hex, fingerprint="", source="", task_id=task_id, created_at=time.time()
        )
        job = self._handle(record, None, task_id)
        job.advance(Change.ACCEPT)
        self._submitter.occupy(job)
        self._watcher.watch(job, age=None)
        return job

    async def bind(
        self,
        job_id: str,
        task_id: str,
        *,
        format: AudioFormat | None = None,  # noqa: A002 - as in download()
    ) -> ExtractionJob:
        """Give a job whose answer was lost the task that you found for it, and go on with it.

        A job that ended in a SubmissionUnknownError stands in the journal without a task, and is
        never sent again by itself. Where the vendor's dashboard shows it, this writes down its task
        and takes it up as :meth:`resume` does.

        Args:
            job_id: The journal's name for it: the error says it, and ``musicgpt-async jobs``.
            task_id: The vendor's name for it; the vendor is asked whether it is one.
            format: As in resume().

        Raises:
            ConfigurationError: The session has no journal.
            InvalidOptionError: No such job waits for its task; nothing was changed.
            NotFoundError: The vendor knows no such task; nothing was changed.
            MusicGPTError: The vendor or the journal could not be asked; nothing was changed.
        """
        journal = self._resumable()
        _check_task_id(task_id)
        if self._handle_of(job_id) is not None:
            raise InvalidOptionError(
                f"This session still follows the job {job_id}; let go of its handle first."
            )
        await self._watcher.ask(task_id, ())
        await self._ledger.flush()  # how it ended must not be written after this
        return self._taken_up([await journal.bind(job_id, task_id)], format)[0]

    async def extract(
        self,
        source: AudioSource,
        directory: str | Path,
        *,
        stems: Iterable[str | Stem] = (),
        preprocessing: Iterable[str | Preprocessing] = (),
        eco_mode: bool = False,
        label: str | None = None,
        force: bool = False,
        format: Literal["best", "wav", "mp3"] = "best",  # noqa: A002 - as in download()
    ) -> dict[str, Path]:
        """Submit a track, wait for it and download its stems: see submit() and download()."""
        check_format(format)
        job = self.submit(
            source,
            stems=stems,
            preprocessing=preprocessing,
            eco_mode=eco_mode,
            label=label,
            force=force,
        )
        self.announce(job, Path(directory), format)
        try:
            return await job.download(directory, format=format)
        except BaseException:
            job.cancel()  # nobody else has the handle
            raise

    def extract_many(
        self,
        sources: batch.Sources,
        directory: str | Path,
        *,
        stems: Iterable[str | Stem] = (),
        preprocessing: Iterable[str | Preprocessing] = (),
        eco_mode: bool = False,
        force: bool = False,
        format: AudioFormat = DEFAULT_FORMAT,  # noqa: A002 - as in download()
    ) -> AsyncIterator[batch.Outcome]:
        """Submit, wait for and download many tracks; yield one outcome each, as they finish.

        Sources are taken as slots come free, so that any number of them costs little memory. A
        track's failure is its outcome, never the batch's.

        Args:
            sources: An iterable or async iterable of what submit() takes, or of ``batch.Item``.
            directory: Where the stems are to lie.
            stems: As in submit(), for every track.
            preprocessing: As in submit(), for every track.
            eco_mode: As in submit(), for every track.
            force: As in submit(), for every track.
            format: As in download().

        Raises:
            InvalidOptionError: A stem, option or format name does not exist.
            SessionClosedError: The session is not open.
        """
        self.check_loop()
        check_format(format)
        options = {
            "stems": protocol.checked_names(stems, Stem, "stem"),
            "preprocessing": protocol.checked_names(preprocessing, Preprocessing, "option"),
            "eco_mode": protocol.check_flag(eco_mode, "eco_mode"),
            "force": force,
        }
        return batch.Batch(self, Path(directory), format=format, options=options).outcomes(sources)

    async def resume(
        self,
        *,
        format: AudioFormat | None = None,  # noqa: A002 - as in download()
    ) -> list[ExtractionJob]:
        """Take up the jobs that the journal holds and nobody works on.

        What was accepted is waited for, what was completed and not downloaded is downloaded, what
        was never delivered is submitted. What is unknown is looked for in the account's listing and
        at its webhook; failing both its handle ends in a SubmissionUnknownError.

        Args:
            format: Which files of each stem to download; by default what the journal remembers.

        Returns:
            Their handles, the oldest first.

        Raises:
            ConfigurationError: The session has no journal.
            JournalError: The journal cannot be used.
        """
        if format is not None:
            check_format(format)
        claimed = await self._resumable().claim()
        ours = {job.record.id for job in self._jobs}
        return self._taken_up([each for each in claimed if each.id not in ours], format)

    def _resumable(self) -> Journal:
        self.check_loop()
        if self._journal is None:
            raise ConfigurationError("There is nothing to resume: give the session a journal=.")
        return self._journal

    def _taken_up(
        self,
        records: Iterable[JobRecord],
        format: AudioFormat | None,  # noqa: A002 - as in download()
    ) -> list[ExtractionJob]:
        jobs = []
        for each in records:
            record = attrs.evolve(each, state=JobState.QUEUED, format=format or each.format)
            jobs.append(self._handle(record, None, _title(record)))
        self._resumer.take_up(jobs)
        for job in jobs:
            if job.record.directory is not None:
                job.begin_download()
                self.run_errand(partial(self._finish_download, job))
        return jobs

    def events(self) -> AsyncIterator[Event]:
        """Return what happens to all jobs of the session from now on; it ends with the session."""
        return self._feed.reader()

    @property
    def credits_estimated(self) -> float:
        """Credits that the vendor expects to charge for what this session submitted."""
        return self._credit.estimated

    @property
    def slots(self) -> tuple[int, int]:
        """Slots taken, and how many there are as far as is known."""
        return self._slots.taken, self._slots.limit

    # What jobs and batches ask of their session.

    def check_loop(self) -> None:
        """Refuse to be used when not open, or in another event loop than the session's."""
        if self._host is None or self._closed or self._host.done():
            raise SessionClosedError(
                "The session is not open; use `async with MusicGPTSession() as session:`."
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "The session belongs to another event loop; make one session for each loop."
            )

    def release(self, job: ExtractionJob) -> None:
        """Let go of a job."""
        known = f": session.attach({job.task_id!r}) takes it up again" if job.task_id else ""
        goes_on = job.state in lifecycle.SENT
        words = f"It goes on at the vendor{known}." if goes_on else "It was not submitted."
        self._end(job, Change.RELEASE, ReleasedError(f"{job.title} was let go of. {words}"))

    def call_soon(self, callback: Callback, job: ExtractionJob) -> None:
        """Call a done callback in the session's loop."""
        if self._loop is not None:
            self._loop.call_soon(callback, job)

    def reader(self, job_id: str) -> Reader:
        """Return a stream of one job's events."""
        return self._feed.reader(job_id)

    async def download(
        self,
        job: ExtractionJob,
        directory: Path,
        *,
        stems: Collection[str] | None,
        format: AudioFormat,  # noqa: A002 - as in download()
    ) -> Files:
        """Bring a finished job's files to a directory: stem → format → path."""
        self.check_loop()
        return await self._fetcher.fetch(job, directory, stems=stems, format=format)

    def announce(
        self,
        job: ExtractionJob,
        directory: Path,
        format: AudioFormat,  # noqa: A002 - as in download()
        folder: str = "",
    ) -> None:
        """Say where a job's stems are to be before it has ended."""
        absolute = os.path.abspath(directory)  # noqa: PTH100 - no ".."
        layout = names.with_folder(self._layout, folder)
        job.note(directory=absolute, format=format, layout=layout)
        self._fetcher.reserve(job, Path(absolute), layout=layout)

    async def room_for_another(self) -> None:
        """Wait until the line is short enough for one more track."""
        await self._submitter.room_for_another()

    def run_errand(self, errand: Callable[[], Awaitable[None]]) -> None:
        """Run something in the session's task group; a session that drains waits for it."""
        self.check_loop()
        self._errands += 1
        self._rooms.start_soon(self._run_errand, errand)

    @contextmanager
    def standing_idle(self) -> Iterator[None]:
        """Let a session that drains go while an errand waits for whoever reads its outcomes."""
        self._errands -= 1
        self._idle.set()
        try:
            yield
        finally:
            self._errands += 1

    async def _run_errand(self, errand: Callable[[], Awaitable[None]]) -> None:
        try:
            await errand()
        finally:
            self._errands -= 1
            self._idle.set()

    async def _finish_download(self, job: ExtractionJob) -> None:
        """Bring down what was asked for in an earlier process; its errors are the handle's."""
        record = job.record
        try:
            await job.wait()
            await self._fetcher.fetch(
                job,
                Path(record.directory or "."),
                stems=record.wanted or None,
                format=record.format or DEFAULT_FORMAT,
                layout=record.layout,
            )
        except MusicGPTError as error:
            _log.debug("%s was not downloaded: %s", job.title, error)
        finally:
            job.end_download()

    def _handle_of(self, job_id: str) -> ExtractionJob | None:
        return next((job for job in self._jobs if job.record.id == job_id), None)

    def _handle(self, record: JobRecord, source: Any, title: str) -> ExtractionJob:
        self._count += 1
        job = ExtractionJob(record, source, title, self, self._deadline, place=self._count)
        self._jobs.add(job)
        return job

    def _end(
        self,
        job: ExtractionJob,
        change: Change,
        outcome: Extraction | MusicGPTError,
        **facts: Any,
    ) -> None:
        """End a job, once."""
        if isinstance(outcome, MusicGPTError):
            outcome = outcome.fresh(task_id=outcome.task_id or job.task_id, job=job)
            facts = {**facts, "error": outcome.message}
        self._jobs.discard(job)
        job.advance(change, outcome=outcome, **facts)
        self._submitter.drop(job)
        self._submitter.give_back(job)
        self._watcher.forget(job)
        self._mail.close(job)
        self._ledger.save_soon(job)
        if self._feed:
            self._feed.publish(
                job.event(Failed, error=outcome)
                if isinstance(outcome, MusicGPTError)
                else job.event(Completed, extraction=outcome)
            )
        self._idle.set()

    def _known(self, job: ExtractionJob, record: JobRecord) -> None:
        self._resumer.known(job, record)

    def _wake(self, job: ExtractionJob) -> None:
        self._watcher.delivered(job)

    def _lost(self, job: ExtractionJob) -> None:
        words = f"Another process has taken {job.title} over; it goes on there."
        self._end(job, Change.RELEASE, ReleasedError(words))

    async def _live(self) -> None:
        """Run the rooms until the session is left."""
        try:
            async with anyio.create_task_group() as self._rooms:
                for room in (self._ledger, self._submitter, self._watcher, self._resumer):
                    self._rooms.start_soon(room.run)
                self._ready.set()
                await self._leaving.wait()
                self._rooms.cancel_scope.cancel()
        finally:
            self._ready.set()
            self._let_go_of_all()

    async def _drained(self) -> None:
        """Wait until nothing runs any more; a host that has died says why."""
        while (self._jobs or self._errands) and self._host is not None and not self._host.done():
            if self._idle.is_set():  # never one that another aclose() waits on
                self._idle = anyio.Event()
            await self._idle.wait()

    async def _shut_down(self) -> None:
        self._closed = True
        self._let_go_of_all()
        await self._submitter.last_answers()
        self._leaving.set()
        try:
            if self._host is not None:
                await self._host
        finally:
            await self._ledger.flush()
            self._feed.close()
            await self._http.close()
            if self._journal is not None:
                await self._journal.aclose()
            await anyio.to_thread.run_sync(self._executor.shutdown)

    def _let_go_of_all(self) -> None:
        for job in tuple(self._jobs):
            self._ledger.leave(job)
            self.release(job)


def _checked_downloads(downloads: int) -> int:
    if downloads < 1:
        raise ConfigurationError(
            f"downloads= counts files that come down at once; not {downloads}."
        )
    return downloads


def _checked_key(api_key: str | None) -> str:
    key = (api_key or "").strip()
    if not key:
        raise ConfigurationError(
            f"There is no API key: give MusicGPTSession(api_key=…) or set {KEY_VARIABLE}."
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigurationError(
            f"The API key has characters that no key has; look at {KEY_VARIABLE} once more."
        )
    return key


def _check_task_id(task_id: object) -> None:
    if not isinstance(task_id, str) or not task_id.strip():
        raise InvalidOptionError(f"{task_id!r} is no task_id; it is the text that submits get.")


def _title(record: JobRecord) -> str:
    if record.label or not record.source:
        return record.label or record.task_id or record.id
    return track_of(record.source).title
