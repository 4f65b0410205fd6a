"""A connection for what needs no transaction of the journal: the grants of polls.

Nothing that goes through it has to survive a crash of the machine, so on SQLite its commits do not
wait for the disk, and a poll does not wait for the journal's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from musicgpt_async._io.database import ENGINE_OPTIONS, Database, make_file_engine
from musicgpt_async._io.file_engine import FileEngine, Work

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
        self._engine: AsyncEngine | FileEngine | None = None
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
                async with asyncio.timeout(STATEMENT_TIMEOUT):
                    return await self._execute(partial(_carry_out, statement, values), statement)
            raise AssertionError  # for the type checker: no scope above ends silently

    async def _execute(
        self, work: Work[sa.CursorResult[Any]], statement: sa.Executable
    ) -> sa.CursorResult[Any]:
        if self._engine is None:
            self._engine = await anyio.to_thread.run_sync(_make_engine, self._database)
        if isinstance(self._engine, FileEngine):
            return await self._engine.run(work, reading=not statement.is_dml)
        async with self._engine.connect() as connection:
            try:
                return await work(connection)
            except BaseException:
                await connection.invalidate()
                raise

    async def close(self) -> None:
        """Close the connection."""
        with anyio.CancelScope(shield=True):
            if self._engine is not None:
                await self._engine.dispose()


async def _carry_out(
    statement: sa.Executable, values: Mapping[str, Any], connection: AsyncConnection
) -> sa.CursorResult[Any]:
    result = await connection.execute(statement, dict(values))
    await connection.commit()
    return result


def _make_engine(database: Database) -> AsyncEngine | FileEngine:
    if database.file is not None:
        return make_file_engine(database.url, connections=1, synchronous="NORMAL")
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - see schema.make_tables

    options = {"pool_size": 1, "max_overflow": 0, **ENGINE_OPTIONS}
    return create_async_engine(database.url, isolation_level="AUTOCOMMIT", **options)
