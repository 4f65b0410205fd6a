"""Small servers on real sockets that record exact bytes and send scripted responses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
import stamina
import trustme
from factories.downloads import Get, ignore

from musicgpt_async._io.download import DownloadedFile, Downloader
from musicgpt_async._io.http import Transport
from musicgpt_async._io.response_body import iter_chunks


@attrs.frozen
class Request:
    """One request, as its bytes came."""

    line: str
    headers: dict[str, str]
    raw_head: bytes
    body: bytes

    @property
    def path(self) -> str:
        """The target of the request line."""
        return self.line.split(" ")[1]


@attrs.define
class Peer:
    """One accepted connection."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> Request:
        """Read a request's head and nothing of its body."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *rest = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        pairs = (each.partition(":") for each in rest)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        return Request(line, headers, raw, b"")

    async def request(self) -> Request:
        """Read a complete request, according to its Content-Length."""
        head = await self.head()
        length = int(head.headers.get("content-length", "0"))
        return attrs.evolve(head, body=await self.reader.readexactly(length))

    async def say(self, data: bytes) -> None:
        """Send these very bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Return a response with a correct Content-Length, unless a header overrides it."""
        named = {"Content-Length": str(len(body))}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status} Said", *(f"{n}: {v}" for n, v in named.items() if v), "", ""]
        await self.say("\r\n".join(lines).encode("latin-1") + body)

    async def rest(self) -> bytes:
        """Read until the other side hangs up."""
        iter_chunks = []
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(1 << 20):
                iter_chunks.append(piece)
        return b"".join(iter_chunks)

    def reset(self) -> None:
        """Hang up with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@attrs.define
class Server:
    """A listening socket and what has happened at it."""

    port: int
    connections: int = 0
    open: int = 0
    most_open: int = 0
    failures: list[BaseException] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.port}"


Handler = Callable[[Peer], Awaitable[None]]
Serve = Callable[..., AbstractAsyncContextManager[Server]]


@asynccontextmanager
async def serving(
    handler: Handler, *, window: int | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Serve each connection with ``handler``; ``window`` is the kernel's receive buffer."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if window is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    listener.bind(("127.0.0.1", 0))
    state = Server(listener.getsockname()[1])
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        state.connections += 1
        state.open += 1
        state.most_open = max(state.open, state.most_open)
        try:
            await handler(Peer(state.connections, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client hung up, as clients do, or the test is over
        except Exception as error:
            state.failures.append(error)
            raise
        finally:
            state.open -= 1
            writer.close()

    server = await asyncio.start_server(serve, sock=listener, limit=1 << 16, ssl=tls)
    try:
        yield state
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not state.failures


@pytest.fixture
def serve() -> Serve:
    """Start raw servers, for as long as a block takes."""
    return serving


@pytest.fixture(scope="module")
def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a host of ours serves TLS with, and what trusts it."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    return theirs, ours


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """The threads that touch files."""
    with ThreadPoolExecutor(4, thread_name_prefix="test-files") as threads:
        yield threads


@asynccontextmanager
async def _opened(**settings: object) -> AsyncIterator[Transport]:
    given = {"request_timeout": 30.0, "downloads": 4, "is_allowed": lambda _: True, **settings}
    transport = Transport(given.pop("api_key", "key-3f9a7c51e0"), **given)  # type: ignore[arg-type]
    transport.open()
    try:
        yield transport
    finally:
        with anyio.CancelScope(shield=True):
            await transport.close()


@pytest.fixture
def lanes() -> Callable[..., AbstractAsyncContextManager[Transport]]:
    """Open transports with the settings given, for as long as a block takes."""
    return _opened


@pytest.fixture
def get(lanes: Any, executor: ThreadPoolExecutor) -> Get:
    """Download a link to a path, as the session would with the API on loopback."""

    async def download(url: str, target: Path, **settings: Any) -> DownloadedFile:
        given = {"allow_loopback": True, "digests": True, **settings}
        named = {"content_key": "a task", "progress": ignore}
        chosen = {name: given.pop(name, default) for name, default in named.items()}
        given = {"executor": executor, **given}
        timeout = given.pop("request_timeout", 30.0)
        async with lanes(request_timeout=timeout) as transport:
            receive = partial(iter_chunks, read_timeout=timeout)
            downloader = Downloader(stream=transport.stream, read_chunks=receive, **given)
            return await downloader.download(url, target, **chosen)

    return download


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port without a listener."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening, so that connections are refused
        yield sock.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own settings out of what is seen here."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def no_backoff() -> Iterator[None]:
    """Try again at once, through stamina's own testing mode, so that no test waits for nothing."""
    with stamina.set_testing(True, attempts=1000):
        yield
