"""A TCP proxy between a process and a server, whose network can be made bad."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from urllib.parse import urlsplit

import attrs


@attrs.define(eq=False)
class Proxy:
    """What it does to the bytes that pass.

    Attributes:
        url: Where the server is reached by way of it.
        delay: Seconds that each piece takes, in both directions.
        is_silent: Whether it takes bytes and passes none on, and takes connections to nowhere.
        cut_after: Bytes of a client after which their connection is cut: they still pass, and
            nothing comes back. It happens once.
        cuts: How many connections were cut so.
    """

    url: str
    _host: str
    _port: int
    delay: float = 0.0
    is_silent: bool = False
    cut_after: bytes | None = None
    cuts: int = 0
    _writers: set[asyncio.StreamWriter] = attrs.field(factory=set)
    _refuses: bool = False

    def cut(self, *, refuse: bool = False) -> None:
        """Cut all connections; with `refuse` no other one is taken until `restore`."""
        self._refuses = refuse
        for writer in self._writers:
            writer.transport.abort()

    def move_to(self, port: int) -> None:
        """Lead to another server from now on."""
        self._port = port
        self.cut()

    def restore(self) -> None:
        """Have a good network again. Connections that hung in a silent one are cut."""
        self.delay, self.is_silent, self._refuses = 0.0, False, False
        self.cut()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self._refuses:
            to_client.transport.abort()
            return
        with self._open(to_client), suppress(OSError):
            server, to_server = await asyncio.open_connection(self._host, self._port)
            with self._open(to_server):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass(client, to_server, to_client, is_client=True))
                    tasks.create_task(self._pass(server, to_client, to_server, is_client=False))

    @contextmanager
    def _open(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Let `cut` reach a connection, and abort it at the end of the block."""
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
        *,
        is_client: bool,
    ) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                await asyncio.sleep(self.delay)
                if self.is_silent:
                    continue
                is_last = is_client and self.cut_after is not None and self.cut_after in data
                if is_last:
                    self.cut_after = None
                    self.cuts += 1
                    other.transport.abort()  # before the answer can come
                target.write(data)
                await target.drain()
                if is_last:
                    await asyncio.sleep(0.2)  # the server reads a request before it sees the end
                    break
        for writer in (target, other):
            writer.transport.abort()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """Run a proxy before the server of a URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy("", parts.hostname, parts.port)
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy.url = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut(refuse=True)
        await asyncio.sleep(0)
