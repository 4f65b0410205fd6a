"""JobStore: saves jobs to the journal, and renews their leases.

Without a journal it only remembers which job has which of the caller's keys, for as long as the
session is open, since a key must never be paid for twice. Only the holder of a job's claim can save
it: a handle that follows another job has no claim, so it cannot overwrite that job.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import anyio
import attrs

from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.wakeup import Wakeup
from musicgpt_async._io.file_engine import Work
from musicgpt_async._io.forwarding import HANDED_OVER
from musicgpt_async._rules import records
from musicgpt_async._rules.fingerprint import is_keyed
from musicgpt_async._rules.lifecycle import Effect
from musicgpt_async.errors import JournalError
from musicgpt_async.journal import Claim, ClaimLostError, Journal
from musicgpt_async.models import JobRecord, JobState

T = TypeVar("T")
Write = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)

RETRY_INTERVAL = 1.0  # seconds between tries after a save failed


@attrs.define(eq=False, kw_only=True)
class _KeyClaim(Claim):
    """The claim of a key in a session without a journal; dropping it restores the holder before."""

    _journal: Any = attrs.field(default=None, init=False, repr=False)
    _by_key: dict[str, Job] = attrs.field(repr=False)
    _fingerprint: str
    _holder: Job

    async def save(
        self, record: JobRecord, *, release: bool = False, beside: Work[None] | None = None
    ) -> None:
        """There is nothing to save to."""

    def drop(self) -> None:
        """Give the key back to the job that had it before."""
        self._by_key[self._fingerprint] = self._holder


@attrs.define(eq=False)
class _Unsaved:
    """What one flush did not save.

    Attributes:
        lost: Jobs that another process has taken over.
        jobs: Jobs to try again.
        writes: Other writes to try again.
    """

    lost: list[Job] = attrs.field(factory=list)
    jobs: dict[str, Job] = attrs.field(factory=dict)
    writes: list[Write] = attrs.field(factory=list)


class JobStore:
    """Saves jobs, at once or in the background.

    Args:
        journal: The durable record, if there is one.
        account: The digest of the account that its jobs belong to.
    """

    def __init__(self, journal: Journal | None, *, account: str = "") -> None:
        self.journal = journal
        self.account = account
        self._dirty: dict[str, Job] = {}
        self._by_key: dict[str, Job] = {}
        self._beside: dict[str, Work[None]] = {}
        self._writes: list[Write] = []
        self._is_failing = False  # logged once, not for each job and second
        self._flushing = anyio.Lock()
        self._wakeup = Wakeup()

    def on_change(self, job: Job, effects: Effect) -> None:
        """Save a job later, if a change asks for it."""
        if Effect.SAVE in effects:
            self.save_later(job)
        if job.claim is None:  # it will not be saved
            self.forget_beside(job.record.id)

    def may_write(self, job: Job) -> bool:
        """Return whether a job is this session's to save, and to receive webhooks for."""
        return self.journal is None or job.claim is not None

    async def add_or_get(
        self, job: Job, *, force: bool, retry_failed: bool = True, followed: str | None = None
    ) -> tuple[JobRecord, Claim | None] | None:
        """Save a job before anything is sent.

        Args:
            job: It is new.
            force: Whether to save it though the journal has the same track.
            retry_failed: Whether to save it though MusicGPT failed the same track before.
            followed: The record that it follows, whose failure is its own.

        Returns:
            The record that the journal already has of the same track with the same options, and
            its claim unless another handle or process has it; ``None`` if the job was new and is
            saved now.
        """
        if self.journal is None:
            return self._add_or_get_by_key(
                job, force=force, retry_failed=retry_failed, followed=followed
            )
        record, claim, is_new = await self.journal._register(
            job.record,
            account=self.account,
            force=force,
            retry_failed=retry_failed,
            followed=followed,
        )
        if not is_new:
            return record, claim
        self.give_claim(job, claim)
        return None

    def _add_or_get_by_key(
        self, job: Job, *, force: bool, retry_failed: bool, followed: str | None
    ) -> tuple[JobRecord, Claim | None] | None:
        fingerprint = job.record.fingerprint
        if not is_keyed(fingerprint):
            return None
        holder = self._by_key.get(fingerprint)
        self._by_key[fingerprint] = job
        if holder is None or force:
            return None
        record = holder.record
        has_failed = record.state is JobState.FAILED and record.task_id is not None
        if has_failed and (record.id == followed or not retry_failed):
            self._by_key[fingerprint] = holder
            return record, None
        if records.may_be_submitted_again(record):
            return None
        if not holder.has_ended or holder.is_response_due:
            self._by_key[fingerprint] = holder
            return record, None
        return record, _KeyClaim(
            id=record.id, by_key=self._by_key, fingerprint=fingerprint, holder=holder
        )

    def give_claim(self, job: Job, claim: Claim | None) -> None:
        """Let a job write its record; one that has ended meanwhile is saved as it ended."""
        if claim is not None:
            job.claim = claim
            if job.has_ended:
                self.save_later(job)

    async def find(self, record_id: str) -> JobRecord | None:
        """Read the record with this id."""
        found = None if self.journal is None else await self.journal._find(record_id)
        return found if found is not None and found.id == record_id else None

    async def claim(self, record_id: str) -> Claim | None:
        """Claim a record, unless another handle or process has it."""
        return None if self.journal is None else await self.journal._claim_one(record_id)

    async def reclaim(self, job: Job) -> None:
        """Let a finished job write once more, unless another handle or process does."""
        if not self.may_write(job):
            claim = await self.claim(job.record.id)
            if claim is not None:  # of two downloads at once one has got it
                job.claim = claim

    async def save(self, job: Job) -> None:
        """Save a job and wait until it is durable.

        Raises:
            ClaimLostError: Another process has taken it over.
            JournalError: It could not be saved.
        """
        self._dirty.pop(job.record.id, None)
        claim, record = job.claim, job.record
        if self.journal is None or claim is None:
            return
        release = job.is_free
        beside = self._beside.get(record.id)
        await claim.save(record, release=release, beside=beside)
        if beside is not None and self._beside.get(record.id) is beside:
            del self._beside[record.id]
        if release:
            job.claim = None
            # Meanwhile a download began, or there is more to save.
            if not job.is_free or record.id in self._dirty:
                await self.reclaim(job)

    async def save_now_or_later(self, job: Job) -> None:
        """Save a job and wait until it is durable; if that fails, retry in the background.

        Raises:
            JournalError: It could not be saved yet.
        """
        try:
            await self.save(job)
        except JournalError:
            self._dirty[job.record.id] = job
            self._retry_soon()
            raise

    def _retry_soon(self) -> None:
        self._wakeup.set_at(anyio.current_time() + RETRY_INTERVAL)

    def save_later(self, job: Job) -> None:
        """Save a job in the background: its facts can be polled from MusicGPT again."""
        if self.journal is not None and job.claim is not None:
            self._dirty[job.record.id] = job
            self._wakeup.set()

    def write_beside(self, record_id: str, work: Work[None]) -> None:
        """Do a work in the transaction that saves a record next, in place of an earlier work."""
        self._beside[record_id] = work

    def forget_beside(self, record_id: str) -> None:
        """Remove the work that the next save of a record was to do: it is done, or outdated."""
        self._beside.pop(record_id, None)

    def write_later(self, write: Write) -> None:
        """Write in the transaction that saves jobs next, and again if that fails."""
        self._writes.append(write)
        self._wakeup.set()

    async def write(self, work: Work[T]) -> T:
        """Do a work in a transaction of the journal.

        Raises:
            JournalError: It was not done.
        """
        assert self.journal is not None  # noqa: S101 - only with a journal is there such a work
        return await self.journal._write(work)

    @property
    def renewal_interval(self) -> float:
        """Seconds after which the leases are to be renewed."""
        return math.inf if self.journal is None else self.journal._lease / 3

    async def wait_due(self, until: float) -> None:
        """Wait until something is to be saved, or until a moment of the loop's clock."""
        await self._wakeup.wait(until=until)

    async def renew(self, *, adopt: bool) -> list[tuple[JobRecord, Claim]]:
        """Extend the leases of all jobs of this process.

        Args:
            adopt: Whether to take the jobs of processes that have died.

        Returns:
            The jobs that were taken, and their claims.
        """
        if self.journal is None:
            return []
        try:
            if adopt:
                return await self.journal._adopt(self.account)
            await self.journal._renew()
        except JournalError as error:
            _log.warning("The journal's leases could not be renewed: %s", error)
        return []

    async def find_handed_over(self, record_ids: Collection[str]) -> dict[str, str]:
        """Return the tasks that former owners of these jobs learned: job → task."""
        if self.journal is None or not record_ids:
            return {}
        publics = [HANDED_OVER + each for each in record_ids]
        try:
            found = await self.journal._forwarding.read_for(publics)
        except JournalError as error:
            _log.debug("Tasks that were handed over could not be read: %s", error)
            return {}
        return {
            public.removeprefix(HANDED_OVER): str(payload.get("task_id"))
            for _, public, payload in found
        }

    async def flush(self) -> list[Job]:
        """Save all jobs that have changed, in one commit, because each commit waits for the disk.

        Returns:
            Jobs that another process has taken over.
        """
        unsaved = _Unsaved()
        async with self._flushing:  # what another flush is saving is saved when this returns
            try:
                while self._dirty or self._writes:
                    async with anyio.create_task_group() as saves:
                        for job in tuple(self._dirty.values()):
                            saves.start_soon(self._save, job, unsaved)
                        writes, self._writes = self._writes, []
                        for write in writes:
                            saves.start_soon(self._write, write, unsaved)
            finally:
                self._dirty = {**unsaved.jobs, **self._dirty}
                self._writes = unsaved.writes + self._writes
                if unsaved.jobs or unsaved.writes:
                    self._retry_soon()
        return unsaved.lost

    async def _save(self, job: Job, unsaved: _Unsaved) -> None:
        try:
            await self.save(job)
        except ClaimLostError as error:
            self._log_failure(job.title, error)
            job.claim = None
            unsaved.lost.append(job)
            await self._hand_over(job)
        except JournalError as error:
            self._log_failure(job.title, error)
            unsaved.jobs[job.record.id] = job
        else:
            self._is_failing = False

    async def _hand_over(self, job: Job) -> None:
        """Send the task of a job to the process that has taken the job over."""
        if self.journal is not None and records.is_task_id(job.record.task_id or ""):
            try:
                await self.journal._hand_over(job.record)
            except JournalError as error:
                _log.error("The task of %s was not handed over: %s", job.title, error)

    async def _write(self, write: Write, unsaved: _Unsaved) -> None:
        try:
            await write()
        except asyncio.CancelledError:  # perhaps by code that cancels all tasks: the write is kept
            unsaved.writes.append(write)
            raise
        except JournalError as error:
            self._log_failure("What limits the account", error)
            unsaved.writes.append(write)

    def _log_failure(self, what: str, error: JournalError) -> None:
        # No traceback: its frames hold webhook tokens.
        level = logging.DEBUG if self._is_failing else logging.ERROR
        _log.log(level, "%s was not written to the journal: %s", what, error)
        self._is_failing = True

    def drop_claims(self) -> None:
        """Let other sessions of this process have the jobs that could not be saved."""
        for job in self._dirty.values():
            if job.claim is not None:
                job.claim.drop()
                job.claim = None
