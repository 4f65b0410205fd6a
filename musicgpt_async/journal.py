"""The durable record of every job: what is to be paid for, and what came of it.

One file of SQLite (or one PostgreSQL database) is shared by any number of processes. Each job has
at most one owner at a time, whose lease runs out unless it is renewed; only the owner may write. An
owner that has died on this machine is not waited for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

from musicgpt_async._io import processes
from musicgpt_async._io.database import UNREADABLE, is_busy, parse_database_url
from musicgpt_async._io.journal_file import LOCK_TIMEOUT
from musicgpt_async._io.schema import PAGE_SIZE, Statements
from musicgpt_async._rules import records
from musicgpt_async.errors import InvalidOptionError, JournalError
from musicgpt_async.models import JobRecord, JobState, StemFile, StemLinks

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["Claim", "ClaimLostError", "Journal", "Lease"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")
Work: TypeAlias = "Callable[[AsyncConnection], Awaitable[T]]"
Pending: TypeAlias = "tuple[Work[Any], asyncio.Future[Any]]"

# Columns that hold numbers; SQLite would store a text in them, too.
_NUMBERS = frozenset(
    {"size", "eta", "credit_estimate", "sent_at", "accepted_at", "cost", "duration", "created_at"}
)
NO_LIMIT = 2**63 - 1
# Jobs with nothing left to do that are remembered to be this journal's, the newest ones.
MAX_FINISHED = 1 << 16


@attrs.frozen(kw_only=True)
class Lease:
    """Who works on a job.

    Attributes:
        owner: Host, boot and process namespace, process id, its start and a random part, separated
            by colons.
        until: When the lease runs out, in seconds since the epoch.
        is_live: Whether it holds now; otherwise any process may take the job over. It does not if
            its process has died on this machine, as far as that can be seen (on Linux).
        is_own: Whether the asking journal holds it.
    """

    owner: str
    until: float
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
    """

    id: str
    _journal: Journal = attrs.field(repr=False)

    async def save(self, record: JobRecord, *, release: bool = False) -> None:
        """Save the job; `release` gives the claim back with it.

        Raises:
            ClaimLostError: The claim was given back, or another process has taken the job over.
            JournalError: It could not be saved.
        """
        await self._journal._save_claimed(self, record, release=release)

    def drop(self) -> None:
        """Let another session of this process have the job."""
        self._journal._drop_claim(self)


