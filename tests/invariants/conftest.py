"""What the tests of the promises share: sessions, tracks, receivers, journals and an end to hangs.

The promises are those of a paid API: paid once, no job forgotten, every wait ends. They are tested
by the public interface and the emulator alone, over real sockets and journals on real files.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import socket
import sqlite3
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest
import sqlalchemy.ext.asyncio  # noqa: F401 - loaded before any test's time runs
from aiohttp import web

from musicgpt_async import ExtractionJob, Journal, Limits, MusicGPTSession, WebhookReceiver
from musicgpt_async.emulator import Emulator
from musicgpt_async.models import JobRecord

HERE = Path(__file__).parent
# Seconds of the test's loop after which a wait that has not ended is a failure; a test that is
# known to fail hangs for less.
HANG, KNOWN_HANG = 20.0, 4.0
SAVED = 3.0  # seconds in which a change of a record is on disk


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "hang(seconds): when the test counts as hanging")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Limit the duration of every test here: a hang fails within seconds and shows its stack."""
    runs_xfail = config.getoption("runxfail")
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent == HERE:
            mark = item.get_closest_marker("hang")
            is_known = item.get_closest_marker("xfail") and not runs_xfail
            usual = KNOWN_HANG if is_known else HANG
            if inspect.iscoroutinefunction(item.obj):
                item.obj = _bounded(item.obj, mark.args[0] if mark else usual)


def _bounded(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Any]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with anyio.fail_after(seconds):
            await test(*args, **kwargs)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep lone surrogates out of reports: xdist cannot send them from worker to worker."""
    report = yield
    report.sections = [(name, _printable(text)) for name, text in report.sections]
    if report.longrepr and _printable(str(report.longrepr)) != str(report.longrepr):
        report.longrepr = _printable(str(report.longrepr))
    return report


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(autouse=True)
def _known_failures_leave_nothing_to_others(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what a test that is known to fail has left open, lest it fails the next one."""
    yield
    if request.node.get_closest_marker("xfail"):
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        sys.unraisablehook = hook


Connect = Callable[..., MusicGPTSession]


@pytest.fixture
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Make sessions with an emulator; what a test leaves open is closed without draining."""
    made: list[MusicGPTSession] = []

    def make(vendor: Emulator, **options: Any) -> MusicGPTSession:
        options = {"base_url": vendor.base_url, "limits": Limits.PRO, **options}
        made.append(MusicGPTSession(options.pop("api_key", vendor.api_key), **options))
        return made[-1]

    yield make
    # In tasks of their own: how a broken session is closed must not decide about its test.
    closing = [asyncio.create_task(session.aclose(drain=False)) for session in made]
    if closing:
        patience = KNOWN_HANG if request.node.get_closest_marker("xfail") else HANG
        done, _ = await asyncio.wait(closing, timeout=patience)
        for each in done:
            each.exception()
        await asyncio.sleep(0.01)  # the emulator's side of the connections sees their end, too


MakeTrack = Callable[..., Path]


@pytest.fixture
def make_track(tmp_path: Path) -> MakeTrack:
    """Write tracks, different for each name."""

    def make(name: str = "song.mp3", size: int = 20_000) -> Path:
        path = tmp_path / name
        path.write_bytes((b"ID3" + name.encode()).ljust(size, b"~"))
        return path

    return make


OpenReceiver = Callable[..., AbstractAsyncContextManager[WebhookReceiver]]


@pytest.fixture
def open_receiver() -> OpenReceiver:
    """Serve receivers of webhooks, each at a port of its own for as long as a block takes."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[WebhookReceiver]:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/hooks"
        receiver = WebhookReceiver(url, **options)
        application = web.Application()
        application.add_routes(receiver.routes())
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        try:
            yield receiver
        finally:
            await runner.cleanup()

    return opened


ReadRecords = Callable[..., Awaitable[list[JobRecord]]]


@pytest.fixture
def read_records() -> ReadRecords:
    """Read what a journal holds, the oldest job first.

    Records are saved when there is time: with `once`, read again for some seconds until it is true
    of them all.
    """

    async def read(
        path: Path, once: Callable[[JobRecord], Any] = lambda _: True
    ) -> list[JobRecord]:
        records: list[JobRecord] = []
        async with Journal(path) as journal:
            with anyio.move_on_after(SAVED):
                while not records or not all(map(once, records)):
                    await anyio.sleep(0.02)
                    records = [record async for record in journal.records()]
        return records

    return read


