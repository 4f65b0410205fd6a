"""Wake-ups across processes: something that concerns others was written to the journal.

On a server they are PostgreSQL's notifications; in a file, SQLite's count of the commits of other
connections is read at short intervals. A notification only wakes: the database says what is so, and
a waiter asks it after ``wait_limit`` seconds at the latest, notified or not. So a pooler that
swallows notifications costs latency and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from musicgpt_async._io.file_engine import FileEngine

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncEngine

_log = logging.getLogger(__name__)

CHANNEL = "musicgpt_journal"
PROOF = "proof"  # sent by a process to itself, to check that notifications arrive
NOTIFIED_WAIT, UNNOTIFIED_WAIT = 5.0, 1.0  # seconds that a waiter waits at most
FILE_POLL_INTERVAL = 0.04  # seconds
CHECK_INTERVAL = 5.0  # seconds between two proofs that notifications arrive
RECONNECT_DELAY = 1.0  # seconds

Callback: TypeAlias = "Callable[[str], None]"


class Notifications:
    """What one process hears of the others. A task of its own listens while anyone wants to hear.

    Args:
        engine: Connects to the database.
    """

    def __init__(self, engine: AsyncEngine | FileEngine) -> None:
        self._engine = engine
        self._callbacks: dict[object, Callback] = {}
        self._listener: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._proven = asyncio.Event()

    @property
    def wait_limit(self) -> float:
        """Seconds after which a waiter asks the database by itself."""
        return NOTIFIED_WAIT if self._proven.is_set() else UNNOTIFIED_WAIT

    @contextmanager
    def listen(self, callback: Callback) -> Iterator[None]:
        """Call back for each notification, with its text, empty if anything may have changed."""
        key = object()
        self._callbacks[key] = callback
        if self._listener is None:
            self._listener = asyncio.create_task(self._run())
        try:
            yield
        finally:
            del self._callbacks[key]
            if not self._callbacks and self._listener is not None:
                self._listener.cancel()
                self._stopping.add(self._listener)
                self._listener.add_done_callback(self._stopping.discard)
                self._listener = None
                self._proven.clear()

    async def prove(self, seconds: float) -> bool:
        """Return whether notifications arrive within so many seconds."""
        with self.listen(lambda _: None), anyio.move_on_after(seconds):
            await self._proven.wait()
            return True
        return False

    async def close(self) -> None:
        """Wait until the listener has stopped; the last subscriber has left by then."""
        if self._stopping:
            await asyncio.wait(self._stopping)

    async def _run(self) -> None:
        while True:
            try:
                if isinstance(self._engine, FileEngine):
                    await self._watch_file(self._engine)
                else:
                    await self._listen(self._engine)
            except Exception as error:  # noqa: BLE001 - waiters ask the database by themselves
                self._proven.clear()
                _log.debug("Notifications of the journal do not arrive: %r", error)
            await anyio.sleep(RECONNECT_DELAY)

    async def _listen(self, engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            try:
                await self._hear((await connection.get_raw_connection()).driver_connection)
            finally:  # it is not to be used by others, who would be called back
                with anyio.CancelScope(shield=True):
                    await connection.invalidate()

    async def _hear(self, driver: Any) -> None:
        heard, closed = asyncio.Event(), asyncio.Event()

        def on_notification(_connection: Any, _pid: int, _channel: str, text: str) -> None:
            heard.set()
            if text != PROOF:
                self._call_back(text)

        driver.add_termination_listener(lambda _: closed.set())
        await driver.add_listener(CHANNEL, on_notification)
        self._call_back("")
        while not driver.is_closed():
            heard.clear()
            await driver.execute(f"NOTIFY {CHANNEL}, '{PROOF}'")
            with anyio.move_on_after(UNNOTIFIED_WAIT):
                await heard.wait()
            if heard.is_set():
                self._proven.set()
            else:
                self._proven.clear()
            with anyio.move_on_after(CHECK_INTERVAL):
                await closed.wait()

    async def _watch_file(self, engine: FileEngine) -> None:
        connection = await engine.call(engine.connect)
        last = None
        try:
            while True:
                version = await engine.call(_read_data_version, connection)
                if version != last:
                    last = version
                    self._call_back("")
                await anyio.sleep(FILE_POLL_INTERVAL)
        finally:
            with anyio.CancelScope(shield=True):
                await engine.call(connection.close)

    def _call_back(self, text: str) -> None:
        for callback in tuple(self._callbacks.values()):
            callback(text)


def _read_data_version(connection: sa.PoolProxiedConnection) -> int:
    cursor = connection.cursor()
    cursor.execute("PRAGMA data_version")
    (version,) = cursor.fetchone() or (0,)
    cursor.close()
    return int(version)
