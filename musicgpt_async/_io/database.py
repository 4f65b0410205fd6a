"""The database that the journal lies in: its engine, its tables and what is asked of them.

A file is inspected before SQLite may touch it, whatever a driver raises is explained, and nobody
needs SQLAlchemy before a database is prepared. What a row means is for the journal to say.
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import attrs

from musicgpt_async.errors import ConfigurationError, JournalError

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncEngine

SCHEMA_VERSION = 3
# Version → what turns a journal of it into one of the next, in the transaction that opens it.
UPGRADES: Mapping[int, Sequence[str]] = {
    2: (
        "ALTER TABLE musicgpt_jobs RENAME COLUMN hinted_task TO candidate_task_id",
        "ALTER TABLE musicgpt_jobs RENAME COLUMN wanted TO requested_stems",
        """UPDATE musicgpt_jobs SET state = CASE state
            WHEN 'delivered' THEN 'unacknowledged'
            WHEN 'waiting' THEN 'processing'
            WHEN 'expired' THEN 'timed_out'
            WHEN 'released' THEN 'detached'
            ELSE state
        END""",
        "UPDATE musicgpt_journal SET version = 3",
    ),
}
# "mGPT" in the header of an SQLite file says whose it is, to us and to file(1).
APPLICATION_ID = 0x6D475054
# Seconds that a writer waits for another process's transaction.
LOCK_TIMEOUT = 30.0
# Seconds that SQLite itself waits, off the loop: whoever waits longer can be told to stop.
BUSY_TIMEOUT = 1.0
UNREADABLE = object()
"""What a column is read as that holds no JSON."""
# Rows read at a time, so that a slow reader keeps no transaction open.
PAGE_SIZE = 100
ADVICE = {
    sqlite3.SQLITE_BUSY: "another process keeps it locked; end that process or try again",
    sqlite3.SQLITE_FULL: "the disk is full; make room and try again",
    sqlite3.SQLITE_IOERR: "the disk failed; check its room, its limits and its health",
    sqlite3.SQLITE_READONLY: "it may not be written; make it and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its folder exists and is writable",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it aside and restore a copy, or start a new one",
    sqlite3.SQLITE_NOTADB: "it is no journal; move it aside or choose another path",
}


@attrs.frozen
class Statements:
    """Every statement that the journal makes; each is right on SQLite and on PostgreSQL."""

    metadata: sa.MetaData
    version: sa.Select[Any]
    set_version: sa.Insert
    lock: sa.Select[Any]
    renew_owner: sa.Update
    add_owner: sa.Insert
    delete_owner: sa.Delete
    other_owners: sa.Select[Any]
    delete_expired_owners: sa.Delete
    insert: sa.Insert
    save: sa.Update
    by_fingerprint: sa.Select[Any]
    acquire: sa.Update
    claimable: sa.Select[Any]
    acquire_claimable: sa.Update
    release: sa.Update
    page: sa.Select[Any]
    find: sa.Select[Any]
    owned: sa.Select[Any]
    number_of: sa.Select[Any]
    max_number: sa.Select[Any]
    add_number: sa.Insert


@cache
def _statements() -> Statements:
    # Only those who make a journal need the extra, and pay for its import.
    import sqlalchemy as sa  # noqa: PLC0415

    metadata = sa.MetaData()
    journal, owners, jobs, places = _tables(metadata)
    key, owner_id = sa.bindparam("key", type_=sa.Text), sa.bindparam("owner_id", type_=sa.Text)
    now, until = sa.bindparam("now", type_=sa.Double), sa.bindparam("until", type_=sa.Double)
    live = sa.exists().where(owners.c.id == jobs.c.owner, owners.c.lease_until > now)
    owned_jobs = jobs.update().where(jobs.c.owner == owner_id)
    claimable = (
        sa.select(jobs)
        .where(
            jobs.c.unfinished,
            ~live,
            sa.or_(
                sa.bindparam("every", type_=sa.Boolean),  # of a state of no release, too
                jobs.c.state.in_(sa.bindparam("states", expanding=True)),
            ),
        )
        .order_by(jobs.c.seq)
        .limit(sa.bindparam("max_rows", type_=sa.BigInteger))
    )
    return Statements(
        metadata=metadata,
        version=sa.select(journal.c.version),
        set_version=journal.insert(),
        # One writer at a time: SQLite's BEGIN IMMEDIATE sees to it, PostgreSQL locks this row.
        lock=sa.select(journal.c.version).with_for_update(),
        renew_owner=owners.update().where(owners.c.id == owner_id).values(lease_until=until),
        add_owner=owners.insert().values(id=owner_id, lease_until=until),
        delete_owner=owners.delete().where(owners.c.id == owner_id),
        other_owners=sa.select(owners.c.id).where(owners.c.id != owner_id),
        # The dead that left no job behind; what a dead owner still holds is claimed first.
        delete_expired_owners=owners.delete().where(
            owners.c.lease_until <= now, ~sa.exists().where(jobs.c.owner == owners.c.id)
        ),
        insert=jobs.insert(),
        save=owned_jobs.where(jobs.c.id == key),
        by_fingerprint=sa.select(jobs, (~live).label("free"))
        .where(jobs.c.fingerprint == key)
        .order_by(jobs.c.seq.desc()),
        acquire=jobs.update().where(jobs.c.id == key).values(owner=owner_id),
        claimable=claimable,
        acquire_claimable=jobs.update()
        .where(jobs.c.seq.in_(claimable.with_only_columns(jobs.c.seq)))
        .values(owner=owner_id),
        release=owned_jobs.where(jobs.c.id == key).values(owner=None),
        page=sa.select(jobs)
        .where(jobs.c.seq > sa.bindparam("last"))
        .order_by(jobs.c.seq)
        .limit(PAGE_SIZE),
        find=sa.select(jobs, (~live).label("free"))
        .where(sa.or_(jobs.c.id == key, jobs.c.task_id == key))
        .order_by(jobs.c.seq.desc())
        .limit(1),
        owned=sa.select(jobs.c.id, jobs.c.owner, owners.c.lease_until).join(
            owners, owners.c.id == jobs.c.owner
        ),
        number_of=sa.select(places.c.number).where(
            places.c.place == key, places.c.task_id == sa.bindparam("task", type_=sa.Text)
        ),
        max_number=sa.select(sa.func.max(places.c.number)).where(places.c.place == key),
        add_number=places.insert(),
    )


def _tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table, sa.Table, sa.Table]:
    import sqlalchemy as sa  # noqa: PLC0415 - see _statements

    # Names of files need not be valid Unicode and labels may hold anything: JSON bears them all.
    json_type = sa.JSON(none_as_null=True)
    journal = sa.Table(
        "musicgpt_journal", metadata, sa.Column("version", sa.Integer, nullable=False)
    )
    owners = sa.Table(
        "musicgpt_owners",
        metadata,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("lease_until", sa.Double, nullable=False),
    )
    jobs = sa.Table(
        "musicgpt_jobs",
        metadata,
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("fingerprint", sa.Text, nullable=False, index=True),
        sa.Column("source", json_type, nullable=False),
        sa.Column("label", json_type),
        sa.Column("stems", json_type, nullable=False),
        sa.Column("preprocessing", json_type, nullable=False),
        sa.Column("eco_mode", sa.Boolean),  # since the second generation of the API
        sa.Column("token", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("sha256", sa.Text),
        sa.Column("task_id", sa.Text, index=True),
        sa.Column("conversion_id", sa.Text),
        sa.Column("candidate_task_id", sa.Text),
        sa.Column("eta", sa.Double),
        sa.Column("credit_estimate", sa.Double),
        sa.Column("sent_at", sa.Double),
        sa.Column("accepted_at", sa.Double),
        sa.Column("links", json_type, nullable=False),
        sa.Column("cost", sa.Double),
        sa.Column("duration", sa.Double),
        sa.Column("directory", json_type),
        sa.Column("format", sa.Text),
        sa.Column("requested_stems", json_type, nullable=False),
        sa.Column("layout", json_type),
        sa.Column("files", json_type, nullable=False),
        sa.Column("error", json_type),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("unfinished", sa.Boolean, nullable=False),
        sa.Column("owner", sa.Text, index=True),
        sa.Index("ix_musicgpt_jobs_unfinished", "unfinished", "seq"),
    )
    places = sa.Table(
        "musicgpt_places",
        metadata,
        sa.Column("place", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.Text, nullable=False),
    )
    return journal, owners, jobs, places


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
    """Where the journal lies, and how a connection to it is made."""

    path: str = attrs.field(repr=False)
    file: Path | None

    @property
    def name(self) -> str:
        """What messages call it: the file, or the URL without its password."""
        return str(self.file or re.sub(r"(://[^:/@]*):.*@", r"\1:***@", self.path))

    @property
    def driver(self) -> str:
        """The module that speaks with it."""
        return "asyncpg" if self.file is None else "aiosqlite"

    @property
    def url(self) -> sa.URL:
        """Where SQLAlchemy finds it."""
        from sqlalchemy import URL, make_url  # noqa: PLC0415 - see _statements
        from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - see _statements

        if self.file is not None:
            return URL.create("sqlite+aiosqlite", database=str(self.file))
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
            statements = _statements()
            self.url.get_dialect().import_dbapi()
        except ImportError as error:
            raise _missing_extra(error.name) from error
        return statements

    async def connect(self, sql: Statements) -> AsyncEngine:
        """Make an engine and see to it that the tables are there, of the version known here.

        Raises:
            JournalError: What is there is no journal, or one that cannot be upgraded.
        """
        engine = await anyio.to_thread.run_sync(_engine, self)
        try:
            await self._create_tables(engine, sql)
            if self.file is not None:
                await _use_wal(engine)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await engine.dispose()
            raise
        return engine

    async def _create_tables(self, engine: AsyncEngine, sql: Statements) -> None:
        give_up_at = anyio.current_time() + LOCK_TIMEOUT
        while True:
            try:
                async with engine.begin() as connection:
                    await connection.run_sync(self._prepare, sql)
            except Exception as error:
                if not is_busy(error) or anyio.current_time() >= give_up_at:
                    raise
            else:
                return
            await anyio.sleep(random.uniform(0.01, 0.05))

    def _prepare(self, connection: sa.Connection, sql: Statements) -> None:
        if self.file is None:  # SQLite's transaction keeps others out already
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID})")
        if not connection.dialect.has_table(connection, "musicgpt_journal"):
            if self.file is not None:
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            sql.metadata.create_all(connection)
            connection.execute(sql.set_version, {"version": SCHEMA_VERSION})
        version = _check_version(self.name, connection.execute(sql.version).scalar())
        for older in range(version, SCHEMA_VERSION):
            for statement in UPGRADES[older]:
                connection.exec_driver_sql(statement)
        _add_columns(connection, sql.metadata.tables["musicgpt_jobs"])

    @contextmanager
    def map_errors(self) -> Iterator[None]:
        """Turn whatever a database raises into one error that says what to do."""
        import sqlalchemy.exc  # noqa: PLC0415 - see _statements

        try:
            yield
        except JournalError:
            raise
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError, ValueError) as error:
            cause = getattr(error, "orig", None) or error
            raise JournalError(
                f"The journal {self.name} cannot be used: {_advice(cause)}"
            ) from cause


def _add_columns(connection: sa.Connection, table: sa.Table) -> None:
    """Add the columns that a journal of the same version may lack; all of them may be null."""
    import sqlalchemy as sa  # noqa: PLC0415 - see _statements

    there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")


def _engine(database: Database) -> AsyncEngine:
    """Make an engine, which connects to nothing yet; a file is inspected before."""
    from sqlalchemy import event, pool  # noqa: PLC0415 - see _statements
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - see _statements

    # Values of parameters (tokens!) stay out of every message.
    options: dict[str, Any] = {
        "hide_parameters": True,
        "json_deserializer": _parse_json,
        "poolclass": pool.AsyncAdaptedQueuePool,
        "pool_size": 2,  # the writer's and one for readers
        "max_overflow": 0,
    }
    if database.file is None:
        server = {"lock_timeout": str(int(LOCK_TIMEOUT * 1000))}
        return create_async_engine(
            database.url, pool_pre_ping=True, connect_args={"server_settings": server}, **options
        )
    _inspect(database.file)
    engine = create_async_engine(
        database.url, connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT}, **options
    )
    event.listen(engine.sync_engine, "connect", _sync_fully)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _parse_json(text: str | bytes) -> Any:
    """Parse what a column holds; one that is spoilt costs its own row, not the whole page."""
    try:
        return json.loads(text)
    except ValueError:
        return UNREADABLE


def _sync_fully(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    reading = connection.get_execution_options().get("musicgpt_reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


async def _use_wal(engine: AsyncEngine) -> None:
    # Only after the schema is in the file itself: its header then says at any moment whose it is.
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        deadline = anyio.current_time() + LOCK_TIMEOUT
        while True:
            try:
                async with driver.execute("PRAGMA journal_mode = WAL"):
                    return
            except sqlite3.OperationalError as error:
                # Of two that switch at once SQLite lets neither wait for the other.
                if not is_busy(error) or anyio.current_time() > deadline:
                    raise
                await anyio.sleep(random.uniform(0.01, 0.05))


def _advice(error: BaseException) -> str:
    code = _error_code(error)
    return f"{ADVICE[code]} ({error})" if code in ADVICE else f"{error or type(error).__name__}"


def is_busy(error: BaseException) -> bool:
    """Return whether another process's transaction is in the way."""
    return _error_code(getattr(error, "orig", None) or error) == sqlite3.SQLITE_BUSY