Hold = Callable[[Path], AbstractAsyncContextManager[None]]


@pytest.fixture
def hold_journal() -> Hold:
    """Keep a journal's file locked, as another program does, for as long as a block takes."""

    @asynccontextmanager
    async def held(path: Path) -> AsyncIterator[None]:
        database = sqlite3.connect(
            path, timeout=HANG, isolation_level=None, check_same_thread=False
        )
        try:
            await anyio.to_thread.run_sync(database.execute, "BEGIN IMMEDIATE")
            yield
        finally:
            database.close()

    return held


Until = Callable[[Callable[[], Any]], Awaitable[None]]


@pytest.fixture
def until() -> Until:
    """Wait for a condition without an event; the test's own timeout limits it."""

    async def wait(condition: Callable[[], Any]) -> None:
        while not condition():
            await anyio.sleep(0.005)

    return wait


Ends = Callable[..., Awaitable[list[str]]]


@pytest.fixture
def ends() -> Ends:
    """Wait for handles and return how each ends: its task, or the name of its error."""

    async def wait(*jobs: ExtractionJob) -> list[str]:
        found = dict.fromkeys(range(len(jobs)), "")

        async def one(number: int) -> None:
            try:
                found[number] = (await jobs[number]).task_id
            except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
                found[number] = type(error).__name__

        # Not asyncio.gather: cancelled, it loses the reason by which anyio knows its own bound.
        async with anyio.create_task_group() as waiters:
            for number in found:
                waiters.start_soon(one, number)
        return [*found.values()]

    return wait


Paid = Callable[[Emulator], dict[str | None, int]]


@pytest.fixture
def paid() -> Paid:
    """Count the submits that the vendor accepted, by the name of the file."""
    return lambda vendor: dict(Counter(each.file_name for each in vendor.submissions))


Back = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytearray], Coroutine[Any, Any, None]]


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: bytearray) -> None:
    """Carry bytes from one side to the other until the first hangs up."""
    while piece := await reader.read(1 << 16):
        writer.write(piece)
        await writer.drain()


@attrs.define
class Relay:
    """A TCP relay in front of the emulator.

    Attributes:
        base_url: What a client takes for its base URL.
        gate: Nothing of a request is read before it is set.
        pace: Seconds between two reads of 64 KiB from a client.
        back: Carries the answers; it is called for each connection with the vendor's reader, the
            client's writer and what the client has sent so far.
        sent: What the client sent over each connection.
    """

    base_url: str
    gate: anyio.Event | None
    back: Back
    pace: float
    sent: list[bytearray] = attrs.field(factory=list)
    tasks: set[asyncio.Task[None]] = attrs.field(factory=set)

    async def serve(
        self, vendor: Emulator, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one connection."""
        self.tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        host, _, port = vendor.url.removeprefix("http://").partition(":")
        with closing(writer):
            from_vendor, to_vendor = await asyncio.open_connection(host, int(port))
            with closing(to_vendor):
                await self._carry(reader, writer, from_vendor, to_vendor)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_vendor: asyncio.StreamReader,
        to_vendor: asyncio.StreamWriter,
    ) -> None:
        """Carry both ways until the first side hangs up, or the test is over."""
        sent = bytearray()
        self.sent.append(sent)
        ways = [
            asyncio.create_task(self._forward(reader, to_vendor, sent)),
            asyncio.create_task(self.back(from_vendor, writer, sent)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytearray
    ) -> None:
        if self.gate is not None:
            await self.gate.wait()
        while piece := await reader.read(1 << 16):
            sent.extend(piece)
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(self.pace)


OpenRelay = Callable[..., AbstractAsyncContextManager[Relay]]


@pytest.fixture
def open_relay() -> OpenRelay:
    """Run a relay between clients and an emulator for the duration of the block."""

    @asynccontextmanager
    async def opened(
        vendor: Emulator,
        *,
        gate: anyio.Event | None = None,
        back: Back = copy,
        pace: float = 0.0,
    ) -> AsyncIterator[Relay]:
        relay = Relay("", gate, back, pace)
        server = await asyncio.start_server(functools.partial(relay.serve, vendor), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        relay.base_url = vendor.base_url.replace(vendor.url, f"http://127.0.0.1:{port}")
        try:
            yield relay
        finally:
            server.close()
            for task in relay.tasks:
                task.cancel()
            await asyncio.gather(*relay.tasks, return_exceptions=True)

    return opened
