"""Transactions on an SQLite file, each in one trip to a thread.

A transaction is a coroutine function that awaits its connection and nothing else, so the same code
serves PostgreSQL on the loop and SQLite in a thread, where nothing that it awaits ever waits. A
driver that makes a trip for every cursor, statement, fetch and close would make a dozen of them for
each transaction, at 50 us of CPU a trip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, TypeVarTuple, cast

import anyio.lowlevel
import anyio.to_thread
import attrs

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Work: TypeAlias = "Callable[[AsyncConnection], Awaitable[T]]"


class FileEngine:
    """Runs transactions on a file.

    Args:
        engine: A synchronous one.
        connections: How many it has.
    """

    def __init__(self, engine: sa.Engine, connections: int) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="musicgpt-async-journal")

    async def run(self, work: Work[T], *, reading: bool = False) -> T:
        """Run a transaction in a thread; it is rolled back unless it commits.

        Args:
            work: Gets the connection.
            reading: Whether it only reads, and takes no lock.
        """
        return await self.call(_run, self._engine, work, "BEGIN" if reading else "BEGIN IMMEDIATE")

    async def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call something in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def connect(self) -> sa.PoolProxiedConnection:
        """Return a connection of the driver, outside of any transaction."""
        return self._engine.raw_connection()

    async def dispose(self) -> None:
        """Close all connections."""
        await anyio.to_thread.run_sync(self._dispose)

    def _dispose(self) -> None:
        self._threads.shutdown()  # a read whose caller was cancelled still has its connection
        self._engine.dispose()


@attrs.frozen
class _AwaitableConnection:
    """A synchronous connection, awaited as an asynchronous one is."""

    _connection: sa.Connection

    @property
    def dialect(self) -> Any:
        return self._connection.dialect

    async def execute(self, statement: Any, values: Any = None) -> Any:
        result = self._connection.execute(statement, values)
        return result.freeze()() if result.returns_rows else result  # its cursor is closed by then

    async def scalars(self, statement: Any, values: Any = None) -> Any:
        return (await self.execute(statement, values)).scalars()

    async def scalar(self, statement: Any, values: Any = None) -> Any:
        return self._connection.scalar(statement, values)

    async def exec_driver_sql(self, statement: str) -> Any:
        return self._connection.exec_driver_sql(statement)

    async def run_sync(self, function: Callable[..., T], *args: Any) -> T:
        return function(self._connection, *args)

    async def commit(self) -> None:
        self._connection.commit()


def _run(engine: sa.Engine, work: Work[T], begin: str) -> T:
    with engine.connect() as connection:
        # By the driver itself, which is set to begin none: SQLAlchemy's event for it costs more.
        connection.connection.cursor().execute(begin).close()
        running: Any = work(cast("AsyncConnection", _AwaitableConnection(connection)))
        try:
            running.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        running.close()
        raise RuntimeError("A transaction waited for something else than its connection.")


async def run_off_loop(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Call something that blocks in a thread, or here if a thread's transaction asks for it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function(*args)
    return await anyio.to_thread.run_sync(function, *args)


async def pause() -> None:
    """Yield to the event loop; a transaction in a thread does not block it, and does nothing."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    await anyio.lowlevel.checkpoint()