def _error_code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _check_version(name: str, version: int | None) -> int:
    """Return the version of a journal that can be used, as it is or upgraded."""
    if version is not None and (version == SCHEMA_VERSION or version in UPGRADES):
        return version
    is_later = version is not None and version > SCHEMA_VERSION
    raise JournalError(
        f"The journal {name} has schema version {version}, and this release of musicgpt-async "
        f"knows version {SCHEMA_VERSION}. "
        f"{'Upgrade' if is_later else 'Use the release that made it of'} musicgpt-async, or "
        "use another journal."
    )


def _inspect(file: Path) -> None:
    """Refuse a file that is no journal, without leaving a trace on it or beside it."""
    entry = _stat(file)
    if entry is None:
        _check_folder(file)
        return
    if stat.S_ISDIR(entry.st_mode):
        raise JournalError(f"{file} is a folder; give the journal the name of a file in it.")
    if not stat.S_ISREG(entry.st_mode):
        raise JournalError(f"{file} is no regular file; choose another path for the journal.")
    _check_header(file)
    _check_folder(file)
    if not os.access(file, os.W_OK):
        raise JournalError(f"The journal {file} may not be written; make it writable.")
    if entry.st_size:
        _check_content(file)


def _check_folder(file: Path) -> None:
    folder = file.parent
    if not folder.is_dir():
        raise JournalError(f"The journal {file} cannot be made: there is no folder {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise JournalError(
            f"The journal {file} cannot be used: nothing may be written in the folder {folder}."
        )