class Journal:
    """The durable record of jobs, shared by all processes that open it.

    Args:
        path: A file, which is created where there is none, or a SQLAlchemy URL such as
            ``postgresql+asyncpg://user@host/database``. The file has to lie on a local disk.
        lease: Seconds after which another process may take over a job whose owner is silent; one
            that is seen to have died on this machine is taken over from at once.
        clock: Seconds since the epoch.

    Raises:
        ConfigurationError: The extra ``journal`` or a database driver is not installed, or the
            URL is neither SQLite's nor PostgreSQL's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lease: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = parse_database_url(os.fspath(path))
        self._statements: Statements | None = None
        self._lease = lease
        self._clock = clock
        self._owner_id = ""
        self._owned: set[str] = set()
        self._finished: dict[str, None] = {}
        self._claims: dict[str, Claim] = {}
        self._give_up_at = math.inf  # on the loop's clock; when no write waits any more
        self._openings = 0
        self._opening = anyio.Lock()
        self._pending: list[Pending] = []
        self._writer: asyncio.Task[None] | None = None
        self._engine: AsyncEngine | None = None

    def __repr__(self) -> str:
        return f"<Journal {self._database.name}>"

    @property
    def lease(self) -> float:
        """Seconds that a lease holds; a session renews it three times as often."""
        return self._lease

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def open(self) -> Self:
        """Open the journal, creating it where there is none; each call needs an `aclose`.

        Raises:
            ConfigurationError: The URL of a server cannot be read.
            JournalError: It cannot be used; what was there is byte for byte as it was.
        """
        async with self._opening:
            if self._engine is None:
                self._statements = await self._database.statements()
                with self._database.map_errors():
                    self._engine = await self._database.connect(self._sql)
                self._owner_id = await anyio.to_thread.run_sync(processes.process_identity)
            self._openings += 1
        return self

    async def aclose(self) -> None:
        """Close the journal and give back its leases, once everybody who opened it is done."""
        with anyio.CancelScope(shield=True):
            async with self._opening:
                self._openings = max(0, self._openings - 1)
                if self._openings or self._engine is None:
                    return
                engine = self._engine
                try:
                    await self._write(self._release_leases)
                except JournalError as error:
                    logger.warning("Leases were not given back, they run out instead: %s", error)
                finally:
                    self._engine = None
                    self._owned.clear()
                    self._finished.clear()
                    self._claims.clear()
                    self._give_up_at = math.inf
                    await engine.dispose()

    async def _add_or_get(
        self,
        record: JobRecord,
        *,
        force: bool = False,
        retry_failed: bool = True,
        followed: str | None = None,
    ) -> tuple[JobRecord, bool]:
        """Write a job down before anything is sent, unless the same one is there already.

        Returns:
            The record now owned by this journal and true; or the one that stands in its way (it is
            done, running, unknown or expired) and false. Its lease is taken where nobody holds
            it: see `_owns`.

        Raises:
            JournalError: It could not be written.
        """

        async def work(connection: AsyncConnection) -> tuple[JobRecord, bool, bool]:
            values = {"key": record.fingerprint, "now": self._clock()}
            rows = () if force else await connection.execute(self._sql.by_fingerprint, values)
            for row in rows:
                found = self._decode(row)
                has_failed = found.state is JobState.FAILED and found.task_id is not None
                if has_failed and (found.id == followed or not retry_failed):
                    return found, False, False
                if not records.may_be_submitted_again(found):
                    mine = row.owner == self._owner_id
                    if not mine and (row.free or await _dead_owners([row.owner])):
                        await connection.execute(self._sql.acquire, self._bind_params(found.id))
                        mine = True
                    return found, False, mine
            await connection.execute(self._sql.insert, {**_row(record), "owner": self._owner_id})
            return record, True, True

        found, new, owned = await self._write(work)
        if owned:
            self._owned.add(found.id)
        return found, new

    async def _save(self, record: JobRecord, *, release: bool = False) -> None:
        """Write down all that is known of a job that this journal owns.

        Args:
            record: The job.
            release: Whether to give its lease back with it, so that any process may take it.

        Raises:
            JournalError: Another process has taken the job over, or it could not be written.
        """

        async def work(connection: AsyncConnection) -> bool:
            owner = None if release else self._owner_id
            values = {**_row(record), **self._bind_params(record.id), "owner": owner}
            return (await connection.execute(self._sql.save, values)).rowcount == 1

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
            record, force=force, retry_failed=retry_failed, followed=followed
        )
        has_failed = found.state is JobState.FAILED
        return found, None if has_failed else self._make_claim(found.id), new

    async def _claim_one(self, id: str) -> Claim | None:  # noqa: A002 - the record's own name
        """Return the claim of a job, ``None`` while another session or process has it.

        Raises:
            JournalError: It could not be written.
        """

        async def work(connection: AsyncConnection) -> bool:
            row = await self._row_of(connection, id)
            if row is None or row.id != id:
                return False
            if row.owner != self._owner_id and not (row.free or await _dead_owners([row.owner])):
                return False
            await connection.execute(self._sql.acquire, self._bind_params(id))
            return True

        if not await self._write(work):
            return None
        self._owned.add(id)
        return self._make_claim(id)

    async def _claim_all(self) -> list[tuple[JobRecord, Claim]]:
        """Take the unfinished jobs that no session works on, the oldest first: see `_claim`."""
        found = [(record, self._make_claim(record.id)) for record in await self._claim()]
        return [(record, _claim) for record, _claim in found if _claim is not None]

    async def _save_claimed(self, _claim: Claim, record: JobRecord, *, release: bool) -> None:
        """Save a job for the holder of its claim: see `Claim.save`."""
        if self._claims.get(_claim.id) is not _claim or record.id != _claim.id:
            raise ClaimLostError(
                f"The job {record.id} is not this session's any more; nothing was written."
            )
        await self._save(record, release=release)
        if release:
            self._drop_claim(_claim)

    def _drop_claim(self, _claim: Claim) -> None:
        """Forget a claim, so that another session of this process may have the job."""
        if self._claims.get(_claim.id) is _claim:
            del self._claims[_claim.id]

    def _make_claim(self, id_: str) -> Claim | None:
        if id_ in self._claims or not self._owns(id_):
            return None
        _claim = self._claims[id_] = Claim(id_, self)
        return _claim

    async def _bind_claimed(self, id: str, task_id: str) -> tuple[JobRecord, Claim]:  # noqa: A002
        """Give a job the task that was found for it, and take its claim: see `_bind`.

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
        """Give a job whose answer was lost the task that was found for it, and take its lease.

        Returns:
            The job, as it is written down now.

        Raises:
            InvalidOptionError: There is no such job, it has a task, it was never handed over, it is
                another process's, or the task is another job's; nothing was written.
        """

        async def work(connection: AsyncConnection) -> JobRecord | str:
            found = await self._row_of(connection, id)
            other = await self._row_of(connection, task_id)
            if found is None or found.id != id:
                return f"the journal {self._database.name} has no job {id!r}"
            record = self._decode(found)
            if found.owner != self._owner_id and not (
                found.free or await _dead_owners([found.owner])
            ):
                return "another process is working on it"
            if found.task_id == task_id:  # bound before, by a command that was broken off
                await connection.execute(self._sql.acquire, self._bind_params(id))
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
            await connection.execute(self._sql.acquire, self._bind_params(id))
            await connection.execute(
                self._sql.save, {**_row(record), **self._bind_params(id), "owner": self._owner_id}
            )
            return record

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
            about = {"key": collision_key, "task": task_id}
            number: int | None = await connection.scalar(self._sql.number_of, about)
            if number is None:
                number = 1 + (await connection.scalar(self._sql.max_number, about) or 0)
                values = {"place": collision_key, "number": number, "task_id": task_id}
                await connection.execute(self._sql.add_number, values)
            return number

        return await self._write(work)

    async def _claim(
        self, *, states: Collection[JobState] | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        """Take over unfinished jobs that nobody owns, or whose owner died or let its lease run out.

        Args:
            states: Only jobs in these states.
            limit: Jobs, at most.

        Returns:
            The jobs, the oldest first.
        """
        values = {
            "now": self._clock(),
            "every": states is None,
            "states": [str(state) for state in (JobState if states is None else states)],
            "max_rows": NO_LIMIT if limit is None else limit,
        }

        async def work(connection: AsyncConnection) -> list[JobRecord]:
            await self._release_dead_owners(connection)
            rows = await connection.execute(self._sql.claimable, values)
            found = [
                each
                for each in await _decode_rows(rows, self._decode_if_readable)
                if each is not None
            ]
            await connection.execute(
                self._sql.acquire_claimable, {**values, "owner_id": self._owner_id}
            )
            await connection.execute(self._sql.delete_expired_owners, values)
            return found

        found = await self._write(work)
        self._owned.update(record.id for record in found)
        return found

    async def _renew(self) -> None:
        """Extend every lease of this journal from now on."""
        await self._write(_noop)

    async def _release(self, id: str) -> None:  # noqa: A002 - the record's own name for it
        """Give the lease of a job back, so that any process may take it."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self._sql.release, self._bind_params(id))

        await self._write(work)
        self._disown(id)

    def _give_up_after(self, seconds: float) -> None:
        """Have writes wait so long at most from now on, if nobody else uses the journal."""
        if self._openings <= 1:
            self._give_up_at = min(self._give_up_at, anyio.current_time() + seconds)

    def _owns(self, id: str) -> bool:  # noqa: A002 - the record's own name for it
        """Tell whether this journal holds the job's lease, as far as it knows."""
        return id in self._owned or id in self._finished

    async def records(self) -> AsyncIterator[JobRecord]:
        """Read every job, the oldest first, a page at a time."""
        last = 0
        while found := await self._read(self._sql.page, {"last": last}, self._decode_numbered):
            for last, record in found:  # noqa: B007 - the next page starts behind it
                if record is not None:
                    yield record

    async def find(self, id_or_task_id: str) -> JobRecord | None:
        """Read the job with this id or task_id, the newest where there are several."""
        values = {"key": id_or_task_id, "now": self._clock()}
        found = await self._read(self._sql.find, values, self._decode)
        return found[0] if found else None

    async def owners(self) -> dict[str, Lease]:
        """Read who works on which job: id → lease, for every job that has an owner."""
        now = self._clock()

        def lease(row: sa.Row[Any]) -> tuple[str, Lease]:
            until, is_own = row.lease_until, row.owner == self._owner_id
            return row.id, Lease(owner=row.owner, until=until, is_live=until > now, is_own=is_own)

        leases = dict(await self._read(self._sql.owned, {}, lease))
        dead = await _dead_owners(
            {each.owner for each in leases.values() if each.is_live and not each.is_own}
        )
        return {
            id_: attrs.evolve(each, is_live=False) if each.owner in dead else each
            for id_, each in leases.items()
        }

    def _decode(self, row: sa.Row[Any]) -> JobRecord:
        """Decode a row.

        Raises:
            JournalError: It cannot be read; the error names the job, which alone is lost.
        """
        try:
            return _record(row)
        except (TypeError, ValueError, AttributeError) as error:
            raise JournalError(
                f"The job {row.id} in the journal {self._database.name} cannot be read ({error}). "
                "The others can; repair its row, or submit its track again with force=True."
            ) from error

    def _decode_numbered(self, row: sa.Row[Any]) -> tuple[int, JobRecord | None]:
        return row.seq, self._decode_if_readable(row)

    def _decode_if_readable(self, row: sa.Row[Any]) -> JobRecord | None:
        try:
            return self._decode(row)
        except JournalError as error:
            logger.error("%s", error)  # noqa: TRY400 - its words say it all
            return None

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

    def _bind_params(self, id_: str) -> dict[str, str]:
        return {"key": id_, "owner_id": self._owner_id}

    async def _row_of(self, connection: AsyncConnection, key: str) -> sa.Row[Any] | None:
        values = {"key": key, "now": self._clock()}
        row: sa.Row[Any] | None = (await connection.execute(self._sql.find, values)).first()
        return row

    async def _release_dead_owners(self, connection: AsyncConnection) -> None:
        """Take the leases of those who died on this machine: nobody has to wait for their end."""
        others = await connection.execute(self._sql.other_owners, {"owner_id": self._owner_id})
        for owner in await _dead_owners([row.id for row in others]):
            await connection.execute(self._sql.delete_owner, {"owner_id": owner})

    async def _release_leases(self, connection: AsyncConnection) -> None:
        # A job whose owner is not there belongs to nobody.
        await connection.execute(self._sql.delete_owner, {"owner_id": self._owner_id})

    async def _write(self, work: Work[T]) -> T:
        """Have the work done in a transaction that also renews the lease.

        Works that are asked for while another transaction runs share the next one, and its fsync.
        """
        self._require_engine()
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append((work, outcome))
        if self._writer is None or self._writer.done():
            # In nobody's cancel scope: what one caller gives up, others may be waiting for.
            self._writer = asyncio.create_task(self._drain())
        # A write once asked for is waited for: what was sent has to be known, cancelled or not.
        with anyio.CancelScope(shield=True):
            await asyncio.shield(outcome)
        return outcome.result()

    async def _drain(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                await self._commit(batch)
            except BaseException:
                for _, outcome in [*batch, *self._pending]:
                    outcome.cancel()
                raise

    async def _commit(self, batch: list[Pending]) -> None:
        """Commit works together; one that fails is put aside, and the others are tried again."""
        results: list[Any] = []
        is_working = False
        try:
            async with self._transaction() as connection:
                is_working = True
                for work, _ in batch:
                    results.append(await work(connection))
                is_working = False
        except Exception as error:  # noqa: BLE001 - each is raised where the work was asked for
            failed = [batch.pop(len(results))] if is_working else list(batch)
            for _, outcome in failed:
                outcome.set_exception(error.copy() if isinstance(error, JournalError) else error)
            self._pending[:0] = batch if is_working else ()
        else:
            for (_, outcome), result in zip(batch, results, strict=True):
                outcome.set_result(result)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        """Hold the journal's lock; wait for another process's transaction within a bound."""
        give_up_at = anyio.current_time() + LOCK_TIMEOUT
        while True:
            async with AsyncExitStack() as stack:
                stack.enter_context(self._database.map_errors())
                try:
                    connection = await stack.enter_async_context(self._require_engine().begin())
                    await connection.execute(self._sql.lock)
                except Exception as error:
                    if not is_busy(error) or self._has_waited_until(give_up_at):
                        raise
                else:
                    await self._renew_lease(connection)
                    yield connection
                    return
            await anyio.sleep(random.uniform(0.01, 0.1))

    def _has_waited_until(self, moment: float) -> bool:
        return anyio.current_time() >= min(moment, self._give_up_at)

    async def _renew_lease(self, connection: AsyncConnection) -> None:
        values = {"owner_id": self._owner_id, "until": self._clock() + self._lease}
        if not (await connection.execute(self._sql.renew_owner, values)).rowcount:
            await connection.execute(self._sql.add_owner, values)

    async def _read(
        self, statement: sa.Select[Any], values: Mapping[str, Any], decode: Callable[[Any], T]
    ) -> list[T]:
        engine = self._require_engine().execution_options(musicgpt_reading=True)
        give_up_at = anyio.current_time() + LOCK_TIMEOUT
        while True:
            with self._database.map_errors():
                try:
                    async with engine.connect() as connection:
                        rows = await connection.execute(statement, values)
                    return await _decode_rows(rows, decode)
                except Exception as error:
                    if not is_busy(error) or self._has_waited_until(give_up_at):
                        raise
            await anyio.sleep(random.uniform(0.01, 0.1))

    @property
    def _sql(self) -> Statements:
        if self._statements is None:
            raise self._not_open()
        return self._statements

    def _require_engine(self) -> AsyncEngine:
        if self._engine is None:
            raise self._not_open()
        return self._engine

    def _not_open(self) -> JournalError:
        return JournalError(f"The journal {self._database.name} is not open.")


async def _decode_rows(rows: Iterable[Any], decode: Callable[[Any], T]) -> list[T]:
    """Decode rows, letting others run now and then."""
    found: list[T] = []
    for row in rows:
        found.append(decode(row))
        if not len(found) % PAGE_SIZE:
            await anyio.lowlevel.checkpoint()
    return found


async def _dead_owners(owners: Collection[str]) -> Collection[str]:
    return await anyio.to_thread.run_sync(processes.dead_processes, owners) if owners else ()


async def _noop(_: AsyncConnection) -> None:
    """Leave it at renewing the lease."""


def _row(record: JobRecord) -> dict[str, Any]:
    """Turn a record into a row; the columns bear the names of its attributes."""
    return {
        **attrs.asdict(record, recurse=True),
        "state": str(record.state),
        "stems": [str(stem) for stem in record.stems],
        "preprocessing": [str(option) for option in record.preprocessing],
        "links": {stem: attrs.asdict(links) for stem, links in record.links.items()},
        "unfinished": records.is_unfinished(record),
    }


def _record(row: sa.Row[Any]) -> JobRecord:
    values = {field.name: getattr(row, field.name) for field in attrs.fields(JobRecord)}
    for name, value in values.items():
        if value is UNREADABLE or (name in _NUMBERS and isinstance(value, str)):
            raise ValueError(f"{name} is unreadable")
    return JobRecord(
        **{
            **values,
            "state": JobState(row.state),
            "stems": tuple(row.stems),
            "preprocessing": tuple(row.preprocessing),
            "eco_mode": bool(row.eco_mode),
            "requested_stems": tuple(row.requested_stems),
            "links": {stem: StemLinks(**links) for stem, links in row.links.items()},
            "files": tuple(StemFile(**file) for file in row.files),
        }
    )
