"""Runtime: builds the parts of a session, and does what the session and its handles ask for.

It is made when a session is started, in the session's own task, so nothing in it is optional.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import attrs

from musicgpt_async._engine.account import Account
from musicgpt_async._engine.context import Context
from musicgpt_async._engine.deliveries import Deliveries
from musicgpt_async._engine.downloads import JobDownloads
from musicgpt_async._engine.following import Following, make_outcome
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.jobs import Jobs
from musicgpt_async._engine.lifetime import Lifetime, describe_detached
from musicgpt_async._engine.poller import LAST_POLL_TIMEOUT, Poller
from musicgpt_async._engine.queue import SubmitQueue, Turn
from musicgpt_async._engine.recovery import Recovery
from musicgpt_async._engine.runner import Runner
from musicgpt_async._engine.settings import RuntimeSettings
from musicgpt_async._engine.shared_account import make_account
from musicgpt_async._engine.store import JobStore
from musicgpt_async._engine.submission import Submitter
from musicgpt_async._io import response_body
from musicgpt_async._io.download import Downloader
from musicgpt_async._io.sources import Track, parse_source
from musicgpt_async._rules import filenames, records
from musicgpt_async._rules.durations import DurationModel
from musicgpt_async._rules.endpoints import Endpoints
from musicgpt_async._rules.formats import DEFAULT_FORMAT
from musicgpt_async._rules.lifecycle import Trigger
from musicgpt_async._rules.polling import Schedule
from musicgpt_async._rules.upload_ahead import Uplink, UploadAhead
from musicgpt_async.errors import (
    ConfigurationError,
    InvalidOptionError,
    JobDetachedError,
    JobNotFoundError,
    MusicGPTError,
)
from musicgpt_async.events import EventStream
from musicgpt_async.job import Callback, ExtractionJob, Files
from musicgpt_async.journal import Claim, Journal
from musicgpt_async.models import AudioFormat, JobRecord, JobState

_log = logging.getLogger(__name__)

MAX_ADOPTED = 1024  # handles of adopted jobs that are kept for resume()
DEFAULT_HOLD_TIME = 86_400.0  # seconds that a dead process's slot is held if jobs have no deadline


class Runtime(Lifetime):
    """What an open session and its handles ask for.

    Args:
        settings: The checked options.
        group: Where its children run.
    """

    def __init__(self, settings: RuntimeSettings, group: anyio.abc.TaskGroup) -> None:
        super().__init__(settings, group)
        self._adopted: dict[str, ExtractionJob] = {}  # by record, until the user resumes
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
        webhooks = settings.webhooks
        schedule: Schedule[Any] = Schedule(
            polls_per_minute=settings.polls_per_minute,
            durations=durations,
            reliability=None if webhooks is None else webhooks._queue.reliability,
        )
        deadline = DEFAULT_HOLD_TIME if settings.deadline is None else settings.deadline
        account, grants = make_account(
            self._store,
            settings.slots,
            settings.credit,
            schedule.budget,
            hold_time=deadline + LAST_POLL_TIMEOUT,
        )
        self.account: Account = account
        self._queue = SubmitQueue(
            account,
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
            schedule,
            queue=self._queue,
            deliveries=self._deliveries,
            grants=grants,
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
        # The order in which a change is carried out: work in flight is stopped, the slot is freed,
        # polls begin or end, and the record is saved with all that has changed by then.
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
            await self._flush()  # the end of the job must not be saved after this
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
        """Resume the jobs of the journal that have no live owner."""
        with self._user_call():
            # Of all accounts: jobs submitted with another key or host are the user's own, too.
            found = await self._require_journal()._claim_all()
        adopted, self._adopted = self._adopted, {}
        self._left_alone.clear()
        resumed = [self._resume(record, claim, format) for record, claim in found]
        return [*adopted.values(), *resumed]

    def _adopt(self, record: JobRecord, claim: Claim) -> None:
        _log.info("Continuing %s, whose process has died.", _make_title(record))
        handle = self._resume(record, claim, None, is_adopted=True)
        if isinstance(self._job_of(handle).outcome, MusicGPTError):
            claim.forget_former_owner()
        self._adopted[record.id] = handle
        if len(self._adopted) > MAX_ADOPTED:
            del self._adopted[next(iter(self._adopted))]

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

    def detach(self, job: Job) -> None:
        """Stop following a job, because its user said so."""
        self._jobs.apply(job, Trigger.DETACHED, outcome=JobDetachedError(describe_detached(job)))

    def call_soon(self, callback: Callback, handle: Any) -> None:
        """Call a done callback in the loop."""
        # Not in the context of the part that has ended the job: it is the application's code.
        self._loop.call_soon(callback, handle, context=self._outside.copy())

    def event_stream(self, job_id: str) -> EventStream:
        """Return a stream of one job's events."""
        return self._settings.event_bus.stream(job_id)

    def begin_download(self, job: Job) -> None:
        """Count a requested download: the claim of the record is kept for it."""
        self._jobs.count_downloads(job, requested=1)

    def end_download(self, job: Job) -> None:
        """Count down a requested download; end the streams if it was cancelled without an event."""
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

    def _resume(
        self,
        record: JobRecord,
        claim: Claim,
        format: AudioFormat | None,  # noqa: A002 - as in download()
        *,
        is_adopted: bool = False,
    ) -> ExtractionJob:
        record = attrs.evolve(record, format=format or record.format)
        job = self._jobs.find(record.id)
        if job is None:
            job = self._create(record, record.source or None, _make_title(record))
            if is_adopted:
                self._left_alone.add(job.id)
        else:  # a retrieved handle, which followed the holder of the claim
            self._following.stop(job)
        downloads = record.directory is not None and claim.is_here
        if downloads:
            self.begin_download(job)
        self._following.resume(job, record, claim)
        if downloads:
            start = self._supervisor.spawn if is_adopted else self.start_background_task
            start(
                partial(self._finish_download, job, record),
                on_failure=partial(self._on_download_failure, job, claim),
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

    def _on_download_failure(self, job: Job, claim: Claim, error: Exception) -> None:
        claim.forget_former_owner()
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


def _describe_missing(job_id: str, journal: Journal | None) -> str:
    where = "this session" if journal is None else "the journal"
    advice = " Give the session a journal= to find jobs after a restart." if journal is None else ""
    return f"There is no job {job_id[:80]!r} in {where}; MusicGPT was not asked.{advice}"


def _make_title(record: JobRecord) -> str:
    if record.label or not record.source:
        return record.label or record.title or record.task_id or record.id
    return parse_source(record.source).title
