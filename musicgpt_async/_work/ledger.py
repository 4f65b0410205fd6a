"""The jobs' way into the journal, where there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary, WeakSet

import anyio
import attrs

from musicgpt_async._work.bell import Bell
from musicgpt_async.errors import JournalError
from musicgpt_async.job import ExtractionJob
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord, JobState

_LET_GO = frozenset({JobState.RELEASED, JobState.EXPIRED, JobState.UNKNOWN})

# Seconds between tries to write down what the journal would not take.
AGAIN = 1.0

_log = logging.getLogger(__name__)


class Ledger:
    """Writes jobs down; without a journal it does nothing.

    Args:
        journal: The durable record.
        lost: Called with a job that another process has taken over.
    """

    def __init__(self, journal: Journal | None, *, lost: Callable[[ExtractionJob], None]) -> None:
        self.journal = journal
        self._lost = lost
        self._dirty: dict[str, ExtractionJob] = {}
        self._failed: dict[str, ExtractionJob] = {}
        self._is_failing = False  # said once, not for each job and second
        self._leaders: WeakKeyDictionary[ExtractionJob, ExtractionJob] = WeakKeyDictionary()
        self._left: WeakSet[ExtractionJob] = WeakSet()
        self._bell = Bell()

    async def enter(self, job: ExtractionJob, *, force: bool) -> JobRecord | None:
        """Write a job down before anything is sent.

        Returns:
            The record of the same track with the same options that stands in its way.
        """
        if self.journal is None:
            return None
        record, new = await self.journal.enter(job.record, force=force)
        return None if new else record

    async def save(self, job: ExtractionJob) -> None:
        """Write a job down before going on; one that is let go of is anybody's from then on.

        Raises:
            JournalError: It could not be written.
        """
        if self.journal is not None:
            self._dirty.pop(job.record.id, None)
            self._failed.pop(job.record.id, None)
            record = _as_it_stood(job.record) if job in self._left else job.record
            await self.journal.save(record, release=_is_let_go(job.record))

    async def keep(self, job: ExtractionJob) -> None:
        """Write down a job of this process before going on; another's is left to it.

        Raises:
            JournalError: It could not be written; it is tried again.
        """
        if not self.owns(job):
            return
        try:
            await self.save(job)
        except JournalError:
            self._fail(job)
            raise

    def leave(self, job: ExtractionJob) -> None:
        """Write a job down as it stood when its session left it, for whoever resumes."""
        self._left.add(job)

    def save_soon(self, job: ExtractionJob) -> None:
        """Write a job down when there is time: what the vendor would tell again."""
        if self.journal is not None and self.owns(job):
            self._dirty[job.record.id] = job
            self._bell.ring()

    async def run(self) -> None:
        """Write what is to be written, and keep the leases of all jobs alive."""
        if self.journal is None:
            return
        renewal = again = anyio.current_time()
        while True:
            if anyio.current_time() >= renewal:
                renewal = anyio.current_time() + self.journal.lease / 3
                await self._renew(self.journal)
            await self._bell.wait(until=min(renewal, again) if self._failed else renewal)
            if anyio.current_time() >= again:
                again = anyio.current_time() + AGAIN
                await self.flush()
            else:
                await self._write_dirty()

    async def flush(self) -> None:
        """Write everything that is still to be written, what failed before included."""
        self._dirty, self._failed = {**self._failed, **self._dirty}, {}
        await self._write_dirty()

    async def _write_dirty(self) -> None:
        # Together: a commit waits for the disk.
        while self._dirty:
            async with anyio.create_task_group() as writes:
                for job in tuple(self._dirty.values()):
                    writes.start_soon(self._write_down, job)

    def share(self, job: ExtractionJob, leader: ExtractionJob) -> None:
        """Keep two handles on one job in one record: the leader's."""
        self._leaders[job] = self.leader(leader)

    def leader(self, job: ExtractionJob) -> ExtractionJob:
        """Return the handle whose record is written down for a job."""
        return self._leaders.get(job, job)

    def owns(self, job: ExtractionJob) -> bool:
        """Return whether the job is this process's to move."""
        return self.journal is None or self.journal.owns(job.record.id)

    async def _write_down(self, job: ExtractionJob) -> None:
        try:
            await self.save(job)
        except JournalError as error:
            # No traceback: its frames hold webhook tokens.
            _log.log(
                logging.DEBUG if self._is_failing else logging.ERROR,
                "%s was not written to the journal: %s",
                job.title,
                error,
            )
            self._is_failing = True
            if self.owns(job):
                self._fail(job)
            elif not job.done():
                self._lost(job)
        else:
            self._is_failing = False

    def _fail(self, job: ExtractionJob) -> None:
        self._failed[job.record.id] = job
        self._bell.ring()

    def way_out(self, job: ExtractionJob, *, seen: str = "") -> str:
        """Return what the user of a job can do whose answer was lost, and what was seen of it."""
        taken = "session.attach(task_id)"
        if self.journal is not None:
            taken = f"await session.bind({job.record.id!r}, task_id)"
        return (
            "It may be running and paid for, so it is not sent again by itself. "
            f"{seen}Look for it in the MusicGPT dashboard and take it up with {taken}, or submit "
            "it again with force=True if it is not there."
        )

    async def _renew(self, journal: Journal) -> None:
        try:
            await journal.renew()
        except JournalError as error:
            _log.warning("The journal's leases could not be renewed: %s", error)


def _as_it_stood(record: JobRecord) -> JobRecord:
    if record.state is not JobState.RELEASED:
        return record
    if record.task_id is not None:
        return attrs.evolve(record, state=JobState.WAITING)
    sent = record.sent_at is not None
    return attrs.evolve(record, state=JobState.DELIVERED if sent else JobState.QUEUED)


def _is_let_go(record: JobRecord) -> bool:
    """Return whether any process may take the job up: not while its answer may come, to be kept."""
    released = record.state is JobState.RELEASED
    may_be_answered = released and record.sent_at is not None and record.task_id is None
    return record.state in _LET_GO and not may_be_answered
