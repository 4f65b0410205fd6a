"""The database that holds the journal: its engine, its connections and its errors.

A file is inspected before SQLite may change it, each error of a driver is explained, and SQLAlchemy
is imported only when a database is prepared. The journal decides what a row means.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.to_thread
import attrs

from musicgpt_async._io import processes
from musicgpt_async._io.database_errors import LOCK_TIMEOUT, advise, find_patience
from musicgpt_async._io.file_engine import FileEngine, run_off_loop
from musicgpt_async._io.job_rows import UNREADABLE
from musicgpt_async._io.journal_file import inspect_file
from musicgpt_async._io.schema import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    UPGRADES,
    add_missing,
    check_unused,
    check_version,
)
from musicgpt_async._io.statements import Statements, load_statements
from musicgpt_async.errors import ConfigurationError, JournalError

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Seconds that SQLite itself waits for a lock, in a thread; longer waits can be cancelled.
BUSY_TIMEOUT = 1.0
CONNECTIONS = 3  # the writer's, one for readers, and one that listens
# Seconds that a server may take to answer a statement, and to accept a connection.
STATEMENT_TIMEOUT, CONNECT_TIMEOUT = 8.0, 10.0


def parse_database_url(path: str) -> Database:
    """Return the database of a path or a URL; nothing is loaded and nothing is connected to yet.

    Raises:
        ConfigurationError: The extra or a driver is missing, or no such database is known.
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        database = Database(path, Path(path).absolute())
    elif scheme.partition("+")[0] == "sqlite" and rest[1:].partition("?")[0]:
        return parse_database_url(rest[1:].partition("?")[0])
    elif scheme.partition("+")[0] == "postgresql":
        database = Database(path, None)
    else:
        raise ConfigurationError(_NO_DATABASE)
    for module in ("sqlalchemy", database.driver):
        if find_spec(module) is None:
            raise _missing_extra(module)
    return database


_NO_DATABASE = "A journal is a file, or a URL of SQLite or PostgreSQL."


def _missing_extra(module: str | None) -> ConfigurationError:
    driver = " asyncpg" if module == "asyncpg" else ""
    return ConfigurationError(
        f"A journal needs {module}, which is not installed: "
        f'pip install "musicgpt-async[journal]"{driver}'
    )


@attrs.frozen
class Database:
    """The location of the journal, and how a connection to it is made."""

    path: str = attrs.field(repr=False)
    file: Path | None

    @property
    def name(self) -> str:
        """What messages call it: the file, or the URL without its password."""
        return str(self.file or re.sub(r"(://[^:/@]*):.*@", r"\1:***@", self.path))

    @property
    def driver(self) -> str:
        """The module that speaks with it."""
        return "asyncpg" if self.file is None else "sqlite3"

    @property
    def url(self) -> sa.URL:
        """Its URL for SQLAlchemy."""
        from sqlalchemy import URL, make_url  # noqa: PLC0415 - see schema.make_tables
        from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - see schema.make_tables

        if self.file is not None:
            return URL.create("sqlite+pysqlite", database=str(self.file))
        try:
            return make_url(self.path).set(drivername="postgresql+asyncpg")
        except ArgumentError:
            raise ConfigurationError(_NO_DATABASE) from None

    async def statements(self) -> Statements:
        """Load SQLAlchemy and the driver, which takes too long for the loop.

        Raises:
            ConfigurationError: The extra is not installed whole, or the URL cannot be read.
        """
        return await anyio.to_thread.run_sync(self._load)

    def _load(self) -> Statements:
        try:
            statements = load_statements(on_server=self.file is None)
            self.url.get_dialect().import_dbapi()
        except ImportError as error:
            raise _missing_extra(error.name) from error
        return statements

    async def connect(self, sql: Statements) -> AsyncEngine | FileEngine:
        """Make an engine and see to it that the tables are there, of the version known here.

        Raises:
            JournalError: What is there is no journal, or one that cannot be upgraded.
        """
        engine = await anyio.to_thread.run_sync(_engine, self)
        try:
            await _retry(partial(self._create_tables, engine, sql))
            if isinstance(engine, FileEngine):
                # Only after the schema is in the file itself: its header then says at any moment
                # whose it is. Of two that switch at once SQLite lets neither wait for the other.
                await _retry(partial(engine.call, _use_wal, engine))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await engine.dispose()
            raise
        return engine

    async def _create_tables(self, engine: AsyncEngine | FileEngine, sql: Statements) -> None:
        if isinstance(engine, FileEngine):
            await engine.run(partial(self._prepare, sql))
            return
        async with engine.connect() as connection:
            await self._prepare(sql, connection)

    async def _prepare(self, sql: Statements, connection: AsyncConnection) -> None:
        version = await connection.run_sync(self._create, sql)
        if version != SCHEMA_VERSION:
            await self._upgrade(sql, connection, version)
        await connection.commit()

    async def _upgrade(self, sql: Statements, connection: AsyncConnection, version: int) -> None:
        live = set(await connection.scalars(sql.live_owners))
        live -= set(await run_off_loop(processes.dead_processes, live))
        check_unused(self.name, version, live)
        await connection.run_sync(_upgrade, sql, version)

    def _create(self, connection: sa.Connection, sql: Statements) -> int:
        """Create the tables if there are none; return the version of those that are there."""
        if self.file is None:  # SQLite's transaction keeps others out already
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID})")
        if not connection.dialect.has_table(connection, "musicgpt_journal"):
            if self.file is not None:
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            sql.tables.metadata.create_all(connection)
            values = {"version": SCHEMA_VERSION, "secret": secrets.token_hex(32)}
            connection.execute(sql.set_version, values)
        return check_version(self.name, connection.execute(sql.version).scalar())

    @contextmanager
    def map_errors(self) -> Iterator[None]:
        """Turn whatever a database raises into one error that says what to do."""
        import sqlalchemy.exc  # noqa: PLC0415 - see schema.make_tables

        try:
            yield
        except JournalError:
            raise
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError, ValueError) as error:
            cause = getattr(error, "orig", None) or error
            raise JournalError(
                f"The journal {self.name} cannot be used: {advise(cause)}"
            ) from cause


