"""Resuming: jobs that a journal remembers go on where they stood."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import anyio
import anyio.abc

from musicgpt_async._io import upload
from musicgpt_async._rules import matching, payloads, protocol
from musicgpt_async._rules.lifecycle import Change
from musicgpt_async._rules.payloads import Conversion
from musicgpt_async._work.desk import Desk
from musicgpt_async._work.submitting import Submitter
from musicgpt_async._work.waiting import Watcher
from musicgpt_async.errors import MusicGPTError, SourceError, SubmissionUnknownError
from musicgpt_async.job import ExtractionJob, extraction_of
from musicgpt_async.journal import was_delivered
from musicgpt_async.models import JobRecord, JobState

_log = logging.getLogger(__name__)

# Seconds between looks at a job that another process is working on.
OTHERS = 1.0
MOST_PAGES = 50


class Resumer:
    """Takes jobs up from the journal.

    Args:
        desk: What the rooms share.
        submitter: Submits what was never delivered.
        watcher: Waits for what was accepted.
        handle: Returns this session's handle on a job's id, if it has one.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        submitter: Submitter,
        watcher: Watcher,
        handle: Callable[[str], ExtractionJob | None],
    ) -> None:
        self._desk = desk
        self._submitter = submitter
        self._watcher = watcher
        self._handle = handle
        self._followers: anyio.abc.TaskGroup | None = None

    async def run(self) -> None:
        """Follow the jobs that others are working on."""
        async with anyio.create_task_group() as self._followers:
            await anyio.sleep_forever()

    def known(self, job: ExtractionJob, record: JobRecord) -> None:
        """Go on with the job whose track the journal has already, in place of a new submit."""
        assert self._followers is not None  # noqa: S101 - for the type checker: the session runs
        self._followers.start_soon(self._join, job, record)

    async def take_up(self, jobs: Sequence[ExtractionJob]) -> None:
        """Go on with jobs whose records this process owns."""
        lost = [job for job in jobs if self._go_on(job)]
        if lost:
            await self._resolve(lost)

    async def _join(self, job: ExtractionJob, record: JobRecord) -> None:
        try:
            await self._join_owner(job, record)
        except MusicGPTError as error:
            if not job.done():
                self._desk.end(job, Change.FAIL, error.fresh(job=job))

    async def _join_owner(self, job: ExtractionJob, record: JobRecord) -> None:
        """Follow this session's own handle, or another process, or take the job over."""
        other = self._handle(record.id)
        if other is not None and other is not job:
            await self._mirror(job, other)
            return
        journal = self._desk.ledger.journal
        while journal is not None and not journal.owns(record.id):
            if record.state is JobState.COMPLETED:
                break
            await anyio.sleep(OTHERS)
            found = await self._desk.ledger.enter(job, force=False)
            if found is None:  # it failed elsewhere and may be submitted again
                self._submit(job)
                return
            record = found
        if not job.done():
            job.take_up(record)
            await self.take_up([job])

    async def _mirror(self, job: ExtractionJob, other: ExtractionJob) -> None:
        """End as this session's other handle on the same job does."""
        try:
            extraction = await other.wait()
        except MusicGPTError as error:
            if not job.done():
                self._desk.end(job, Change.FAIL, error)
            return
        if not job.done():
            job.take_up(other.record)
            self._desk.end(job, Change.COMPLETE, extraction)

    def _go_on(self, job: ExtractionJob) -> bool:
        """Go on from where the record stands; return whether its task_id has to be found first."""
        record = job.record
        if record.links and record.task_id:
            self._desk.end(job, Change.COMPLETE, extraction_of(record))
        elif record.task_id:
            job.advance(Change.ACCEPT)
            self._desk.mail.open(job)
            accepted = record.accepted_at
            self._watcher.watch(job, age=None if accepted is None else time.time() - accepted)
        elif was_delivered(record):
            return True
        else:
            self._submit(job)
        return False

    def _submit(self, job: ExtractionJob) -> None:
        if job.record.source or job.source is not None:
            source = job.record.source if job.source is None else job.source
            track = upload.track_of(source, label=job.label)
            self._submitter.enqueue(job, track, entered=True)
            return
        error = SourceError(
            f"{job.title} was bytes or a stream, which cannot be read again; submit it anew.",
            job=job,
        )
        self._desk.end(job, Change.FAIL, error)

    async def _resolve(self, lost: Sequence[ExtractionJob]) -> None:
        """Find the tasks of submits whose answers were lost, or say what can be done."""
        listing = await self._listing(min(job.record.sent_at or 0.0 for job in lost))
        found = matching.matches(
            [job.record for job in lost], listing, claimed=await self._claimed()
        )
        for job in lost:
            job.advance(Change.HAND_OVER)
            if job.id in found:
                task = found[job.id]
                _log.info("%s was found again as task %s", job.title, task.task_id)
                self._submitter.accept(job, task.task_id, task.conversion_id)
            elif self._desk.mail.expects(job):
                self._submitter.expect(job, self._unknown(job))
            else:
                self._desk.end(job, Change.GIVE_UP, self._unknown(job))

    async def _listing(self, since: float) -> list[Conversion]:
        """Return the account's conversions from then on; none where the vendor has no listing."""
        url, found = protocol.listing_url(self._desk.base_url), list[Conversion]()
        after: str | None = None
        try:
            for _ in range(MOST_PAGES):
                query = protocol.listing_query(
                    since + matching.EARLIEST, time.time() + matching.LATEST, after=after
                )
                answer = await self._desk.http.ask(url, query)
                data = protocol.read(answer, now=time.time(), what="The listing")
                found += payloads.read_listing(data)
                after = payloads.listing_continues_after(data)
                if after is None:
                    break
        except MusicGPTError as error:
            _log.info("The account's conversions could not be listed: %s", error)
        return found

    async def _claimed(self) -> set[str]:
        journal = self._desk.ledger.journal
        if journal is None:
            return set()
        return {record.task_id async for record in journal.records() if record.task_id}

    def _unknown(self, job: ExtractionJob) -> SubmissionUnknownError:
        sent = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.record.sent_at))
        return SubmissionUnknownError(
            f"{job.title} was sent whole at {sent} and no answer was recorded. It may be running "
            "and paid for, so it is not sent again by itself. Look for it in the MusicGPT "
            "dashboard and take it up with session.attach(task_id), or submit it again with "
            "force=True if it is not there.",
            job=job,
        )
