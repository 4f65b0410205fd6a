"""The durable record of every job: what was submitted, and what became of it.

One file of SQLite (or one PostgreSQL database) is shared by any number of processes. Each job has
at most one owner at a time, whose lease runs out unless it is renewed; only the owner may write. An
owner that has died on this machine is not waited for.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread
import attrs

from musicgpt_async._io import processes
from musicgpt_async._io.account_connection import AccountConnection
from musicgpt_async._io.account_statements import load_account_statements
from musicgpt_async._io.account_table import AccountTable
from musicgpt_async._io.database import parse_database_url
from musicgpt_async._io.file_engine import FileEngine, Work
from musicgpt_async._io.forwarding import HANDED_OVER, Forwarding
from musicgpt_async._io.job_table import ClaimedJob, JobTable, find_dead_owners
from musicgpt_async._io.notifications import Notifications
from musicgpt_async._io.server_settings import ServerSettings, read_server_settings
from musicgpt_async._io.statements import Statements
from musicgpt_async._io.transactions import Transactions
from musicgpt_async._rules import records
from musicgpt_async.errors import InvalidOptionError, JournalError
from musicgpt_async.models import JobRecord, JobState

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["Claim", "ClaimLostError", "Journal", "Lease"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

FILE_SITE = "file"  # a journal in a file is used by the processes of one machine
SERVER_LEASE, FILE_LEASE = 15.0, 60.0  # seconds
# Finished jobs that are remembered to be this journal's, the newest ones.
MAX_FINISHED = 1 << 16


@attrs.frozen(kw_only=True)
class Lease:
    """Who works on a job.

    Attributes:
        owner: Host, boot and process namespace, process id, its start and a random part, separated
            by colons.
        until: When the lease runs out, in seconds since the epoch, by the journal's clock.
        seconds_left: Seconds until then.
        is_live: Whether it holds now; otherwise any process may take the job over. It does not if
            its process has died on this machine, as far as that can be seen (on Linux).
        is_own: Whether the asking journal holds it.
    """

    owner: str
    until: float
    seconds_left: float = attrs.field(eq=False)
    is_live: bool
    is_own: bool


class ClaimLostError(JournalError):
    """The job is not this session's to write any more."""


@attrs.define(eq=False)
class Claim:
    """The right to write the record of one job: made by the journal alone, moved, never copied.

    Of all sessions on a journal, in this process and in others, one has the claim of a job. It
    saves the job and receives its webhooks; the others follow.

    Attributes:
        id: The record's own name for the job.
        is_here: Whether the job's paths lead to files of this machine.
        released_to: The dead owner that an adopted job is of again once it is released, so that
            another process adopts it if this one leaves.
    """

    id: str
    _journal: Journal = attrs.field(repr=False)
    is_here: bool = True
    released_to: str | None = attrs.field(default=None, repr=False)

    async def save(
        self, record: JobRecord, *, release: bool = False, beside: Work[None] | None = None
    ) -> None:
        """Save the job; `release` gives the claim back with it.

        Args:
            record: The job.
            release: Whether to give the claim back with it.
            beside: What else is done in the same transaction.

        Raises:
            ClaimLostError: The claim was given back, or another process has taken the job over.
            JournalError: It could not be saved.
        """
        await self._journal._save_claimed(self, record, release=release, beside=beside)

    def drop(self) -> None:
        """Let another session of this process have the job."""
        self._journal._drop_claim(self)

    def forget_former_owner(self) -> None:
        """Prevent adoption of the job after its release: it ended by a fault of its own."""
        self.released_to = None