_DECODER = json.JSONDecoder()


def _parse_json(text: str | bytes) -> Any:
    """Parse what a column holds; one that is spoilt costs its own row, not the whole page."""
    try:
        # Most columns are as short as "[]", of which json.loads would take three times as long.
        value, end = _DECODER.raw_decode(text) if isinstance(text, str) else (None, -1)
        return value if end == len(text) else json.loads(text)
    except ValueError:
        return UNREADABLE


# Values of parameters (tokens!) stay out of every message.
ENGINE_OPTIONS: Mapping[str, Any] = {"hide_parameters": True, "json_deserializer": _parse_json}


# Behind pgbouncer in transaction mode each transaction may meet another of the server's
# connections, which knows no statement that was prepared before, or another client's by the same
# name. A statement without a name is parsed anew each time, within its transaction. That takes
# longer, so the URL has to ask for it, by SQLAlchemy's own parameter.
UNPREPARED_PARAMETER = "prepared_statement_cache_size"
UNPREPARED: Mapping[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}


def _engine(database: Database) -> AsyncEngine | FileEngine:
    """Make an engine, which connects to nothing yet; a file is inspected before."""
    if database.file is not None:
        inspect_file(database.file)
        return make_file_engine(database.url, connections=CONNECTIONS, synchronous="FULL")
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - see schema.make_tables

    limits: dict[str, Any] = {"timeout": CONNECT_TIMEOUT, "command_timeout": STATEMENT_TIMEOUT}
    options = {"pool_size": CONNECTIONS, "max_overflow": 0, **ENGINE_OPTIONS}
    if database.url.query.get(UNPREPARED_PARAMETER) == "0":
        limits.update(UNPREPARED)
    return create_async_engine(database.url, connect_args=limits, **options)


def make_file_engine(
    url: sa.URL, *, connections: int, synchronous: Literal["NORMAL", "FULL"]
) -> FileEngine:
    """Make an engine for a file.

    Args:
        url: SQLAlchemy's.
        connections: How many there may be at once.
        synchronous: Whether a commit waits for the disk, or may be lost in a crash of the machine.
    """
    import sqlalchemy as sa  # noqa: PLC0415 - see schema.make_tables

    engine = sa.create_engine(
        url,
        poolclass=sa.QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT},
        **ENGINE_OPTIONS,
    )

    def set_synchronous(connection: Any, _: Any) -> None:
        connection.cursor().execute(f"PRAGMA synchronous = {synchronous}").close()

    sa.event.listen(engine, "connect", set_synchronous)
    return FileEngine(engine, connections)


def _upgrade(connection: sa.Connection, sql: Statements, version: int) -> None:
    """Turn a journal of an older version into one of today's; nothing in it is lost."""
    for older in range(version, SCHEMA_VERSION):
        for statement in UPGRADES[older]:
            connection.exec_driver_sql(statement)
    add_missing(connection, sql.tables)
    connection.execute(sql.set_secret, {"secret": secrets.token_hex(32)})


def _use_wal(engine: FileEngine) -> None:
    connection = engine.connect()
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL").close()
    finally:
        connection.close()


async def _retry(call: Callable[[], Awaitable[None]]) -> None:
    """Call until nothing is in the way that passes, within a bound."""
    give_up_at = anyio.current_time() + LOCK_TIMEOUT
    while True:
        try:
            return await call()
        except Exception as error:
            # A server that does not listen is perhaps none: a wrong address is said at once.
            is_passing = find_patience(error) > 0.0 and not isinstance(error, OSError)
            if not is_passing or anyio.current_time() >= give_up_at:
                raise
        await anyio.sleep(random.uniform(0.01, 0.05))
