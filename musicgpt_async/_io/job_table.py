"""Operations on the jobs in the journal's tables, each within the caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import attrs

from musicgpt_async._io import processes
from musicgpt_async._io.file_engine import run_off_loop
from musicgpt_async._io.job_rows import decode_record, encode_record
from musicgpt_async._io.statements import Statements
from musicgpt_async._io.transactions import decode_rows
from musicgpt_async._rules import records
from musicgpt_async.errors import JournalError
from musicgpt_async.models import JobRecord, JobState

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection

_log = logging.getLogger(__name__)

NO_LIMIT = 2**63 - 1


@attrs.frozen
class ClaimedJob:
    """A job that was taken over.

    Attributes:
        record: The job.
        former_owner: Who had it before.
        is_here: Whether its paths lead to files of this machine.
    """

    record: JobRecord
    former_owner: str | None
    is_here: bool

    @property
    def can_go_on(self) -> bool:
        """Whether no file of another machine is needed for what comes next."""
        is_over = self.record.state is JobState.COMPLETED
        return self.is_here or (records.was_delivered(self.record) and not is_over)


@attrs.frozen
class JobTable:
    """The jobs in the journal, as one owner sees them.

    Args:
        sql: The journal's statements.
        name: What messages call the journal.
        owner_id: The name of the owner in it.
        site: Where this process runs; the paths of its jobs are good there.
        grace: Returns for how many seconds leases of others hold after they ran out.
    """

    _sql: Statements
    _name: str
    _owner_id: str
    _site: str
    _grace: Callable[[], float]

    async def add_or_get(
        self,
        connection: AsyncConnection,
        record: JobRecord,
        *,
        account: str | None,
        force: bool,
        retry_failed: bool,
        followed: str | None,
    ) -> tuple[JobRecord, bool, bool]:
        """Add a job, unless the same one is there already.

        Returns:
            The record; whether it is new; whether this owner has it.
        """
        values = {"key": record.fingerprint, "grace": self._grace()}
        rows = () if force else await connection.execute(self._sql.by_fingerprint, values)
        for row in rows:
            found = self.decode(row)
            has_failed = found.state is JobState.FAILED and found.task_id is not None
            if has_failed and (found.id == followed or not retry_failed):
                return found, False, False
            if not records.may_be_submitted_again(found):
                is_own = row.owner == self._owner_id
                if not is_own and await self._is_free(row):
                    await self._acquire(connection, found.id)
                    is_own = True
                return found, False, is_own
        facts = {"owner": self._owner_id, "account": account, "site": self._site}
        await connection.execute(self._sql.insert, {**encode_record(record), **facts})
        return record, True, True

    async def save(
        self,
        connection: AsyncConnection,
        record: JobRecord,
        *,
        release: bool,
        released_to: str | None = None,
    ) -> bool:
        """Save a job of this owner; return False if it is not its own.

        Args:
            connection: Its transaction.
            record: The job.
            release: Whether any process may have it then.
            released_to: Who it belongs to then.
        """
        owner = released_to if release else self._owner_id
        values = {**encode_record(record), **self._bind_params(record.id), "owner": owner}
        return (await connection.execute(self._sql.save, values)).rowcount == 1

    async def claim_one(self, connection: AsyncConnection, job_id: str) -> ClaimedJob | None:
        """Take a job over if it is free and can be continued here; return ``None`` if not."""
        row = await self._row_of(connection, job_id)
        if row is None or row.id != job_id:
            return None
        if row.owner != self._owner_id and not await self._is_free(row):
            return None
        claimed = self._decode_claimed(row)
        if claimed is not None and not claimed.can_go_on:
            return None
        await self._acquire(connection, job_id)
        return claimed

    async def claim(
        self,
        connection: AsyncConnection,
        *,
        account: str | None,
        states: Collection[JobState] | None,
        limit: int | None,
    ) -> list[ClaimedJob]:
        """Take over unfinished jobs without an owner; return them, the oldest first."""
        values = {
            "grace": self._grace(),
            "this_site": self._site,
            "of_account": account,
            "every": states is None,
            "states": [str(state) for state in (JobState if states is None else states)],
            "max_rows": NO_LIMIT if limit is None else limit,
        }
        await self._delete_dead_owners(connection)
        rows = await connection.execute(self._sql.claimable, values)
        found = await decode_rows(rows, self._decode_claimed)
        owner = {"owner_id": self._owner_id}
        await connection.execute(self._sql.acquire_claimable, {**values, **owner})
        await connection.execute(self._sql.delete_expired_owners, values)
        return [each for each in found if each is not None]

    async def adopt(self, connection: AsyncConnection, account: str) -> list[ClaimedJob]:
        """Take over dead owners' jobs that can be continued here; return them, oldest first."""
        values = {"grace": self._grace(), "this_site": self._site, "of_account": account}
        await self._delete_dead_owners(connection)
        rows = await connection.execute(self._sql.adoptable, values)
        found = await decode_rows(rows, self._decode_claimed)
        adopted = [each for each in found if each is not None]
        for each in adopted:
            await self._acquire(connection, each.record.id)
        await connection.execute(self._sql.delete_expired_owners, values)
        return adopted

    def _decode_claimed(self, row: sa.Row[Any]) -> ClaimedJob | None:
        record = self.decode_if_readable(row)
        is_here = row.site is None or row.site == self._site
        return None if record is None else ClaimedJob(record, row.owner, is_here)

    async def hand_over(self, connection: AsyncConnection, job_id: str, task_id: str) -> bool:
        """Note the task of a job that another owner has by now; return whether it needs it."""
        values = {"key": job_id, "task": task_id}
        return (await connection.execute(self._sql.set_candidate, values)).rowcount == 1

    async def release(
        self, connection: AsyncConnection, job_id: str, *, released_to: str | None = None
    ) -> None:
        """Let any owner have a job of this one's."""
        values = {**self._bind_params(job_id), "released_to": released_to}
        await connection.execute(self._sql.release, values)

    async def release_all(self, connection: AsyncConnection) -> None:
        """Free the jobs of this owner: a job whose owner has no row is free."""
        await connection.execute(self._sql.delete_owner, {"owner_id": self._owner_id})

    async def bind(self, connection: AsyncConnection, job_id: str, task_id: str) -> JobRecord | str:
        """Give a job the task that was found for it, and take it over.

        Returns:
            The record as it is saved now, or why nothing was changed.
        """
        found = await self._row_of(connection, job_id)
        other = await self._row_of(connection, task_id)
        if found is None or found.id != job_id:
            return f"the journal {self._name} has no job {job_id!r}"
        record = self.decode(found)
        if found.owner != self._owner_id and not await self._is_free(found):
            return "another process is working on it"
        if found.task_id == task_id:  # bound before, by a command that was broken off
            await self._acquire(connection, job_id)
            return record
        if refusal := records.why_not_bindable(record):
            return refusal
        if other is not None and other.task_id == task_id:
            return f"that task is the job {other.id}'s"
        record = attrs.evolve(
            record,
            state=JobState.PROCESSING,
            task_id=task_id,
            accepted_at=record.sent_at,
            error=None,
        )
        await self._acquire(connection, job_id)
        await self.save(connection, record, release=False)
        return record

    async def assign_number(
        self, connection: AsyncConnection, task_id: str, collision_key: str
    ) -> int:
        """Number a task among those whose files have the same names, from 1."""
        about = {"key": collision_key, "task": task_id}
        number: int | None = await connection.scalar(self._sql.number_of, about)
        if number is None:
            number = 1 + (await connection.scalar(self._sql.max_number, about) or 0)
            values = {"place": collision_key, "number": number, "task_id": task_id}
            await connection.execute(self._sql.add_number, values)
        return number

    def decode(self, row: sa.Row[Any]) -> JobRecord:
        """Decode a row.

        Raises:
            JournalError: The row is invalid. The error names its job; other jobs are not affected.
        """
        try:
            return decode_record(row)
        except (TypeError, ValueError, AttributeError) as error:
            raise JournalError(
                f"The job {row.id} in the journal {self._name} cannot be read ({error}). "
                "The others can; repair its row, or submit its track again with force=True."
            ) from error

    def decode_if_readable(self, row: sa.Row[Any]) -> JobRecord | None:
        """Decode a row; log an error and return ``None`` if it cannot be read."""
        try:
            return self.decode(row)
        except JournalError as error:
            _log.error("%s", error)
            return None

    async def _is_free(self, row: sa.Row[Any]) -> bool:
        return bool(row.free or await find_dead_owners([row.owner]))

    async def _acquire(self, connection: AsyncConnection, job_id: str) -> None:
        await connection.execute(self._sql.acquire, self._bind_params(job_id))

    def _bind_params(self, job_id: str) -> dict[str, str]:
        return {"key": job_id, "owner_id": self._owner_id}

    async def _row_of(self, connection: AsyncConnection, key: str) -> sa.Row[Any] | None:
        found = await connection.execute(self._sql.find, {"key": key, "grace": self._grace()})
        row: sa.Row[Any] | None = found.first()
        return row

    async def _delete_dead_owners(self, connection: AsyncConnection) -> None:
        """Delete owners that died on this machine, so that their leases need not run out."""
        others = await connection.execute(self._sql.other_owners, {"owner_id": self._owner_id})
        for owner in await find_dead_owners([row.id for row in others]):
            await connection.execute(self._sql.delete_owner, {"owner_id": owner})


async def find_dead_owners(owners: Collection[str]) -> Collection[str]:
    """Return the owners whose processes certainly ran and died on this machine."""
    return await run_off_loop(processes.dead_processes, owners) if owners else ()
