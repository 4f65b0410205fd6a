"""Resuming: jobs that a journal remembers go on where they stood."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

import anyio
import anyio.abc
import attrs

from musicgpt_async._io import sources
from musicgpt_async._rules import matching, protocol, retrying
from musicgpt_async._rules.endpoints import Endpoints
from musicgpt_async._rules.lifecycle import Change
from musicgpt_async._rules.payloads import Conversion
from musicgpt_async._work.bell import Bell
from musicgpt_async._work.desk import Desk
from musicgpt_async._work.submitting import Submitter
from musicgpt_async._work.waiting import Watcher
from musicgpt_async.errors import (
    MusicGPTError,
    ReleasedError,
    SourceError,
    SubmissionUnknownError,
)
from musicgpt_async.job import ExtractionJob, extraction_of
from musicgpt_async.journal import Journal, is_unfinished, was_delivered
from musicgpt_async.models import JobRecord, JobState

_log = logging.getLogger(__name__)

# Seconds between looks at a job that another process is working on.
OTHERS = 1.0
MOST_PAGES = 50
# Seconds after handing over in which the vendor may still be taking the track in.
SETTLED = 30.0
# Seconds between looks into the account's listing, at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


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
        self._lost: list[_Lost] = []
        self._confirming = 0  # jobs whose task an earlier process was told
        self._bell = Bell()

    async def run(self) -> None:
        """Follow the jobs that others are working on, and search for tasks that were lost."""
        async with anyio.create_task_group() as self._followers:
            while True:
                await self._bell.wait()
                pause = FIRST_PAUSE
                while await self._search():
                    await self._bell.wait(until=anyio.current_time() + pause)
                    pause = min(2 * pause, LONGEST_PAUSE)

    def known(self, job: ExtractionJob, record: JobRecord) -> None:
        """Go on with the job whose track the journal has already, in place of a new submit."""
        assert self._followers is not None  # noqa: S101 - for the type checker: the session runs
        self._followers.start_soon(self._join, job, record)

    def take_up(self, jobs: Sequence[ExtractionJob]) -> None:
        """Go on with jobs whose records this process owns."""
        for job in jobs:
            try:
                self._go_on(job)
            except MusicGPTError as error:  # one handle's trouble is not the others'
                self._desk.end(job, Change.RELEASE, error)

    async def _join(self, job: ExtractionJob, record: JobRecord) -> None:
        try:
            await self._join_owner(job, record)
        except MusicGPTError as error:
            if not job.done():
                self._desk.end(job, Change.FAIL, error.fresh(job=job))

    async def _join_owner(self, job: ExtractionJob, record: JobRecord) -> None:
        """Follow this session's own handle, or another process, or take the job over."""
        journal = self._desk.ledger.journal
        while journal is not None and not job.done():
            other = self._handle(record.id)
            if other is not None:
                if await self._mirror(job, other):
                    return
            elif journal.owns(record.id) or _is_over(record, job.record.directory):
                job.take_up(record)
                self._go_on(job)
                return
            else:
                await anyio.sleep(OTHERS)
            await self._desk.ledger.flush()  # how the other handle ended has to stand there
            if job.done():
                return
            found = await self._desk.ledger.enter(job, force=False)
            if found is None:  # it failed elsewhere and may be submitted again
                if job.done():  # let go of while it was written down
                    self._desk.ledger.save_soon(job)
                else:
                    job.take_up(job.record)
                    self._submit(job)
                return
            record = found

    async def _mirror(self, job: ExtractionJob, other: ExtractionJob) -> bool:
        """End as this session's other handle on the same job does; not if that was let go of."""
        try:
            extraction = await other.wait()
        except ReleasedError:
            return False
        except MusicGPTError as error:
            if not job.done():
                self._desk.end(job, Change.FAIL, error)
            return True
        if not job.done():
            # Only one handle's record is written down.
            self._desk.ledger.share(job, other)
            mine = job.record
            job.take_up(
                attrs.evolve(
                    other.record,
                    id=mine.id,
                    label=mine.label,
                    directory=mine.directory,
                    format=mine.format,
                    wanted=mine.wanted,
                )
            )
            self._desk.end(job, Change.COMPLETE, extraction)
        return True

    def _go_on(self, job: ExtractionJob) -> None:
        """Go on from where the record stands."""
        record = job.record
        if record.links and record.task_id:
            self._desk.end(job, Change.COMPLETE, extraction_of(record))
        elif record.task_id:
            job.advance(Change.ACCEPT)
            self._submitter.occupy(job)
            self._desk.mail.open(job)
            accepted = record.accepted_at
            self._watcher.watch(job, age=None if accepted is None else time.time() - accepted)
            if self._desk.mail.expects(job):  # it may have come while nobody was there
                self._watcher.wake(job)
        elif was_delivered(record):
            self._search_for(job)
        else:
            self._submit(job)

    def _submit(self, job: ExtractionJob) -> None:
        if job.record.source or job.source is not None:
            source = job.record.source if job.source is None else job.source
            track = sources.track_of(source, label=job.label)
            self._submitter.enqueue(job, track, entered=True)
            return
        error = SourceError(
            f"{job.title} was bytes or a stream, which cannot be read again; submit it anew.",
            job=job,
        )
        self._desk.end(job, Change.FAIL, error)

    def _search_for(self, job: ExtractionJob) -> None:
        """Search for the task of a submit whose answer was lost."""
        job.advance(Change.HAND_OVER)
        if self._desk.mail.expects(job):
            self._submitter.expect(job, self._unknown(job))
        if job.record.hinted_task and self._followers is not None:
            self._confirming += 1
            self._followers.start_soon(self._confirm, job, job.record.hinted_task)
        else:
            self._look_into_listing(job)

    async def _confirm(self, job: ExtractionJob, task_id: str) -> None:
        """Go on with the task that a delivery named to an earlier process, if it is the job's."""
        try:
            if not await self._submitter.is_real(task_id, job):
                self._look_into_listing(job)
            elif job.state is JobState.DELIVERED:
                _log.info("%s was found again by its webhook: task %s", job.title, task_id)
                self._submitter.accept(job, task_id, None)
        finally:
            self._confirming -= 1
            self._bell.ring()

    def _look_into_listing(self, job: ExtractionJob) -> None:
        self._lost.append(_Lost(job, anyio.current_time()))
        self._bell.ring()

    async def _search(self) -> bool:
        """Look for all lost tasks together; return whether any is left to be found."""
        lost = self._lost = [each for each in self._lost if each.is_lost]
        if lost:
            try:
                listing = await self._listing(min(each.sent_at for each in lost))
                await self._compare(lost, listing, read_at=time.time())
            except MusicGPTError as error:
                _log.info("The account's conversions could not be listed: %s", error)
                self._do_without_listing(lost, error)
        return any(each.is_lost for each in self._lost)

    async def _compare(
        self, lost: Sequence[_Lost], listing: Sequence[Conversion], *, read_at: float
    ) -> None:
        """Take what the listing tells for certain, and give up what it will not tell any more."""
        rivals, known = await self._others(lost, listing, until=read_at)
        claimed = {record.task_id or "" for record in known} | set(self._submitter.tasks)
        records = [*(each.job.record for each in lost), *rivals]
        found = matching.matches(records, listing, claimed=claimed, known=known)
        for each in lost:
            job = each.job
            if not each.is_lost:  # its webhook was faster
                continue
            if job.record.id in found:
                task = found[job.record.id]
                _log.info("%s was found again in the listing: task %s", job.title, task.task_id)
                self._submitter.accept(job, task.task_id, task.conversion_id)
            elif not self._confirming and read_at - each.sent_at > SETTLED:
                fitting = matching.candidates(job.record, listing, claimed=claimed)
                self._give_up(job, [task.task_id for task in fitting])

    def _do_without_listing(self, lost: Sequence[_Lost], error: MusicGPTError) -> None:
        for each in lost:
            lasted = anyio.current_time() - each.since
            if retrying.look_is_refused(error, waited=None) or lasted > SETTLED:
                self._give_up(each.job, None)

    def _give_up(self, job: ExtractionJob, candidates: Sequence[str] | None) -> None:
        if job.state is JobState.DELIVERED and not self._desk.mail.expects(job):
            self._desk.end(job, Change.GIVE_UP, self._unknown(job, candidates))

    def _unknown(
        self, job: ExtractionJob, candidates: Sequence[str] | None = None
    ) -> SubmissionUnknownError:
        """Return the error of a lost answer; `candidates` are listed tasks that it could be."""
        sent = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.record.sent_at))
        seen = ""
        if candidates is not None:
            tasks = ", ".join(candidates) or "none"
            seen = f"The account's listing shows what it could be: {tasks}. "
        return SubmissionUnknownError(
            f"{job.title} was sent whole at {sent} and no answer was recorded. "
            f"{self._desk.ledger.way_out(job, seen=seen)}",
            job=job,
        )

    async def _listing(self, since: float) -> list[Conversion]:
        """Return the account's conversions from then on.

        Raises:
            MusicGPTError: The vendor has no listing, or did not give it.
        """
        url, found = Endpoints.of(self._desk.base_url).listing, list[Conversion]()
        after: str | None = None
        for _ in range(MOST_PAGES):
            query = protocol.listing_query(
                since + matching.EARLIEST, time.time() + matching.LATEST, after=after
            )
            answer = await self._desk.http.ask(url, query)
            page, after = protocol.read_listing(answer, now=time.time(), what="The listing")
            found += page
            if after is None:
                break
        return found

    async def _others(
        self, lost: Sequence[_Lost], listing: Sequence[Conversion], *, until: float
    ) -> tuple[list[JobRecord], list[JobRecord]]:
        """Return the other submits with an entry: those that may have one, and those that have.

        A listing shows the tasks of submits whose answers are still on their way as well. Those are
        in the journal since before they were handed over: it is read after the listing.
        """
        ours, listed = {each.job.record.id for each in lost}, {each.task_id for each in listing}
        rivals, known = list[JobRecord](), list[JobRecord]()
        async for record in _records(self._desk.ledger.journal):
            if record.task_id is not None:
                if record.task_id in listed:
                    known.append(record)
            elif record.id not in ours and _may_run(record) and (record.sent_at or 0.0) <= until:
                rivals.append(record)
        return rivals, known


@attrs.frozen
class _Lost:
    """A job whose task is searched for, and since when."""

    job: ExtractionJob
    since: float

    @property
    def is_lost(self) -> bool:
        return self.job.state is JobState.DELIVERED

    @property
    def sent_at(self) -> float:
        return self.job.record.sent_at or 0.0


async def _records(journal: Journal | None) -> AsyncIterator[JobRecord]:
    if journal is not None:
        async for record in journal.records():
            yield record


def _may_run(record: JobRecord) -> bool:
    """Return whether a record without a task may have one at the vendor all the same."""
    return record.sent_at is not None and record.state is not JobState.FAILED


def _is_over(record: JobRecord, directory: str | None) -> bool:
    """Return whether there is nothing left that its owner does and we would do again."""
    if record.state is not JobState.COMPLETED:
        return False
    return record.directory != directory or not is_unfinished(record)
