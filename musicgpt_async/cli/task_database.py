"""The database of the task queue: how commands open it, and what is wrong if they cannot."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from musicgpt_async.cli.text import mask_password
from musicgpt_async.cli.usage import UsageError

if TYPE_CHECKING:
    from procrastinate import App

NAMESPACE = "musicgpt"
EXTRACT = f"{NAMESPACE}:extract"
CONNECT_TIMEOUT = 10  # seconds
# One more than procrastinate needs at once: to fetch, to save and to send heartbeats.
CONNECTIONS = 4
# Serialises commands that create the tables: "mGPq", as the journal has "mGPT".
SCHEMA_LOCK = 0x6D475071
_MISSING = (
    "Tasks need packages that are not installed. "
    'Install them with: pip install "musicgpt-async[procrastinate]"'
)


@asynccontextmanager
async def open_app(
    database: str, *, create: bool = True, stalled_after: float | None = None
) -> AsyncIterator[App]:
    """Provide procrastinate's app with our tasks.

    Args:
        database: A URL such as ``postgresql://user:password@host/name``.
        create: Whether to create procrastinate's tables if they do not exist.
        stalled_after: Seconds after which the tasks of a silent worker are given to others.

    Raises:
        UsageError: A package is missing, or the database cannot be used.
    """
    try:
        import psycopg  # noqa: PLC0415 - as the imports below, an extra
        from procrastinate import App, PsycopgConnector  # noqa: PLC0415
        from procrastinate.exceptions import ConnectorException  # noqa: PLC0415

        from musicgpt_async.task_queue import STALLED_AFTER, make_blueprint  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(_MISSING) from error
    for name in ("procrastinate", "psycopg"):  # what they log, the commands say themselves
        logging.getLogger(name).addHandler(logging.NullHandler())
    connector = PsycopgConnector(
        conninfo=libpq_url(database),
        min_size=1,
        max_size=CONNECTIONS,
        timeout=CONNECT_TIMEOUT,
        # Else the pool waits as long as an outage has lasted before it connects again.
        reconnect_timeout=CONNECT_TIMEOUT / 2,
        # Behind pgbouncer the next statement may meet a server that has not prepared it.
        kwargs={"connect_timeout": CONNECT_TIMEOUT, "prepare_threshold": None},
    )
    app = App(connector=connector)
    app.add_tasks_from(
        make_blueprint(stalled_after=stalled_after or STALLED_AFTER), namespace=NAMESPACE
    )
    try:
        await _prepare(app, libpq_url(database), create=create)
        await app.open_async()
    except (psycopg.Error, ConnectorException, OSError) as error:
        raise UsageError(describe_failure(database, error)) from error
    try:
        yield app
    finally:
        with anyio.CancelScope(shield=True):
            await app.close_async()


async def _prepare(app: App, url: str, *, create: bool) -> None:
    """Create the tables if need be, on a connection of its own: the pool's do not fail fast."""
    import psycopg  # noqa: PLC0415 - see open_app

    async with await psycopg.AsyncConnection.connect(
        url, connect_timeout=CONNECT_TIMEOUT
    ) as connection:
        if not create:
            return
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
        cursor = await connection.execute("SELECT to_regclass('procrastinate_jobs')")
        if await cursor.fetchone() == (None,):
            await connection.execute(app.schema_manager.get_schema())


def libpq_url(database: str) -> str:
    """Return a URL as PostgreSQL's own library reads it: without a driver of SQLAlchemy's.

    Raises:
        UsageError: It is no URL of PostgreSQL.
    """
    scheme, separator, rest = database.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise UsageError(
            "--database takes a URL of PostgreSQL, such as postgresql://user:password@host/name; "
            f"not {mask_password(database)!r}."
        )
    return f"postgresql://{rest}"


def describe_failure(database: str, error: BaseException) -> str:
    """Return one line for what the database said."""
    cause = error.__cause__ or error
    words = " ".join(str(cause).split()) or type(cause).__name__
    return f"The database {mask_password(database)} cannot be used: {words}"