class Journal:
    """The durable record of jobs, shared by all processes that open it.

    Args:
        path: A file on a local disk, which is created if it does not exist, or a SQLAlchemy URL
            such as ``postgresql+asyncpg://user@host/database``.
        site: The name of the machine, or of all machines on which the paths of sources and outputs
            lead to the same files; by default the host's name. No effect for a file.
        lease: Seconds after which another process may take over a job whose owner is silent. The
            jobs of a process that has died on this machine are free at once. By default 15 on a
            server and 60 in a file.

    Raises:
        ConfigurationError: The extra ``journal`` or a database driver is not installed, or the
            URL is neither SQLite's nor PostgreSQL's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        site: str | None = None,
        lease: float | None = None,
    ) -> None:
        self._database = parse_database_url(os.fspath(path))
        self._site = site
        self._lease = lease or (FILE_LEASE if self._database.file else SERVER_LEASE)
        self._owner_id = ""
        self._owned: set[str] = set()
        self._finished: dict[str, None] = {}
        self._claims: dict[str, Claim] = {}
        self._openings = 0
        self._opening = anyio.Lock()
        self._open_parts: _Parts | None = None
        self._secret = ""

    def __repr__(self) -> str:
        return f"<Journal {self._database.name}>"

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def _open(self) -> Self:
        """Open the journal, creating it if it does not exist; each call needs a `_close`.

        Raises:
            ConfigurationError: The URL of a server cannot be read.
            JournalError: It cannot be used; what was there is byte for byte as it was.
        """
        async with self._opening:
            if self._open_parts is None:
                sql = await self._database.statements()
                with self._database.map_errors():
                    engine = await self._database.connect(sql)
                self._open_parts = await self._make_parts(sql, engine)
            else:
                # Another session may have limited the waits while it left.
                self._open_parts.transactions.wait_as_usual()
            self._openings += 1
        return self

    async def _make_parts(self, sql: Statements, engine: AsyncEngine | FileEngine) -> _Parts:
        database, on_server = self._database, self._database.file is None
        self._owner_id = await anyio.to_thread.run_sync(processes.process_identity)
        transactions = Transactions(
            database, engine, sql, owner_id=self._owner_id, lease=self._lease
        )
        try:
            (self._secret,) = await transactions.read(sql.secret, {}, lambda row: row.secret)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await transactions.close()
            raise
        site = self._site or (socket.gethostname() if on_server else FILE_SITE)
        return _Parts(
            sql,
            transactions,
            JobTable(sql, database.name, self._owner_id, site, transactions.grace),
            Forwarding(transactions, sql, on_server=on_server),
            Notifications(engine),
        )

    async def _close(self) -> None:
        """Close the journal and give back its leases, once all who opened it have closed it."""
        with anyio.CancelScope(shield=True):
            async with self._opening:
                self._openings = max(0, self._openings - 1)
                parts = self._open_parts
                if self._openings or parts is None:
                    return
                try:
                    await self._write(parts.table.release_all)
                except JournalError as error:
                    logger.warning("Leases were not given back, they run out instead: %s", error)
                finally:
                    self._open_parts = None
                    self._owned.clear()
                    self._finished.clear()
                    self._claims.clear()
                    await parts.notifications.close()
                    await parts.transactions.close()

    async def _add_or_get(
        self,
        record: JobRecord,
        *,
        account: str | None = None,
        force: bool = False,
        retry_failed: bool = True,
        followed: str | None = None,
    ) -> tuple[JobRecord, bool]:
        """Insert a job before anything is sent, or return the record with the same fingerprint.

        Returns:
            The record, and whether it was inserted. If not, the existing record blocks a new
            submission; its lease is acquired if it is free: see `_owns`.

        Raises:
            JournalError: It could not be written.
        """

        async def work(connection: AsyncConnection) -> tuple[JobRecord, bool, bool]:
            return await self._table.add_or_get(
                connection,
                record,
                account=account,
                force=force,
                retry_failed=retry_failed,
                followed=followed,
            )

        found, new, owned = await self._write(work)
        if owned:
            self._owned.add(found.id)
        return found, new

    async def _save(
        self,
        record: JobRecord,
        *,
        release: bool = False,
        released_to: str | None = None,
        beside: Work[None] | None = None,
    ) -> None:
        """Save a job that this journal owns.

        Args:
            record: The job.
            release: Whether to give its lease back with it, so that any process may take it.
            released_to: The dead owner to assign it to then, for another process to adopt.
            beside: What else is done in the same transaction, if the job is this journal's.

        Raises:
            JournalError: Another process has taken the job over, or it could not be written.
        """

        async def work(connection: AsyncConnection) -> bool:
            is_saved = await self._table.save(
                connection, record, release=release, released_to=released_to
            )
            if is_saved and beside is not None:
                await beside(connection)
            return is_saved

        saved = await self._write(work)
        self._disown(record.id)
        if saved and not release:
            self._own(record)
        if not saved:
            self._claims.pop(record.id, None)
            raise ClaimLostError(
                f"The job {record.id} is not this process's any more: its lease ran out and "
                f"another process has taken it over, or it is not in the journal "
                f"{self._database.name}. Nothing was written; leave the job to its owner."
            )

    async def _register(
        self,
        record: JobRecord,
        *,
        account: str | None = None,
        force: bool = False,
        retry_failed: bool = True,
        followed: str | None = None,
    ) -> tuple[JobRecord, Claim | None, bool]:
        """Save a new job, or return the one that is there: see `_add_or_get`.

        Returns:
            The record, its claim unless another session or process has it, and whether it is new.

        Raises:
            JournalError: It could not be written.
        """
        found, new = await self._add_or_get(
            record, account=account, force=force, retry_failed=retry_failed, followed=followed
        )
        has_failed = found.state is JobState.FAILED
        return found, None if has_failed else self._make_claim(found.id), new

    async def _claim_one(self, id: str) -> Claim | None:  # noqa: A002 - the record's own name
        """Return the claim of a job, ``None`` while another session or process has it.

        Raises:
            JournalError: It could not be written.
        """

        async def work(connection: AsyncConnection) -> ClaimedJob | None:
            return await self._table.claim_one(connection, id)

        claimed = await self._write(work)
        if claimed is None:
            return None
        self._owned.add(id)
        return self._make_claim(id, is_here=claimed.is_here)

    async def _claim_all(self, account: str | None = None) -> list[tuple[JobRecord, Claim]]:
        """Take the unfinished jobs that no session works on, the oldest first: see `_claim`."""
        return self._make_claims(await self._claim_jobs(account=account))

    async def _adopt(self, account: str) -> list[tuple[JobRecord, Claim]]:
        """Renew all leases, and take the jobs of an account whose owners have died.

        A job that was delivered can be continued in any process. One that is still to be sent or
        downloaded needs the files of its site.

        Raises:
            JournalError: It could not be written.
        """

        async def work(connection: AsyncConnection) -> list[ClaimedJob]:
            return await self._table.adopt(connection, account)

        found = await self._write(work)
        self._owned.update(each.record.id for each in found)
        return self._make_claims(found, are_adopted=True)

    def _make_claims(
        self, jobs: Iterable[ClaimedJob], *, are_adopted: bool = False
    ) -> list[tuple[JobRecord, Claim]]:
        claims = []
        for each in jobs:
            released_to = each.former_owner if are_adopted else None
            _claim = self._make_claim(each.record.id, is_here=each.is_here, released_to=released_to)
            if _claim is not None:
                claims.append((each.record, _claim))
        return claims

    async def _hand_over(self, record: JobRecord) -> None:
        """Send the id of a job's task to the process that has taken the job over.

        Raises:
            JournalError: It could not be written.
        """
        task_id = record.task_id
        if task_id is None:
            return

        async def work(connection: AsyncConnection) -> None:
            if await self._table.hand_over(connection, record.id, task_id):
                await self._forwarding.add(
                    connection, HANDED_OVER + record.id, {"task_id": task_id}
                )

        await self._write(work)

    async def _save_claimed(
        self, _claim: Claim, record: JobRecord, *, release: bool, beside: Work[None] | None
    ) -> None:
        """Save a job for the holder of its claim: see `Claim.save`."""
        if self._claims.get(_claim.id) is not _claim or record.id != _claim.id:
            raise ClaimLostError(
                f"The job {record.id} is not this session's any more; nothing was written."
            )
        await self._save(record, release=release, released_to=_claim.released_to, beside=beside)
        if release:
            self._drop_claim(_claim)

    def _drop_claim(self, _claim: Claim) -> None:
        """Forget a claim, so that another session of this process may have the job."""
        if self._claims.get(_claim.id) is _claim:
            del self._claims[_claim.id]

    def _make_claim(
        self, id_: str, *, is_here: bool = True, released_to: str | None = None
    ) -> Claim | None:
        if id_ in self._claims or not self._owns(id_):
            return None
        _claim = self._claims[id_] = Claim(id_, self, is_here, released_to)
        return _claim

    async def _bind_claimed(self, id: str, task_id: str) -> tuple[JobRecord, Claim]:  # noqa: A002
        """Assign the task that was found to a job, and take its claim: see `_bind`.

        Raises:
            InvalidOptionError: As in `_bind`; nothing was written.
        """
        if id in self._claims:
            raise InvalidOptionError(
                f"A session of this process still follows the job {id}; nothing was changed."
            )
        record = await self._bind(id, task_id)
        _claim = self._make_claim(id)
        if _claim is None:
            raise InvalidOptionError(f"A session of this process follows the job {id} by now.")
        return record, _claim

    async def _bind(self, id: str, task_id: str) -> JobRecord:  # noqa: A002 - the record's own name
        """Assign the task that was found to a job whose response was lost, and take its lease.

        Returns:
            The job, as it is saved now.

        Raises:
            InvalidOptionError: There is no such job, it has a task, it was never delivered, it
                is another process's, or the task is another job's; nothing was written.
        """

        async def work(connection: AsyncConnection) -> JobRecord | str:
            return await self._table.bind(connection, id, task_id)

        bound = await self._write(work)
        if isinstance(bound, str):
            raise InvalidOptionError(
                f"The job {id} cannot be given the task {task_id}: {bound}. Nothing was changed; "
                "`musicgpt-async jobs` lists the jobs of a journal and their ids."
            )
        self._owned.add(id)
        return bound

    async def _assign_number(self, task_id: str, collision_key: str) -> int:
        """Number a task among those whose files have the same names, from 1; it keeps its number.

        Raises:
            JournalError: It could not be written.
        """

        async def work(connection: AsyncConnection) -> int:
            return await self._table.assign_number(connection, task_id, collision_key)

        return await self._write(work)

    async def _claim(
        self, *, states: Collection[JobState] | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        """Take over unfinished jobs without an owner, or whose owner died or let its lease expire.

        Args:
            states: Only jobs in these states.
            limit: Jobs, at most.

        Returns:
            The jobs, the oldest first.
        """
        return [each.record for each in await self._claim_jobs(states=states, limit=limit)]

    async def _claim_jobs(
        self,
        *,
        account: str | None = None,
        states: Collection[JobState] | None = None,
        limit: int | None = None,
    ) -> list[ClaimedJob]:
        async def work(connection: AsyncConnection) -> list[ClaimedJob]:
            return await self._table.claim(connection, account=account, states=states, limit=limit)

        found = await self._write(work)
        self._owned.update(each.record.id for each in found)
        return found

    async def _renew(self) -> None:
        """Extend every lease of this journal from now on."""
        await self._write(_do_nothing)

    async def _release(self, id: str) -> None:  # noqa: A002 - the record's own name for it
        """Give the lease of a job back, so that any process may take it."""

        async def work(connection: AsyncConnection) -> None:
            await self._table.release(connection, id)

        await self._write(work)
        self._disown(id)

    def _give_up_after(self, seconds: float) -> None:
        """Limit the time of writes from now on, if no other session uses the journal."""
        if self._openings <= 1 and self._open_parts is not None:
            self._open_parts.transactions.give_up_after(seconds)

    def _owns(self, id: str) -> bool:  # noqa: A002 - the record's own name for it
        """Return whether this journal holds the job's lease, as far as it knows."""
        return id in self._owned or id in self._finished

    async def records(self) -> AsyncIterator[JobRecord]:
        """Read every job, the oldest first, a page at a time."""
        last = 0
        while found := await self._read(self._sql.page, {"last": last}, self._decode_numbered):
            for last, record in found:  # noqa: B007 - the next page starts behind it
                if record is not None:
                    yield record

    async def _find(self, id_or_task_id: str) -> JobRecord | None:
        """Read the job with this id or task_id, the newest if there are several."""
        found = await self._read(
            self._sql.find, {"key": id_or_task_id, "grace": 0.0}, self._table.decode
        )
        return found[0] if found else None

    async def _owners(self) -> dict[str, Lease]:
        """Read who works on which job: id → lease, for every job that has an owner."""

        def lease(row: sa.Row[Any]) -> tuple[str, Lease]:
            return row.id, Lease(
                owner=row.owner,
                until=row.lease_until,
                seconds_left=row.seconds_left,
                is_live=bool(row.is_live),
                is_own=row.owner == self._owner_id,
            )

        leases = dict(await self._read(self._sql.owned, {}, lease))
        dead = await find_dead_owners(
            {each.owner for each in leases.values() if each.is_live and not each.is_own}
        )
        return {
            id_: attrs.evolve(each, is_live=False) if each.owner in dead else each
            for id_, each in leases.items()
        }

    def _decode_numbered(self, row: sa.Row[Any]) -> tuple[int, JobRecord | None]:
        return row.seq, self._table.decode_if_readable(row)

    def _disown(self, id_: str) -> None:
        self._owned.discard(id_)
        self._finished.pop(id_, None)

    def _own(self, record: JobRecord) -> None:
        if records.is_unfinished(record):
            self._owned.add(record.id)
            return
        # It may be downloaded once more; but a session may live for months.
        self._finished[record.id] = None
        if len(self._finished) > MAX_FINISHED:
            del self._finished[next(iter(self._finished))]

    async def _read_server_settings(self) -> ServerSettings | None:
        """Return what the server promises, ``None`` for a file."""
        if self._database.file is not None:
            return None
        return await self._write(read_server_settings)

    async def _read_webhooks(self, most: int) -> list[tuple[float, bool]]:
        """Read of the latest finished jobs with webhooks when each was submitted, and if it came.

        A webhook that came only after a poll had found the end is not known here.
        """
        return await self._read(
            self._sql.webhooks,
            {"max_rows": most},
            lambda row: (float(row.created_at), bool(row.has_arrived)),
        )

    def _account_table(self, account: str, hold_time: float) -> AccountTable:
        """Return what an account's processes share in this journal: see `AccountTable`."""
        sql = load_account_statements(on_server=self._database.file is None)
        grace = self._transactions.grace
        return AccountTable(sql, account, self._owner_id, hold_time, grace)

    def _account_connection(self) -> AccountConnection:
        """Return a connection for what needs none of the journal's transactions."""
        return AccountConnection(self._database)

    async def _write(self, work: Work[T]) -> T:
        return await self._transactions.write(work)

    async def _read(
        self, statement: sa.Select[Any], values: Mapping[str, Any], decode: Callable[[Any], T]
    ) -> list[T]:
        return await self._transactions.read(statement, values, decode)

    @property
    def _sql(self) -> Statements:
        return self._parts.sql

    @property
    def _transactions(self) -> Transactions:
        return self._parts.transactions

    @property
    def _table(self) -> JobTable:
        return self._parts.table

    @property
    def _forwarding(self) -> Forwarding:
        return self._parts.forwarding

    @property
    def _notifications(self) -> Notifications:
        return self._parts.notifications

    @property
    def _parts(self) -> _Parts:
        if self._open_parts is None:
            raise JournalError(f"The journal {self._database.name} is not open.")
        return self._open_parts


@attrs.frozen
class _Parts:
    """What an open journal consists of."""

    sql: Statements
    transactions: Transactions
    table: JobTable
    forwarding: Forwarding
    notifications: Notifications


async def _do_nothing(_: AsyncConnection) -> None:
    """Do nothing more: each transaction renews the lease."""