def _check_header(file: Path) -> None:
    """Read the first 100 bytes by hand: SQLite itself might write on opening."""
    with file.open("rb") as stream:
        header = stream.read(100)
    if not header and not _has_content(_sibling(file, "-wal")):
        return
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise JournalError(
            f"{file} is no journal, or a damaged one; it was left as it is. "
            "Move it aside and restore a copy, or choose another path."
        )
    if int.from_bytes(header[68:72]) != APPLICATION_ID:
        raise JournalError(
            f"{file} is another program's SQLite database; it was left as it is. "
            "Choose another path for the journal."
        )


def _check_content(file: Path) -> None:
    while True:
        before = _traces(file)
        try:
            return _verify_content(file)
        except (JournalError, sqlite3.Error):
            if _traces(file) == before:
                raise
            # Another process wrote while we looked past its locks: look again.


def _traces(file: Path) -> list[tuple[int, int]]:
    found = (_stat(path) for path in (file, _sibling(file, "-wal"), _sibling(file, "-journal")))
    return [(entry.st_size, entry.st_mtime_ns) if entry else (0, 0) for entry in found]


def _verify_content(file: Path) -> None:
    if _has_content(_sibling(file, "-journal")):
        return  # Its creation was broken off: SQLite undoes that when it opens the file.
    # Without a log beside it the file is all there is, and `immutable` makes no log either.
    query = "mode=ro" if _has_content(_sibling(file, "-wal")) else "mode=ro&immutable=1"
    uri = f"{file.as_uri()}?{query}"
    with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT)) as database:
        version = database.execute("SELECT version FROM musicgpt_journal").fetchone()
        _check_version(str(file), version and version[0])
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise JournalError(f"The journal {file} is damaged ({verdict}); restore a copy of it.")


def _sibling(file: Path, ending: str) -> Path:
    real = file.resolve()
    return real.with_name(real.name + ending)


def _has_content(file: Path) -> bool:
    entry = _stat(file)
    return entry is not None and entry.st_size > 0


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
