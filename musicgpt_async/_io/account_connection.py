"""A connection for what needs no transaction of the journal: the grants of polls.

Nothing that goes through it has to survive a crash of the machine, so on SQLite its commits do not
wait for the disk, and a poll does not wait for the journal's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from musicgpt_async._io.database import BUSY_TIMEOUT, Database

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

STATEMENT_TIMEOUT = 5.0  # seconds that a statement may take


class AccountConnection:
    """One connection of a session to its journal's database, made when it is first needed.

    Args:
        database: Where the journal is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._engine: AsyncEngine | None = None
        self._connection: AsyncConnection | None = None
        self._lock = anyio.Lock()

    async def execute(
        self, statement: sa.Executable, values: Mapping[str, Any]
    ) -> sa.CursorResult[Any]:
        """Execute a statement, which is committed at once.

        Raises:
            JournalError: It could not be executed; if it writes, that may have been done.
        """
        async with self._lock:
            # A statement that is broken off would cost the connection.
            with self._database.map_errors(), anyio.CancelScope(shield=True):
                return await self._execute(statement, values)
            raise AssertionError  # for the type checker: no scope above ends silently

    async def _execute(
        self, statement: sa.Executable, values: Mapping[str, Any]
    ) -> sa.CursorResult[Any]:
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT):
                connection = self._connection or await self._connect()
                return await connection.execute(statement, dict(values))
        except BaseException:
            await self._drop()
            raise

    async def close(self) -> None:
        """Close the connection."""
        with anyio.CancelScope(shield=True):
            if self._connection is not None:
                await self._connection.close()
            if self._engine is not None:
                await self._engine.dispose()

    async def _connect(self) -> AsyncConnection:
        if self._engine is None:
            self._engine = await anyio.to_thread.run_sync(_make_engine, self._database)
        self._connection = await self._engine.connect()
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()


def _make_engine(database: Database) -> AsyncEngine:
    """Make an engine whose statements are transactions of their own."""
    from sqlalchemy import event  # noqa: PLC0415 - see schema.make_tables
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - see schema.make_tables

    url = database.url if database.file is None else database.url.set(drivername="sqlite+aiosqlite")
    arguments = {} if database.file is None else {"timeout": BUSY_TIMEOUT}
    engine = create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_size=1,
        max_overflow=0,
        connect_args=arguments,
    )
    if database.file is not None:
        event.listen(engine.sync_engine, "connect", _sync_seldom)
    return engine


def _sync_seldom(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
