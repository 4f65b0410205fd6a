"""Runtime: builds the parts of a session, runs them, drains them and closes them.

It is born when a session is started, in the session's own task, so nothing in it is optional. Each
part runs as a supervised child for as long as the session is open; one that stops earlier ends the
session with an error that says so. The whole leave-taking has one bound in time.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import attrs

from musicgpt_async._engine.context import Context
from musicgpt_async._engine.deliveries import Deliveries
from musicgpt_async._engine.downloads import JobDownloads
from musicgpt_async._engine.following import Following, make_outcome, make_taken_over_error
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.jobs import Jobs
from musicgpt_async._engine.poller import Poller
from musicgpt_async._engine.queue import SubmitQueue, Turn
from musicgpt_async._engine.recovery import Recovery
from musicgpt_async._engine.runner import Runner
from musicgpt_async._engine.store import JobStore
from musicgpt_async._engine.submission import Submitter
from musicgpt_async._engine.supervision import Supervisor, is_cancellation_requested
from musicgpt_async._io import response_body
from musicgpt_async._io.download import Downloader
from musicgpt_async._io.http import Transport
from musicgpt_async._io.sources import Track, parse_source
from musicgpt_async._rules import filenames, records
from musicgpt_async._rules.credit import CreditBudget
from musicgpt_async._rules.durations import DurationModel
from musicgpt_async._rules.endpoints import Endpoints
from musicgpt_async._rules.formats import DEFAULT_FORMAT
from musicgpt_async._rules.lifecycle import MAY_BE_PAID, Effect, Trigger
from musicgpt_async._rules.polling import Schedule
from musicgpt_async._rules.slots import Slots
from musicgpt_async._rules.upload_ahead import Uplink, UploadAhead
from musicgpt_async.errors import (
    ConfigurationError,
    InvalidOptionError,
    JobDetachedError,
    JobNotFoundError,
    MusicGPTError,
    SessionClosedError,
)
from musicgpt_async.events import EventBus, EventStream
from musicgpt_async.job import Callback, ExtractionJob, Files
from musicgpt_async.journal import Claim, Journal
from musicgpt_async.models import AudioFormat, JobRecord, JobState
from musicgpt_async.webhooks import WebhookReceiver

_log = logging.getLogger(__name__)

RESPONSE_GRACE = 5.0  # seconds that a response may still take when the session is left
LEAVE_TIMEOUT = 10.0  # seconds that the whole leave-taking may take


@attrs.frozen(kw_only=True)
class RuntimeSettings:
    """What a session was told, checked.

    Attributes:
        base_url: The API's, without a trailing slash.
        account: A digest of the key and the base URL.
        on_loopback: Whether that is on this machine.
        http: The transport.
        executor: Where files are read and written.
        event_bus: Where events go.
        slots: How many jobs may be unfinished at MusicGPT.
        credit: How much may be spent.
        polls_per_minute: The account's, ``None`` to learn it.
        journal: The durable record.
        webhooks: Gets webhooks.
        deadline: Seconds from acceptance in which a job has to finish.
        request_timeout: Seconds without a byte after which a call is given up.
        stall_timeout: Seconds without MusicGPT taking a byte of an upload.
        layout: Names of the files in a directory.
    """

    base_url: str
    account: str
    on_loopback: bool
    http: Transport
    executor: ThreadPoolExecutor
    event_bus: EventBus
    slots: Slots
    credit: CreditBudget
    polls_per_minute: float | None
    journal: Journal | None
    webhooks: WebhookReceiver | None
    deadline: float | None
    request_timeout: float
    stall_timeout: float
    layout: str


async def start_runtime(settings: RuntimeSettings) -> Runtime:
    """Start a session's runtime in a task of its own.

    A service may start a session in one task and close it in another.

    Raises:
        ConfigurationError: The caller's ``http`` is closed.
        JournalError: The journal cannot be used.
    """
    settings.http.open()
    try:
        if settings.journal is not None:
            await settings.journal._open()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await settings.http.close()
        raise
    started: asyncio.Future[Runtime] = asyncio.get_running_loop().create_future()
    host = asyncio.create_task(_host(settings, started), name="musicgpt-async session")
    interrupted: asyncio.CancelledError | None = None
    while not (host.done() or started.done()):
        with anyio.CancelScope(shield=True):
            try:
                await asyncio.wait((host, started), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as error:  # a native one, which no scope stops
                interrupted = error
    runtime = started.result()
    if interrupted is not None:  # nobody else could close it
        await runtime.close()
        raise interrupted
    return runtime


async def _host(settings: RuntimeSettings, started: asyncio.Future[Runtime]) -> None:
    runtime: Runtime | None = None
    try:
        async with anyio.create_task_group() as group:
            runtime = Runtime(settings, group)
            started.set_result(runtime)
            await runtime.run()
    except BaseException as error:
        if runtime is not None and runtime.is_open:
            runtime.fail("own task", error)
        elif not isinstance(error, asyncio.CancelledError):
            raise
    finally:
        with anyio.CancelScope(shield=True):
            if runtime is not None:
                await runtime.finish()


class Runtime:
    """The parts of an open session.

    Args:
        settings: What the session was told.
        group: Where its children run.

    Attributes:
        failure: What ended the session before it was left.
    """

    def __init__(self, settings: RuntimeSettings, group: anyio.abc.TaskGroup) -> None:
        self._host: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self.failure: MusicGPTError | None = None
        self._is_failure_raised = False
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._group = group
        self._supervisor = Supervisor(group)
        self._background_tasks = 0
        self._calls: set[anyio.CancelScope] = set()
        self._idle, self._leaving = anyio.Event(), anyio.Event()
        self._leave_scope = anyio.CancelScope()
        self._store = JobStore(settings.journal, account=settings.account)
        self._jobs = Jobs(self._store, settings.event_bus, self)
        self._context = Context(
            endpoints=Endpoints.of(settings.base_url),
            stall_timeout=settings.stall_timeout,
            http=settings.http,
            executor=settings.executor,
            event_bus=settings.event_bus,
            store=self._store,
            jobs=self._jobs,
            supervisor=self._supervisor,
        )
        durations, uplink = DurationModel(), Uplink()
        self._queue = SubmitQueue(
            settings.slots,
            settings.credit,
            settings.event_bus,
            ahead=UploadAhead(durations, uplink),
            uplink=uplink,
        )
        self._deliveries = Deliveries(
            settings.webhooks,
            jobs=self._jobs,
            store=self._store,
            event_bus=settings.event_bus,
            supervisor=self._supervisor,
        )
        self._poller = Poller(
            self._context,
            Schedule(
                polls_per_minute=settings.polls_per_minute,
                durations=durations,
                reliability=(
                    None if settings.webhooks is None else settings.webhooks._queue.reliability
                ),
            ),
            queue=self._queue,
            deliveries=self._deliveries,
        )
        self._recovery = Recovery(self._context, poller=self._poller, deliveries=self._deliveries)
        self._following = Following(
            self._context,
            queue=self._queue,
            recovery=self._recovery,
            deliveries=self._deliveries,
        )
        self._runner = Runner(
            self._context,
            queue=self._queue,
            submitter=Submitter(self._context, self._deliveries, self._queue),
            recovery=self._recovery,
            following=self._following,
        )
        self._downloads = JobDownloads(
            self._context,
            poller=self._poller,
            downloader=Downloader(
                stream=settings.http.stream,
                executor=settings.executor,
                allow_loopback=settings.on_loopback,
                digests=settings.journal is not None,
                read_chunks=partial(
                    response_body.iter_chunks, read_timeout=settings.request_timeout
                ),
            ),
            layout=settings.layout,
        )
        # The order in which a change is carried out: what is on its way is stopped, then the slot
        # is free, then polls begin or end, and the record is saved with all that came of it.
        self._jobs.observe(
            self._runner,
            self._following,
            self._queue,
            self._poller,
            self._recovery,
            self._deliveries,
            self._store,
            self,
        )

    @property
    def is_open(self) -> bool:
        """Whether jobs may be submitted."""
        return not self._leaving.is_set()

    def __len__(self) -> int:
        return len(self._jobs)

    # What the session asks for.

    def submit(
        self,
        source: Any,
        track: Track,
        *,
        label: str | None,
        key: str | None,
        force: bool,
        retry_failed: bool,
        **options: Any,
    ) -> ExtractionJob:
        """Queue a track."""
        title = None if track.location else track.title
        record = self._new_record(source=track.location, label=label, title=title, **options)
        job = self._create(record, source, label or track.title)
        self._queue.push(Turn(job, track, key=key, force=force, retry_failed=retry_failed))
        return job.handle

    def attach(self, task_id: str) -> ExtractionJob:
        """Follow a task that was submitted elsewhere."""
        record = self._new_record(source="", task_id=task_id)
        job = self._create(record, None, task_id)
        self._queue.acquire_if_free(job)
        self._jobs.apply(job, Trigger.ACCEPTED)
        return job.handle

    async def bind(
        self,
        job_id: str,
        task_id: str,
        format: AudioFormat | None,  # noqa: A002 - as in download()
    ) -> ExtractionJob:
        """Give a job the task that its user found, and follow it."""
        journal = self._require_journal()
        if self._jobs.find(job_id) is not None:
            raise InvalidOptionError(
                f"This session still follows the job {job_id}; cancel its handle first."
            )
        with self._user_call():
            await self._poller.poll_once(task_id, ())
            await self._flush()  # how the job ended must not be saved after this
            record, claim = await journal._bind_claimed(job_id, task_id)
        return self._resume(record, claim, format)

    async def retrieve(self, job_id: str) -> ExtractionJob:
        """Return the handle of a job by its id, from memory or from the journal."""
        known = self._jobs.recall(job_id)
        if known is None or self._jobs.is_outdated(known):
            with self._user_call():
                if known is not None:
                    await self._flush()
                record = await self._store.find(job_id) if records.is_task_id(job_id) else None
            known = self._jobs.recall(job_id) or known  # two may have asked at once
            if record is not None and (known is None or self._jobs.is_outdated(known)):
                return self._open_record(record)
        if known is None:
            raise JobNotFoundError(_describe_missing(job_id, self._settings.journal))
        return known.handle

    def _open_record(self, record: JobRecord) -> ExtractionJob:
        outcome, title = make_outcome(record), _make_title(record)
        if outcome is None:
            job = self._create(record, record.source or None, title)
            self._following.watch(job)
        else:
            job = self._jobs.create_ended(record, title, outcome)
        return job.handle

    async def adopt(
        self,
        task_id: str,
        directory: Path,
        format: AudioFormat | None,  # noqa: A002 - as in download()
    ) -> ExtractionJob:
        """Save a task that was submitted elsewhere, and follow it until its files are downloaded.

        Raises:
            ConfigurationError: The session has no journal.
            NotFoundError: MusicGPT does not know the task; nothing was saved.
            MusicGPTError: Another process works on it, or it could not be looked up or saved.
        """
        journal = self._require_journal()
        with self._user_call():
            known = await journal._find(task_id)
            if known is None or known.task_id != task_id or known.state is JobState.FAILED:
                await self._poller.poll_once(task_id, ())  # a mistyped id must not be saved
                known, claim, _ = await journal._register(
                    self._adopted_record(task_id), account=self._settings.account
                )
            else:
                claim = await journal._claim_one(known.id)
        if claim is None:
            raise MusicGPTError(f"Another process works on {task_id}.", task_id=task_id)
        record = attrs.evolve(known, directory=known.directory or str(directory))
        return self._resume(record, claim, format)

    def _adopted_record(self, task_id: str) -> JobRecord:
        """Return the record of a task of which only its id is known; its fingerprint is that id."""
        record = self._new_record(source="", label=task_id, task_id=task_id)
        return attrs.evolve(
            record,
            fingerprint=f"task {task_id}",
            state=JobState.PROCESSING,
            layout=filenames.with_folder(self._settings.layout, ""),
        )

    async def resume(
        self,
        format: AudioFormat | None,  # noqa: A002 - as in download()
    ) -> list[ExtractionJob]:
        """Resume what the journal holds and nobody works on."""
        with self._user_call():
            found = await self._require_journal()._claim_all()
        return [self._resume(record, claim, format) for record, claim in found]

    def set_output(
        self,
        handle: ExtractionJob,
        directory: Path,
        format: AudioFormat,  # noqa: A002 - as in download()
        folder: str = "",
    ) -> None:
        """Record where a job's stems go before it has ended."""
        job, layout = self._job_of(handle), filenames.with_folder(self._settings.layout, folder)
        self._jobs.update(job, directory=str(directory), format=format, layout=layout)
        self._downloads.reserve(job, directory, layout=layout)

    async def wait_for_space(self) -> None:
        """Wait until the queue is short enough for one more track."""
        await self._queue.wait_for_space()

    # What handles ask for: see JobRuntime.

    def check_loop(self) -> None:
        """Refuse to be used when not open, or in another event loop than the session's."""
        if not self.is_open:
            raise SessionClosedError(
                "The session is closed; start another one."
                if self.failure is None
                else f"The session has ended: {self.failure}"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "The session belongs to another event loop; make one session for each loop."
            )

    def detach(self, job: Job) -> None:
        """Stop following a job, because its user said so."""
        self._jobs.apply(job, Trigger.DETACHED, outcome=JobDetachedError(_describe_detached(job)))

    def call_soon(self, callback: Callback, handle: Any) -> None:
        """Call a done callback in the loop."""
        self._loop.call_soon(callback, handle)

    def event_stream(self, job_id: str) -> EventStream:
        """Return a stream of one job's events."""
        return self._settings.event_bus.stream(job_id)

    def begin_download(self, job: Job) -> None:
        """Remember that a download is asked for: the claim of its record is kept for it."""
        self._jobs.count_downloads(job, requested=1)

    def end_download(self, job: Job) -> None:
        """Forget a download that was asked for; one that was broken off has no event of its own."""
        status = self._jobs.count_downloads(job, requested=-1)
        if not status.requested and job.has_ended:
            self._store.save_later(job)
            if status.end is None:
                for stream in status.streams:
                    stream.end()

    async def download(
        self,
        job: Job,
        directory: Path,
        *,
        stems: Collection[str] | None,
        format: AudioFormat,  # noqa: A002 - as in download()
    ) -> Files:
        """Download a finished job's files to a directory: stem → format → path."""
        self.check_loop()
        with self._user_call():
            return await self._downloads.download(job, directory, stems=stems, format=format)

    # Background tasks.

    def start_background_task(
        self, body: Callable[[], Awaitable[None]], on_failure: Callable[[Exception], None]
    ) -> None:
        """Run something beside the jobs; a session that drains waits for it."""
        self.check_loop()
        self._background_tasks += 1
        self._supervisor.spawn(self._run_background_task, body, on_failure=on_failure)

    async def _run_background_task(self, body: Callable[[], Awaitable[None]]) -> None:
        try:
            await body()
        finally:
            self._background_tasks -= 1
            self._idle.set()

    @contextmanager
    def exclude_from_drain(self) -> Iterator[None]:
        """Do not let a background task delay draining while it waits for its consumer."""
        self._background_tasks -= 1
        self._idle.set()
        try:
            yield
        finally:
            self._background_tasks += 1

    # Its life.

    async def run(self) -> None:
        """Run the parts until the session is left, and take leave."""
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "submit queue": self._runner.run,
            "poller": self._poller.run,
            "recovery": self._recovery.run,
        }
        if self._settings.webhooks is not None:
            parts["webhook dispatcher"] = self._deliveries.run
        if self._settings.webhooks is not None and self._settings.journal is not None:
            parts["webhook collector"] = self._deliveries.collect
        if self._settings.journal is not None:
            parts["journal writer"] = self._save_and_renew
        for name, part in parts.items():
            self._supervisor.spawn(self._run_part, name, part, on_failure=partial(self.fail, name))
        await self._leaving.wait()
        self._begin_to_leave()
        with self._leave_scope:
            await self._runner.wait_for_responses(RESPONSE_GRACE)
            while self._calls:  # each says why it ends
                await self._wait_progress()
        self._runner.abandon()
        self._group.cancel_scope.cancel()

    async def finish(self) -> None:
        """Save and close what there is; nothing else runs any more."""
        self._begin_to_leave()
        await self._store.flush()
        self._store.drop_claims()
        self._deliveries.close()
        self._settings.event_bus.close()
        await self._settings.http.close()
        if self._settings.journal is not None:
            await self._settings.journal._close()
        self._settings.executor.shutdown(wait=False)

    def _begin_to_leave(self) -> None:
        """Detach all jobs; from here on the time that the leave-taking takes is bounded."""
        if self._settings.journal is not None:
            self._settings.journal._give_up_after(LEAVE_TIMEOUT)
        self.leave()
        self._leave_scope.deadline = min(
            self._leave_scope.deadline, anyio.current_time() + LEAVE_TIMEOUT
        )
        for job in self._jobs:
            words = _describe_detached(job) if self.failure is None else str(self.failure)
            self._jobs.apply(job, Trigger.SESSION_LEFT, outcome=JobDetachedError(words))
        for scope in tuple(self._calls):
            scope.cancel()

    async def wait_idle(self) -> None:
        """Wait until no job, background task or call runs any more."""
        while self.is_open and (self._jobs or self._background_tasks or self._calls):
            await self._wait_progress()

    async def _wait_progress(self) -> None:
        """Wait until a job, a background task or a call has ended."""
        if self._idle.is_set():  # never one that another aclose() waits on
            self._idle = anyio.Event()
        await self._idle.wait()

    def leave(self) -> None:
        """Begin to leave; nothing is submitted any more."""
        self._leaving.set()
        self._idle.set()

    def runs_caller(self) -> bool:
        """Return whether the running task is the session's own, which ends only if that does.

        It runs code of the application as well: sources, iterables and trace hooks.
        """
        parents = {task.id: task.parent_id for task in anyio.get_running_tasks()}
        task_id: int | None = anyio.get_current_task().id
        while task_id is not None and task_id != id(self._host):
            task_id = parents.get(task_id)
        return task_id is not None

    async def close(self) -> None:
        """Leave, and wait until all is closed.

        Raises:
            MusicGPTError: A part of the session had stopped before.
        """
        self.leave()
        interrupted: asyncio.CancelledError | None = None
        # In a scope that is cancelled already the session is closed in peace; a cancellation that
        # comes now means that its user does not want to wait.
        shield = is_cancellation_requested()
        patience: float | None = None
        while not self._host.done():
            with anyio.CancelScope(shield=shield):
                try:
                    await asyncio.wait((self._host,), timeout=patience)
                    break
                except asyncio.CancelledError as error:
                    interrupted, shield, patience = error, True, LEAVE_TIMEOUT
                    self._cut_short()
        if interrupted is not None:
            raise interrupted
        if self.failure is not None and not self._is_failure_raised:
            self._is_failure_raised = True
            raise self.failure.copy()

    def _cut_short(self) -> None:
        self._leave_scope.cancel()
        if self._settings.journal is not None:
            self._settings.journal._give_up_after(0.0)

    def on_change(self, _: Job, effects: Effect) -> None:
        """Notice that a job has ended: perhaps it was the last."""
        if Effect.END in effects:
            self._idle.set()

    async def _run_part(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except asyncio.CancelledError:
            if self.is_open:  # nobody but the session may cancel it, and it has not
                self.fail(name, RuntimeError("it was cancelled"))
            raise
        raise RuntimeError(f"the {name} returned")

    def fail(self, name: str, error: BaseException) -> None:
        """End the session: one of its parts has stopped."""
        _log.error("The %s stopped unexpectedly", name, exc_info=error)
        if self.failure is None:
            self.failure = MusicGPTError(
                f"The session ended because its {name} stopped unexpectedly: {error!r}. What was "
                "accepted goes on at MusicGPT."
            )
            self.failure.__cause__ = error
        self.leave()

    async def _save_and_renew(self) -> None:
        while True:
            await self._store.renew()
            renewal = anyio.current_time() + self._store.renewal_interval
            while anyio.current_time() < renewal:
                await self._store.wait_due(renewal)
                await self._flush()

    async def _flush(self) -> None:
        for lost in await self._store.flush():
            self._jobs.apply(lost, Trigger.SESSION_LEFT, outcome=make_taken_over_error(lost))

    def _resume(
        self,
        record: JobRecord,
        claim: Claim,
        format: AudioFormat | None,  # noqa: A002 - as in download()
    ) -> ExtractionJob:
        record = attrs.evolve(record, format=format or record.format)
        job = self._jobs.find(record.id)
        if job is None:
            job = self._create(record, record.source or None, _make_title(record))
        else:  # a handle that was retrieved, and followed whoever had the claim
            self._following.stop(job)
        if record.directory is not None:
            self.begin_download(job)
        self._following.resume(job, record, claim)
        if record.directory is not None:
            self.start_background_task(
                partial(self._finish_download, job, record), partial(self._on_download_failure, job)
            )
        return job.handle

    async def _finish_download(self, job: Job, record: JobRecord) -> None:
        """Download what was asked for in an earlier process; its errors are the handle's."""
        try:
            while not job.has_ended:
                await job.wait_changed()
            if isinstance(job.outcome, MusicGPTError):
                return
            await self._downloads.download(
                job,
                Path(record.directory or "."),
                stems=record.requested_stems or None,
                format=record.format or DEFAULT_FORMAT,
                layout=record.layout,
            )
        finally:
            self.end_download(job)

    def _on_download_failure(self, job: Job, error: Exception) -> None:
        _log.debug("%s was not downloaded: %s", job.title, error)

    def _create(self, record: JobRecord, source: Any, title: str) -> Job:
        return self._jobs.create(record, source, title, self._settings.deadline)

    def _job_of(self, handle: ExtractionJob) -> Job:
        job = handle._job  # noqa: SLF001 - a handle is a view of the engine's job
        assert isinstance(job, Job)  # noqa: S101 - for the type checker
        return job

    def _new_record(self, **facts: Any) -> JobRecord:
        return JobRecord(id=uuid.uuid4().hex, fingerprint="", created_at=time.time(), **facts)

    def _require_journal(self) -> Journal:
        if self._settings.journal is None:
            raise ConfigurationError("There is nothing to resume: give the session a journal=.")
        return self._settings.journal

    @contextmanager
    def _user_call(self) -> Iterator[None]:
        """End a call that waits in a user's task when the session is closed."""
        with anyio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                yield
            finally:
                self._calls.discard(scope)
                self._idle.set()
        if scope.cancelled_caught:
            raise SessionClosedError("The session was closed before this was done.")


def _describe_detached(job: Job) -> str:
    """Return what a detached job's user should know."""
    task_id = job.record.task_id
    again = f": session.attach({task_id!r}) follows it again" if task_id else ""
    goes_on = job.record.state in MAY_BE_PAID
    words = f"It goes on at MusicGPT{again}." if goes_on else "It was not submitted."
    return f"{job.title} was detached. {words}"


def _describe_missing(job_id: str, journal: Journal | None) -> str:
    where = "this session" if journal is None else f"{journal!r}"
    advice = " Give the session a journal= to find jobs after a restart." if journal is None else ""
    return f"There is no job {job_id[:80]!r} in {where}; MusicGPT was not asked.{advice}"


def _make_title(record: JobRecord) -> str:
    if record.label or not record.source:
        return record.label or record.title or record.task_id or record.id
    return parse_source(record.source).title
