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
# So little is not left for a piece of its own: uvloop's TLS forgets what it still holds when the
# host hangs up.
_LAST = 1 << 19
_SPILL = 1 << 16
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
            connection = self._response.connection
            transport = connection.transport if connection else None
            self._response.close()
            if transport is not None:
                transport.abort()  # TLS would wait half a minute for the host to say goodbye
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
    if connection and length is not None and "Transfer-Encoding" not in response.headers:
        transport, protocol = connection.transport, connection.protocol
        # aiohttp's protocol is a queue as well, and false while it is empty.
        if transport is not None and protocol is not None and not transport.is_closing():
            return _Sink(transport, protocol, response.content, length, heard)
    return nullcontext(_Parsed(response.content, heard))


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

    It has the transport read when it is asked to. What comes unasked is kept aside, since the
    memory may be in use: aiohttp resumes the transport for whoever still reads an earlier answer of
    this connection, and Windows delivers all that it has. One byte more than was announced is
    noticed, and the connection is not kept: the next answer would begin with it.
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
        self._before: list[Piece] = []  # with the head, or unasked
        self._space = memoryview(b"")
        self._filled = 0
        self._after: list[Piece] = []  # unasked
        self._is_connected = False
        self._why_lost: Exception | None = None
        self._is_done = asyncio.Event()  # what was asked for has come; nothing is asked for yet
        self._is_done.set()

    def __enter__(self) -> Self:
        while piece := self._content.read_nowait():
            self._before.append(piece)
            self._left -= len(piece)
        if self._left:  # else the parser has seen the end, and given the connection back
            self._space = memoryview(bytearray(min(GATHERED + _LAST, self._left) + 2))
            self._is_connected = True
            self._transport.pause_reading()
            self._transport.set_protocol(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._space = memoryview(b"")  # asyncio's TLS never lets go of a buffered protocol
        if not self._is_connected:
            return
        self._transport.set_protocol(self._protocol)
        self._transport.resume_reading()
        if not self._left:
            self._content.feed_eof()  # so that the connection is kept for the next file

    async def take(self) -> list[Piece]:
        if self._left > 0 and self._is_connected:
            self._is_done.clear()
            self._transport.resume_reading()
            await self._is_done.wait()
        came = [*self._before, self._space[: self._filled], *self._after]
        came = [piece for piece in came if piece]
        self._before, self._filled, self._after = [], 0, []
        if self._left > 0 and not came:
            raise ConnectionError(f"it was closed {self._left} bytes early") from self._why_lost
        return came

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - all there is
        if not self._is_done.is_set():
            end = self._filled + self._left + 1
            return self._space[self._filled : min(end, GATHERED + 1) if self._left > _LAST else end]
        self._spill = memoryview(bytearray(_SPILL))
        return self._spill

    def buffer_updated(self, nbytes: int) -> None:
        wanted = min(nbytes, max(self._left, 0))
        self._left -= nbytes
        if self._is_done.is_set():
            unasked = self._after if self._filled else self._before
            unasked.append(bytes(self._spill[:wanted]))
            self._transport.pause_reading()
            return
        self._heard()
        self._filled += wanted
        if self._left <= 0 or (self._filled >= GATHERED and self._left > _LAST):
            self._transport.pause_reading()
            self._is_done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_connected = False
        self._why_lost = exc
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._is_done.set()
