"""Transactions on the journal's database: writes that share a commit, and reads.

Writes that are asked for while another transaction runs share the next one, and its fsync. Each
transaction holds the journal's lock and renews the lease of this owner. What a write does is for
its caller to say, in a function that gets the connection.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from musicgpt_async._io.database import Database, is_busy
from musicgpt_async._io.journal_file import LOCK_TIMEOUT
from musicgpt_async._io.statements import PAGE_SIZE, Statements
from musicgpt_async.errors import JournalError

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")
Work: TypeAlias = "Callable[[AsyncConnection], Awaitable[T]]"
Pending: TypeAlias = "tuple[Work[Any], asyncio.Future[Any]]"


class Transactions:
    """Runs the transactions of one owner.

    Args:
        database: Where the journal is.
        engine: Connects to it.
        sql: The journal's statements.
        owner_id: Whose lease each write renews.
        lease: Seconds that it then holds.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        engine: AsyncEngine,
        sql: Statements,
        *,
        owner_id: str,
        lease: float,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._engine = engine
        self._sql = sql
        self._owner_id = owner_id
        self._lease = lease
        self._clock = clock
        self._give_up_at = math.inf  # on the loop's clock; when nothing waits any more
        self._pending: list[Pending] = []
        self._writer: asyncio.Task[None] | None = None

    def give_up_after(self, seconds: float) -> None:
        """Have reads and writes wait so long at most from now on."""
        self._give_up_at = min(self._give_up_at, anyio.current_time() + seconds)

    def wait_as_usual(self) -> None:
        """Have reads and writes wait for their own limits again."""
        self._give_up_at = math.inf

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    async def write(self, work: Work[T]) -> T:
        """Have the work done in a transaction that also renews the lease.

        Raises:
            JournalError: It was not done.
        """
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
                # Not cancelled: whoever waits was not, and would take it for a stray cancellation.
                for _, outcome in [*batch, *self._pending]:
                    if not outcome.done():
                        outcome.set_exception(self._make_stopped_error())
                self._pending.clear()
                raise

    def _make_stopped_error(self) -> JournalError:
        return JournalError(
            f"A write to the journal {self._database.name} was cancelled before it was done."
        )

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
                    connection = await stack.enter_async_context(self._engine.begin())
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

    async def read(
        self, statement: sa.Select[Any], values: Mapping[str, Any], decode: Callable[[Any], T]
    ) -> list[T]:
        """Return what a statement finds, decoded.

        Raises:
            JournalError: It could not be read.
        """
        engine = self._engine.execution_options(musicgpt_reading=True)
        give_up_at = anyio.current_time() + LOCK_TIMEOUT
        while True:
            with self._database.map_errors():
                try:
                    async with engine.connect() as connection:
                        rows = await connection.execute(statement, values)
                    return await decode_rows(rows, decode)
                except Exception as error:
                    if not is_busy(error) or self._has_waited_until(give_up_at):
                        raise
            await anyio.sleep(random.uniform(0.01, 0.1))


async def decode_rows(rows: Iterable[Any], decode: Callable[[Any], T]) -> list[T]:
    """Decode rows, letting others run now and then."""
    found: list[T] = []
    for row in rows:
        found.append(decode(row))
        if not len(found) % PAGE_SIZE:
            await anyio.lowlevel.checkpoint()
    return found
