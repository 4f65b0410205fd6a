"""The durable record of every job: what is to be paid for, and what came of it.

One file of SQLite (or one PostgreSQL database) is shared by any number of processes. Each job has
at most one owner at a time, whose lease runs out unless it is renewed; only the owner may write.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import sqlite3
import stat
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

from musicgpt_async.errors import ConfigurationError, JournalError
from musicgpt_async.models import JobRecord, JobState, StemFile, StemLinks

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["Journal", "Lease"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work: TypeAlias = "Callable[[AsyncConnection], Awaitable[T]]"
Pending: TypeAlias = "tuple[Work[Any], asyncio.Future[Any]]"

SCHEMA_VERSION = 1
# "mGPT" in the header of an SQLite file says whose it is, to us and to file(1).
APPLICATION_ID = 0x6D475054
# Seconds that a writer waits for another process's transaction.
PATIENCE = 30.0
# Rows read at a time, so that a slow reader keeps no transaction open.
PAGE = 100
EVERYTHING = 2**63 - 1


@attrs.frozen(kw_only=True)
class Lease:
    """Who works on a job.

    Attributes:
        owner: Host, process id and a random part, separated by colons.
        until: When the lease runs out, in seconds since the epoch.
        live: Whether it holds now; otherwise any process may take the job over.
        mine: Whether the asking journal holds it.
    """

    owner: str
    until: float
    live: bool
    mine: bool


def is_unfinished(record: JobRecord) -> bool:
    """Tell whether there is work left: to submit, to wait for, to resolve or to download.

    A job let go of before it was handed over is finished: nobody wants it, nothing was paid.
    """
    match record.state:
        case JobState.FAILED:
            return False
        case JobState.RELEASED:
            return was_delivered(record)
        case JobState.COMPLETED:
            return record.directory is not None and not _is_downloaded(record)
        case _:
            return True


def may_be_submitted_again(record: JobRecord) -> bool:
    """Tell whether a new submission of the same track would pay for nothing twice."""
    if record.state is JobState.RELEASED:
        return not was_delivered(record)
    return record.state is JobState.FAILED


def was_delivered(record: JobRecord) -> bool:
    """Tell whether the vendor has, or may have, the whole track."""
    return record.task_id is not None or record.sent_at is not None


def _is_downloaded(record: JobRecord) -> bool:
    formats = ("wav", "mp3") if record.format == "both" else (record.format or "wav",)
    wanted = {
        (stem, format_)
        for stem, links in record.links.items()
        for format_ in formats
        if getattr(links, format_) is not None and stem in (record.wanted or record.links)
    }
    # No links at all is no reason to call a download complete.
    return bool(wanted) and wanted <= {(file.stem, file.format) for file in record.files}


class Journal:
    """The durable record of jobs, shared by all processes that open it.

    Args:
        path: A file, which is created where there is none, or a SQLAlchemy URL such as
            ``postgresql+asyncpg://user@host/database``. The file has to lie on a local disk.
        lease: Seconds after which another process may take over a job whose owner is silent.
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
        self._sql, self._database = _prepared(os.fspath(path))
        self._lease = lease
        self._clock = clock
        self._me = ""
        self._owned: set[str] = set()
        self._openings = 0
        self._opening = anyio.Lock()
        self._waiting: list[Pending] = []
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
            JournalError: It cannot be used; what was there is byte for byte as it was.
        """
        async with self._opening:
            if self._engine is None:
                with self._explained():
                    self._engine = await self._database.connect(self._sql)
                self._me = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
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
                    await self._write(self._resign)
                except JournalError as error:
                    logger.warning("Leases were not given back, they run out instead: %s", error)
                finally:
                    self._engine = None
                    self._owned.clear()
                    await engine.dispose()

    async def enter(self, record: JobRecord, *, force: bool = False) -> tuple[JobRecord, bool]:
        """Write a job down before anything is sent, unless the same one is there already.

        Returns:
            The record now owned by this journal and true; or the one that stands in its way (it is
            done, running, unknown or expired) and false. Its lease is taken where nobody holds
            it: see `owns`.

        Raises:
            JournalError: It could not be written.
        """

        async def work(connection: AsyncConnection) -> tuple[JobRecord, bool, bool]:
            values = {"which": record.fingerprint, "now": self._clock()}
            rows = () if force else await connection.execute(self._sql.same, values)
            for row in rows:
                found = _record(row)
                if not may_be_submitted_again(found):
                    free = row.free or row.owner == self._me
                    if row.free:
                        await connection.execute(self._sql.take, self._about(found.id))
                    return found, False, free
            await connection.execute(self._sql.insert, {**_row(record), "owner": self._me})
            return record, True, True

        found, new, owned = await self._write(work)
        if owned:
            self._owned.add(found.id)
        return found, new

    async def save(self, record: JobRecord) -> None:
        """Write down all that is known of a job that this journal owns.

        Raises:
            JournalError: Another process has taken the job over, or it could not be written.
        """

        async def work(connection: AsyncConnection) -> bool:
            values = {**_row(record), **self._about(record.id)}
            return (await connection.execute(self._sql.save, values)).rowcount == 1

        if not await self._write(work):
            self._owned.discard(record.id)
            raise JournalError(
                f"The job {record.id} is not this process's any more: its lease ran out and "
                f"another process has taken it over, or it is not in the journal "
                f"{self._database.name}. Nothing was written; leave the job to its owner."
            )

    async def claim(
        self, *, states: Collection[JobState] | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        """Take over unfinished jobs that nobody owns, or whose owner's lease ran out.

        Args:
            states: Only jobs in these states.
            limit: Jobs, at most.

        Returns:
            The jobs, the oldest first.
        """
        values = {
            "now": self._clock(),
            "states": [str(state) for state in (JobState if states is None else states)],
            "most": EVERYTHING if limit is None else limit,
        }

        async def work(connection: AsyncConnection) -> list[JobRecord]:
            rows = await connection.execute(self._sql.unowned, values)
            found = await _decoded(rows, _record)
            await connection.execute(self._sql.take_unowned, {**values, "me": self._me})
            await connection.execute(self._sql.forget, values)
            return found

        found = await self._write(work)
        self._owned.update(record.id for record in found)
        return found

    async def renew(self) -> None:
        """Extend every lease of this journal from now on."""
        await self._write(_nothing)

    async def release(self, id: str) -> None:  # noqa: A002 - the record's own name for it
        """Give the lease of a job back, so that any process may take it."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self._sql.release, self._about(id))

        await self._write(work)
        self._owned.discard(id)

    def owns(self, id: str) -> bool:  # noqa: A002 - the record's own name for it
        """Tell whether this journal holds the job's lease, as far as it knows."""
        return id in self._owned

    async def records(self) -> AsyncIterator[JobRecord]:
        """Read every job, the oldest first, a page at a time."""
        last = 0
        while found := await self._read(self._sql.page, {"last": last}, _numbered):
            for last, record in found:  # noqa: B007 - the next page starts behind it
                yield record

    async def find(self, id_or_task_id: str) -> JobRecord | None:
        """Read the job with this id or task_id, the newest where there are several."""
        found = await self._read(self._sql.find, {"which": id_or_task_id}, _record)
        return found[0] if found else None

    async def owners(self) -> dict[str, Lease]:
        """Read who works on which job: id → lease, for every job that has an owner."""
        now = self._clock()

        def lease(row: sa.Row[Any]) -> tuple[str, Lease]:
            until, mine = row.lease_until, row.owner == self._me
            return row.id, Lease(owner=row.owner, until=until, live=until > now, mine=mine)

        return dict(await self._read(self._sql.owned, {}, lease))

    def _about(self, id_: str) -> dict[str, str]:
        return {"which": id_, "me": self._me}

    async def _resign(self, connection: AsyncConnection) -> None:
        # A job whose owner is not there belongs to nobody.
        await connection.execute(self._sql.leave, {"me": self._me})

    async def _write(self, work: Work[T]) -> T:
        """Have the work done in a transaction that also renews the lease.

        Works that are asked for while another transaction runs share the next one, and its fsync.
        """
        self._opened()
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, outcome))
        if self._writer is None or self._writer.done():
            # In nobody's cancel scope: what one caller gives up, others may be waiting for.
            self._writer = asyncio.create_task(self._drain())
        # A write once asked for is waited for: what was sent has to be known, cancelled or not.
        with anyio.CancelScope(shield=True):
            await asyncio.shield(outcome)
        return outcome.result()

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._commit(batch)
            except BaseException:
                for _, outcome in [*batch, *self._waiting]:
                    outcome.cancel()
                raise

    async def _commit(self, batch: list[Pending]) -> None:
        """Commit works together; one that fails is put aside, and the others are tried again."""
        results: list[Any] = []
        working = False
        try:
            with self._explained():
                async with self._opened().begin() as connection:
                    await connection.execute(self._sql.lock)
                    await self._stay(connection)
                    working = True
                    for work, _ in batch:
                        results.append(await work(connection))
                    working = False
        except Exception as error:  # noqa: BLE001 - each is raised where the work was asked for
            failed = [batch.pop(len(results))] if working else list(batch)
            for _, outcome in failed:
                outcome.set_exception(error.fresh() if isinstance(error, JournalError) else error)
            self._waiting[:0] = batch if working else ()
        else:
            for (_, outcome), result in zip(batch, results, strict=True):
                outcome.set_result(result)

    async def _stay(self, connection: AsyncConnection) -> None:
        values = {"me": self._me, "until": self._clock() + self._lease}
        if not (await connection.execute(self._sql.stay, values)).rowcount:
            await connection.execute(self._sql.join, values)

    async def _read(
        self, statement: sa.Select[Any], values: Mapping[str, Any], decode: Callable[[Any], T]
    ) -> list[T]:
        with self._explained():
            engine = self._opened().execution_options(musicgpt_reading=True)
            async with engine.connect() as connection:
                rows = await connection.execute(statement, values)
            return await _decoded(rows, decode)

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise JournalError(f"The journal {self._database.name} is not open.")
        return self._engine

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever a database raises into one error that says what to do."""
        import sqlalchemy.exc  # noqa: PLC0415 - see _statements

        try:
            yield
        except JournalError:
            raise
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError, ValueError) as error:
            cause = getattr(error, "orig", None) or error
            raise JournalError(
                f"The journal {self._database.name} cannot be used: {_advice(cause)}"
            ) from cause


async def _decoded(rows: Iterable[Any], decode: Callable[[Any], T]) -> list[T]:
    """Decode rows, letting others run now and then."""
    found: list[T] = []
    for row in rows:
        found.append(decode(row))
        if not len(found) % PAGE:
            await anyio.lowlevel.checkpoint()
    return found


async def _nothing(_: AsyncConnection) -> None:
    """Leave it at renewing the lease."""


ADVICE = {
    sqlite3.SQLITE_BUSY: "another process keeps it locked; end that process or try again",
    sqlite3.SQLITE_FULL: "the disk is full; make room and try again",
    sqlite3.SQLITE_IOERR: "the disk failed; check its room, its limits and its health",
    sqlite3.SQLITE_READONLY: "it may not be written; make it and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its folder exists and is writable",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it aside and restore a copy, or start a new one",
    sqlite3.SQLITE_NOTADB: "it is no journal; move it aside or choose another path",
}


def _advice(error: BaseException) -> str:
    code = _code(error)
    return f"{ADVICE[code]} ({error})" if code in ADVICE else f"{error or type(error).__name__}"


def _code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _row(record: JobRecord) -> dict[str, Any]:
    """Turn a record into a row; the columns bear the names of its attributes."""
    return {
        **attrs.asdict(record, recurse=True),
        "state": str(record.state),
        "stems": [str(stem) for stem in record.stems],
        "preprocessing": [str(option) for option in record.preprocessing],
        "links": {stem: attrs.asdict(links) for stem, links in record.links.items()},
        "unfinished": is_unfinished(record),
    }


def _record(row: sa.Row[Any]) -> JobRecord:
    values = {field.name: getattr(row, field.name) for field in attrs.fields(JobRecord)}
    return JobRecord(
        **{
            **values,
            "state": JobState(row.state),
            "stems": tuple(row.stems),
            "preprocessing": tuple(row.preprocessing),
            "wanted": tuple(row.wanted),
            "links": {stem: StemLinks(**links) for stem, links in row.links.items()},
            "files": tuple(StemFile(**file) for file in row.files),
        }
    )


def _numbered(row: sa.Row[Any]) -> tuple[int, JobRecord]:
    return row.seq, _record(row)


@attrs.frozen
class _Statements:
    """Every statement that the journal makes; each is right on SQLite and on PostgreSQL."""

    metadata: sa.MetaData
    version: sa.Select[Any]
    set_version: sa.Insert
    lock: sa.Select[Any]
    stay: sa.Update
    join: sa.Insert
    leave: sa.Delete
    forget: sa.Delete
    insert: sa.Insert
    save: sa.Update
    same: sa.Select[Any]
    take: sa.Update
    unowned: sa.Select[Any]
    take_unowned: sa.Update
    release: sa.Update
    page: sa.Select[Any]
    find: sa.Select[Any]
    owned: sa.Select[Any]


@cache
def _statements() -> _Statements:
    # Only those who make a journal need the extra, and pay for its import.
    import sqlalchemy as sa  # noqa: PLC0415

    metadata = sa.MetaData()
    journal, owners, jobs = _tables(metadata)
    which, me = sa.bindparam("which", type_=sa.Text), sa.bindparam("me", type_=sa.Text)
    now, until = sa.bindparam("now", type_=sa.Double), sa.bindparam("until", type_=sa.Double)
    live = sa.exists().where(owners.c.id == jobs.c.owner, owners.c.lease_until > now)
    mine = jobs.update().where(jobs.c.owner == me)
    unowned = (
        sa.select(jobs)
        .where(jobs.c.unfinished, ~live, jobs.c.state.in_(sa.bindparam("states", expanding=True)))
        .order_by(jobs.c.seq)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    )
    return _Statements(
        metadata=metadata,
        version=sa.select(journal.c.version),
        set_version=journal.insert(),
        # One writer at a time: SQLite's BEGIN IMMEDIATE sees to it, PostgreSQL locks this row.
        lock=sa.select(journal.c.version).with_for_update(),
        stay=owners.update().where(owners.c.id == me).values(lease_until=until),
        join=owners.insert().values(id=me, lease_until=until),
        leave=owners.delete().where(owners.c.id == me),
        # The dead that left no job behind; what a dead owner still holds is claimed first.
        forget=owners.delete().where(
            owners.c.lease_until <= now, ~sa.exists().where(jobs.c.owner == owners.c.id)
        ),
        insert=jobs.insert(),
        save=mine.where(jobs.c.id == which),
        same=sa.select(jobs, (~live).label("free"))
        .where(jobs.c.fingerprint == which)
        .order_by(jobs.c.seq.desc()),
        take=jobs.update().where(jobs.c.id == which).values(owner=me),
        unowned=unowned,
        take_unowned=jobs.update()
        .where(jobs.c.seq.in_(unowned.with_only_columns(jobs.c.seq)))
        .values(owner=me),
        release=mine.where(jobs.c.id == which).values(owner=None),
        page=sa.select(jobs)
        .where(jobs.c.seq > sa.bindparam("last"))
        .order_by(jobs.c.seq)
        .limit(PAGE),
        find=sa.select(jobs)
        .where(sa.or_(jobs.c.id == which, jobs.c.task_id == which))
        .order_by(jobs.c.seq.desc())
        .limit(1),
        owned=sa.select(jobs.c.id, jobs.c.owner, owners.c.lease_until).join(
            owners, owners.c.id == jobs.c.owner
        ),
    )


def _tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table, sa.Table]:
    import sqlalchemy as sa  # noqa: PLC0415 - see _statements

    # Names of files need not be valid Unicode and labels may hold anything: JSON bears them all.
    json = sa.JSON(none_as_null=True)
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
        sa.Column("source", json, nullable=False),
        sa.Column("label", json),
        sa.Column("stems", json, nullable=False),
        sa.Column("preprocessing", json, nullable=False),
        sa.Column("token", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("sha256", sa.Text),
        sa.Column("task_id", sa.Text, index=True),
        sa.Column("conversion_id", sa.Text),
        sa.Column("eta", sa.Double),
        sa.Column("credit_estimate", sa.Double),
        sa.Column("sent_at", sa.Double),
        sa.Column("accepted_at", sa.Double),
        sa.Column("links", json, nullable=False),
        sa.Column("cost", sa.Double),
        sa.Column("duration", sa.Double),
        sa.Column("directory", json),
        sa.Column("format", sa.Text),
        sa.Column("wanted", json, nullable=False),
        sa.Column("files", json, nullable=False),
        sa.Column("error", json),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("unfinished", sa.Boolean, nullable=False),
        sa.Column("owner", sa.Text, index=True),
        sa.Index("ix_musicgpt_jobs_unfinished", "unfinished", "seq"),
    )
    return journal, owners, jobs


def _prepared(path: str) -> tuple[_Statements, _Database]:
    try:
        sql, database = _statements(), _database(path)
        database.url.get_dialect().import_dbapi()
    except ImportError as error:
        driver = " asyncpg" if error.name == "asyncpg" else ""
        raise ConfigurationError(
            f"A journal needs {error.name}, which is not installed: "
            f'pip install "musicgpt-async[journal]"{driver}'
        ) from error
    return sql, database


@attrs.frozen
class _Database:
    """Where the journal lies, and how a connection to it is made."""

    url: sa.URL
    file: Path | None

    @property
    def name(self) -> str:
        return str(self.file or self.url.render_as_string(hide_password=True))

    async def connect(self, sql: _Statements) -> AsyncEngine:
        engine = await anyio.to_thread.run_sync(_engine, self)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(self._prepare, sql)
            if self.file is not None:
                await _use_wal(engine)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await engine.dispose()
            raise
        return engine

    def _prepare(self, connection: sa.Connection, sql: _Statements) -> None:
        if self.file is None:  # SQLite's transaction keeps others out already
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID})")
        if not connection.dialect.has_table(connection, "musicgpt_journal"):
            if self.file is not None:
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            sql.metadata.create_all(connection)
            connection.execute(sql.set_version, {"version": SCHEMA_VERSION})
        _check_version(self.name, connection.execute(sql.version).scalar())


def _database(path: str) -> _Database:
    from sqlalchemy import URL, make_url  # noqa: PLC0415 - see _statements
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - see _statements

    if "://" not in path:
        file = Path(path).absolute()
        return _Database(URL.create("sqlite+aiosqlite", database=str(file)), file)
    try:
        url = make_url(path)
    except ArgumentError:
        url = URL.create("unreadable")
    if url.get_backend_name() == "sqlite" and url.database:
        return _database(url.database)
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError("A journal is a file, or a URL of SQLite or PostgreSQL.")
    return _Database(url.set(drivername="postgresql+asyncpg"), None)


def _engine(database: _Database) -> AsyncEngine:
    """Make an engine, which connects to nothing yet; a file is inspected before."""
    from sqlalchemy import event, pool  # noqa: PLC0415 - see _statements
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - see _statements

    # Values of parameters (tokens!) stay out of every message.
    options: dict[str, Any] = {
        "hide_parameters": True,
        "poolclass": pool.AsyncAdaptedQueuePool,
        "pool_size": 2,  # the writer's and one for readers
        "max_overflow": 0,
    }
    if database.file is None:
        server = {"lock_timeout": str(int(PATIENCE * 1000))}
        return create_async_engine(
            database.url, pool_pre_ping=True, connect_args={"server_settings": server}, **options
        )
    _inspect(database.file)
    engine = create_async_engine(
        database.url, connect_args={"isolation_level": None, "timeout": PATIENCE}, **options
    )
    event.listen(engine.sync_engine, "connect", _sync_fully)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


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
        deadline = anyio.current_time() + PATIENCE
        while True:
            try:
                async with driver.execute("PRAGMA journal_mode = WAL"):
                    return
            except sqlite3.OperationalError as error:
                # Of two that switch at once SQLite lets neither wait for the other.
                if _code(error) != sqlite3.SQLITE_BUSY or anyio.current_time() > deadline:
                    raise
                await anyio.sleep(random.uniform(0.01, 0.05))


def _check_version(name: str, version: int | None) -> None:
    if version != SCHEMA_VERSION:
        raise JournalError(
            f"The journal {name} has schema version {version}, and this release of musicgpt-async "
            f"knows version {SCHEMA_VERSION}. Upgrade musicgpt-async, or use another journal."
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
    if not header and not _has_content(_beside(file, "-wal")):
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
            return _look_into(file)
        except (JournalError, sqlite3.Error):
            if _traces(file) == before:
                raise
            # Another process wrote while we looked past its locks: look again.


def _traces(file: Path) -> list[tuple[int, int]]:
    found = (_stat(path) for path in (file, _beside(file, "-wal"), _beside(file, "-journal")))
    return [(entry.st_size, entry.st_mtime_ns) if entry else (0, 0) for entry in found]


def _look_into(file: Path) -> None:
    if _has_content(_beside(file, "-journal")):
        return  # Its creation was broken off: SQLite undoes that when it opens the file.
    # Without a log beside it the file is all there is, and `immutable` makes no log either.
    query = "mode=ro" if _has_content(_beside(file, "-wal")) else "mode=ro&immutable=1"
    uri = f"{file.as_uri()}?{query}"
    with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE)) as database:
        version = database.execute("SELECT version FROM musicgpt_journal").fetchone()
        _check_version(str(file), version and version[0])
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise JournalError(f"The journal {file} is damaged ({verdict}); restore a copy of it.")


def _beside(file: Path, ending: str) -> Path:
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
