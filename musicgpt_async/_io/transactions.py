"""Transactions on the journal's database: group commit for writes, and reads.

Writes that are asked for while another transaction runs share the next one, and its fsync. Each
transaction holds the journal's lock and renews the lease of this owner. What a write does is for
its caller to say, in a function that gets the connection.

A server may be away: it restarts, another one takes over, the network is cut. Then whatever runs is
tried again until it is done, within a bound. The connection may have been lost while the server
committed; so each transaction writes its number beside the owner's lease, and one that finds its
own number there was committed and is not carried out a second time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from musicgpt_async._io.database import Database
from musicgpt_async._io.database_errors import advise, find_patience, is_busy
from musicgpt_async._io.file_engine import FileEngine, Work, pause
from musicgpt_async._io.statements import PAGE_SIZE, Statements
from musicgpt_async._rules.outages import Outage
from musicgpt_async.errors import JournalError

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_log = logging.getLogger(__name__)

T = TypeVar("T")
Pending: TypeAlias = "tuple[Work[Any], asyncio.Future[Any]]"

MIN_PAUSE, MAX_PAUSE = 0.05, 1.0  # seconds between attempts while a server is away
LAST_ATTEMPT = 2.0  # seconds that an attempt may take when nothing waits any more


class Transactions:
    """The transactions of one owner.

    Args:
        database: The journal's database.
        engine: The engine that connects to it.
        sql: The journal's statements.
        owner_id: Whose lease each write renews.
        lease: Seconds that it then holds, by the database's clock.
    """

    def __init__(
        self,
        database: Database,
        engine: AsyncEngine | FileEngine,
        sql: Statements,
        *,
        owner_id: str,
        lease: float,
    ) -> None:
        self._database = database
        self._engine = engine
        self._sql = sql
        self._owner_id = owner_id
        self._lease = lease
        self._give_up_at = math.inf  # on the loop's clock; when nothing waits any more
        self._attempts: set[anyio.CancelScope] = set()
        self._outage = Outage(lease, now=anyio.current_time())
        self._pending: list[Pending] = []
        self._writer: asyncio.Task[None] | None = None
        self._number = 0

    def give_up_after(self, seconds: float) -> None:
        """Limit the time that reads and writes wait from now on, in seconds."""
        self._give_up_at = min(self._give_up_at, anyio.current_time() + seconds)
        for attempt in self._attempts:
            attempt.deadline = self._last_moment()

    def grace(self) -> float:
        """Return for how many seconds leases of others hold after they ran out."""
        if self._database.file is not None:  # asked in a thread; a file is never away
            return 0.0
        return self._outage.grace(now=anyio.current_time())

    def wait_as_usual(self) -> None:
        """Have reads and writes wait for their own limits again."""
        self._give_up_at = math.inf

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    async def write(self, work: Work[T]) -> T:
        """Execute `work` in a transaction that also renews the lease; return its result.

        Args:
            work: What to do; it may run more than once, and changes nothing but the database.

        Raises:
            JournalError: The transaction failed and was rolled back.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append((work, outcome))
        if self._writer is None or self._writer.done():
            # A task outside of every cancel scope: if one caller is cancelled, the others of the
            # batch still wait for its commit.
            self._writer = asyncio.create_task(self._drain())
        # Shielded: a cancelled caller must know whether its write is durable, for example before
        # it sends the end of a track.
        with anyio.CancelScope(shield=True):
            await asyncio.shield(outcome)
        return outcome.result()

    async def _drain(self) -> None:
        while self._pending:
            batch, self._pending = _Batch(self._pending), []
            try:
                self._pending[:0] = await self._commit(batch)
            except BaseException:
                # An error, not a cancellation: the waiting tasks were not cancelled themselves.
                for _, outcome in [*batch.pending, *self._pending]:
                    if not outcome.done():
                        outcome.set_exception(self._make_stopped_error())
                self._pending.clear()
                raise

    def _make_stopped_error(self) -> JournalError:
        return JournalError(
            f"A write to the journal {self._database.name} was cancelled before it was done."
        )

    async def _commit(self, batch: _Batch) -> list[Pending]:
        """Commit works together; if one fails, return the others, which are to be tried again."""
        self._number += 1
        try:
            await self._until_done(partial(self._run, partial(self._carry_out, batch)))
        except Exception as error:  # noqa: BLE001 - each is raised where the work was asked for
            return batch.fail(error)
        batch.succeed()
        return []

    async def _run(self, work: Work[T], *, reading: bool = False) -> T:
        """Run a transaction: on a file in a thread, on a server here."""
        if isinstance(self._engine, FileEngine):
            return await self._engine.run(work, reading=reading)
        async with self._connect(self._engine) as connection:
            return await work(connection)

    async def _carry_out(self, batch: _Batch, connection: AsyncConnection) -> None:
        if self._database.file is None:  # SQLite's transaction keeps others out already
            await connection.execute(self._sql.lock)
        if batch.may_be_committed and await self._find_last_write(connection) == self._number:
            return
        await self._renew_lease(connection)
        await batch.run(connection)
        batch.may_be_committed = True
        await connection.commit()

    async def _find_last_write(self, connection: AsyncConnection) -> int | None:
        number: int | None = await connection.scalar(
            self._sql.last_write, {"owner_id": self._owner_id}
        )
        return number

    async def _renew_lease(self, connection: AsyncConnection) -> None:
        values = {"owner_id": self._owner_id, "lease": self._lease, "number": self._number}
        if not (await connection.execute(self._sql.renew_owner, values)).rowcount:
            await connection.execute(self._sql.add_owner, values)

    async def read(
        self, statement: sa.Select[Any], values: Mapping[str, Any], decode: Callable[[Any], T]
    ) -> list[T]:
        """Return the decoded rows of a statement.

        Raises:
            JournalError: The statement failed.
        """

        async def select(connection: AsyncConnection) -> list[sa.Row[Any]]:
            return list(await connection.execute(statement, values))

        async def fetch() -> list[T]:
            return await decode_rows(await self._run(select, reading=True), decode)

        return await self._until_done(fetch)

    async def _until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try again while another's transaction is in the way, or the server is away."""
        began, pause = anyio.current_time(), MIN_PAUSE
        with self._database.map_errors():
            while True:
                try:
                    result = await attempt()
                except Exception as error:
                    give_up_at = min(began + find_patience(error), self._give_up_at)
                    if anyio.current_time() >= give_up_at:
                        raise
                    if is_busy(error):
                        await anyio.sleep(random.uniform(0.01, 0.1))
                        continue
                    self._on_fault(error)
                    await anyio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, MAX_PAUSE)
                else:
                    self._on_success()
                    return result

    def _on_fault(self, error: Exception) -> None:
        if self._outage.on_fault(now=anyio.current_time()):
            _log.warning(
                "The journal %s is away and is tried again; jobs wait for it: %s",
                self._database.name,
                advise(getattr(error, "orig", None) or error),
            )

    def _on_success(self) -> None:
        if self._outage.on_success(now=anyio.current_time()):
            _log.info("The journal %s is there again.", self._database.name)

    @asynccontextmanager
    async def _connect(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Connect to the server for one transaction; one that is silent ends it."""
        with anyio.CancelScope() as attempt:
            attempt.deadline = self._last_moment()
            self._attempts.add(attempt)
            try:
                async with engine.connect() as connection:
                    try:
                        yield connection
                    except TimeoutError:
                        await connection.invalidate()  # a rollback would wait for the server, too
                        raise
            finally:
                self._attempts.discard(attempt)
        if attempt.cancelled_caught:
            raise TimeoutError("it did not answer in time")

    def _last_moment(self) -> float:
        return max(self._give_up_at, anyio.current_time() + LAST_ATTEMPT)


class _Batch:
    """Works that share a transaction.

    Args:
        pending: The works, and the futures of their outcomes.

    Attributes:
        may_be_committed: Whether a transaction of it ended without a word of the database.
    """

    def __init__(self, pending: list[Pending]) -> None:
        self.pending = pending
        self.may_be_committed = False
        self._results: list[Any] = []
        self._failed: Pending | None = None

    async def run(self, connection: AsyncConnection) -> None:
        """Do the works."""
        self._results, self._failed = [], None
        for each in self.pending:
            try:
                self._results.append(await each[0](connection))
            except Exception as error:
                self._failed = None if find_patience(error) else each
                raise

    def succeed(self) -> None:
        """Set the results of the works."""
        for (_, outcome), result in zip(self.pending, self._results, strict=True):
            outcome.set_result(result)

    def fail(self, error: Exception) -> list[Pending]:
        """Set the error of the work that failed, or of all if none did; return the others."""
        failed = self.pending if self._failed is None else [self._failed]
        for _, outcome in failed:
            outcome.set_exception(error.copy() if isinstance(error, JournalError) else error)
        return [each for each in self.pending if each not in failed]


async def decode_rows(rows: Iterable[Any], decode: Callable[[Any], T]) -> list[T]:
    """Decode rows, and yield to the event loop regularly."""
    found: list[T] = []
    for row in rows:
        found.append(decode(row))
        if not len(found) % PAGE_SIZE:
            await pause()
    return found
