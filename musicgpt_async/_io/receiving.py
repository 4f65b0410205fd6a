"""The body of an answer, in pieces large enough to be written one by one.

aiohttp's parser copies every body once more and wakes its reader for each packet. A body whose
length the head tells needs no parser: it goes from the socket straight into the memory that it is
written from, and aiohttp gets its connection back. The others go through the parser.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, Self

import aiohttp

# Smaller writes cost more CPU than the copying they save.
GATHERED = 1 << 20
_BREAKS = (aiohttp.ClientError, ConnectionError, TimeoutError)

Piece = bytes | memoryview


async def pieces(
    response: aiohttp.ClientResponse, *, patience: float
) -> AsyncGenerator[list[Piece], None]:
    """Yield the body, about ``GATHERED`` bytes at a time, the last ones also where it breaks off.

    What is yielded is good until the next is asked for.

    Args:
        response: Its body as yet unread, and not to be decompressed by aiohttp.
        patience: Seconds without a byte before the host is given up.

    Raises:
        TimeoutError: The host sent nothing for as long.
        ConnectionError: The connection broke.
        aiohttp.ClientError: The same, seen by aiohttp, or the body is none in HTTP's terms.
    """
    with (
        _Watchdog(response, patience) as watchdog,
        _source(response, watchdog.wait) as source,
    ):
        while True:
            watchdog.wait()
            try:
                came = await source.take()
            except _BREAKS as error:
                if watchdog.has_barked:
                    raise TimeoutError from error
                raise
            watchdog.rest()
            if not came:
                return
            yield came


class _Watchdog:
    """Hangs up on a host that sends nothing, which is cheaper than a timeout for each read."""

    def __init__(self, response: aiohttp.ClientResponse, patience: float) -> None:
        self._response = response
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self.has_barked = False

    def __enter__(self) -> Self:
        self.wait()
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def wait(self) -> None:
        """Have patience from now on: it is the host's turn."""
        self._since = self._loop.time()

    def rest(self) -> None:
        """Have all the time: it is our turn."""
        self._since = math.inf

    def _look(self) -> None:
        if self._loop.time() - self._since >= self._patience:
            self.has_barked = True
            self._response.close()
        else:
            self._timer = self._loop.call_later(self._patience / 4, self._look)


class _Source(Protocol):
    async def take(self) -> list[Piece]:
        """Return what comes next, none at the end; raise once what came has been taken."""


def _source(
    response: aiohttp.ClientResponse, heard: Callable[[], None]
) -> AbstractContextManager[_Source]:
    """Return where the body is taken from; ``heard`` is called when some of it comes."""
    connection, length = response.connection, response.content_length
    if connection is None or length is None or "Transfer-Encoding" in response.headers:
        return nullcontext(_Parsed(response.content, heard))
    transport, protocol = connection.transport, connection.protocol
    if transport is None or protocol is None or transport.is_closing():
        return nullcontext(_Parsed(response.content, heard))
    return _Sink(transport, protocol, response.content, length, heard)


class _Parsed:
    """The body as aiohttp's parser hands it out."""

    def __init__(self, content: aiohttp.StreamReader, heard: Callable[[], None]) -> None:
        self._content = content
        self._heard = heard

    async def take(self) -> list[Piece]:
        gathered: list[Piece] = []
        size = 0
        try:
            while size < GATHERED:
                # Not readany(), which joins what waits: it is written from where it lies.
                chunk, _ = await self._content.readchunk()
                if not chunk and self._content.at_eof():
                    break
                self._heard()
                gathered.append(chunk)
                size += len(chunk)
        except _BREAKS:
            if not gathered:
                raise
        return gathered


class _Sink(asyncio.BufferedProtocol):
    """Stands in for aiohttp's protocol while the rest of a body comes.

    It reads when it is asked to, and at most one byte past the body's end: a connection on which
    more came than was announced is not kept, for the next answer would begin with it.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        content: aiohttp.StreamReader,
        length: int,
        heard: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._content = content
        self._left = length
        self._heard = heard
        self._parsed: list[Piece] = []  # came with the head
        self._filled = 0
        self._is_lost = False
        self._woken: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        while piece := self._content.read_nowait():
            self._parsed.append(piece)
            self._left -= len(piece)
        self._space = memoryview(bytearray(min(GATHERED, self._left + 1)))
        self._transport.pause_reading()
        self._transport.set_protocol(self)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_lost:
            self._transport.set_protocol(self._protocol)
            self._transport.resume_reading()
        if not self._left:
            self._content.feed_eof()  # so that the connection is kept for the next file

    async def take(self) -> list[Piece]:
        if self._left > 0 and not self._is_lost:
            self._woken = asyncio.get_running_loop().create_future()
            self._transport.resume_reading()
            await self._woken
        came = self._parsed
        if self._filled:
            came.append(self._space[: self._filled + min(self._left, 0)])
        self._parsed, self._filled = [], 0
        if self._left > 0 and not came:
            raise ConnectionError(f"it was closed {self._left} bytes early")
        return came

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - there is room for all
        return self._space[self._filled : self._filled + self._left + 1]

    def buffer_updated(self, nbytes: int) -> None:
        self._heard()
        self._filled += nbytes
        self._left -= nbytes
        if self._left <= 0 or self._filled == len(self._space):
            self._transport.pause_reading()
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._protocol.connection_lost(exc)
        self._wake()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
