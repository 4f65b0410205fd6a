"""Read the body of a file's response in lists of chunks that are large enough to write.

aiohttp delivers chunks of up to its read buffer; writing each separately would cost more CPU time
than receiving it. The download fails if the host is silent or sends next to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

import aiohttp

from musicgpt_async.errors import TransportTimeoutError

# Bytes per write. The chunks are held in memory until they are written, while aiohttp's buffer
# fills again: a larger size costs memory for each download, a smaller one more round trips to the
# executor.
CHUNK_SIZE = 1 << 20
MIN_SPEED = 1024  # bytes per second; a host that is slower over a window counts as silent
SPEED_WINDOW = 60.0  # seconds spent waiting for the host
_CONNECTION_ERRORS = (aiohttp.ClientError, ConnectionError, TimeoutError)

Chunk = bytes | memoryview


async def iter_chunks(
    response: aiohttp.ClientResponse, *, read_timeout: float
) -> AsyncGenerator[list[Chunk], None]:
    """Yield the body in lists of about ``CHUNK_SIZE`` bytes.

    If the connection fails, everything that was received is yielded before the error is raised, so
    that a download can be resumed from there.

    Args:
        response: The response; its body is not read yet, and aiohttp must not decompress it.
        read_timeout: Seconds without a byte after which the host counts as silent.

    Raises:
        TransportTimeoutError: The host was silent, or slower than ``MIN_SPEED`` for a minute.
        ConnectionError: The connection failed.
        aiohttp.ClientError: The connection failed, or the body is malformed.
    """
    with _ReadWatchdog(response, read_timeout) as watchdog:
        while True:
            watchdog.arm()
            try:
                chunks = await _gather(response.content, watchdog)
            except _CONNECTION_ERRORS as error:
                if watchdog.verdict:
                    raise TransportTimeoutError(watchdog.verdict) from error
                raise
            watchdog.disarm()
            if not chunks:
                return
            yield chunks


async def _gather(content: aiohttp.StreamReader, watchdog: _ReadWatchdog) -> list[Chunk]:
    """Return the next chunks, or an empty list at the end.

    An error is raised only if there are no chunks; aiohttp raises it again at the next read.
    """
    chunks: list[Chunk] = []
    size = 0
    try:
        while size < CHUNK_SIZE:
            # Not readany(): it copies the chunks into one, but writev() takes them as they are.
            chunk, _ = await content.readchunk()
            if not chunk and content.at_eof():
                break
            watchdog.on_data(len(chunk))
            chunks.append(chunk)
            size += len(chunk)
    except _CONNECTION_ERRORS:
        if not chunks:
            raise
    return chunks


class _ReadWatchdog:
    """Timer that closes the connection to a silent or slow host.

    One timer per download is cheaper than a timeout for each read. Only the time spent waiting for
    the host counts, not the time in which chunks are written.
    """

    def __init__(self, response: aiohttp.ClientResponse, read_timeout: float) -> None:
        self._response = response
        self._timeout = read_timeout
        self._loop = asyncio.get_running_loop()
        self._is_armed = False
        self._silent = 0.0  # seconds waited since the last byte
        self._waited = 0.0  # seconds waited in this window, and bytes received in it
        self._received = 0
        self.verdict = ""

    def __enter__(self) -> Self:
        self.arm()
        self._schedule()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def arm(self) -> None:
        """Start counting: the download waits for the host."""
        self._is_armed = True
        self._since = self._loop.time()

    def disarm(self) -> None:
        """Stop counting while the chunks are written."""
        self._count()
        self._is_armed = False

    def on_data(self, size: int) -> None:
        """Record received bytes."""
        self._count()
        self._silent = 0.0
        self._received += size

    def _count(self) -> None:
        if self._is_armed:
            now = self._loop.time()
            self._silent += now - self._since
            self._waited += now - self._since
            self._since = now

    def _check(self) -> None:
        self._count()
        host = self._response.url.host
        if self._silent >= self._timeout:
            self._hang_up(f"{host} sent nothing for {self._timeout:g} s; try again later.")
        elif self._waited >= SPEED_WINDOW and self._received < MIN_SPEED * self._waited:
            self._hang_up(f"{host} sends less than {MIN_SPEED} bytes per second; try again later.")
        else:
            if self._waited >= SPEED_WINDOW:
                self._waited, self._received = 0.0, 0
            self._schedule()

    def _schedule(self) -> None:
        interval = min(self._timeout, SPEED_WINDOW) / 4
        self._timer = self._loop.call_later(interval, self._check)

    def _hang_up(self, verdict: str) -> None:
        self.verdict = verdict
        connection = self._response.connection
        transport = connection.transport if connection else None
        self._response.close()
        if transport is not None:
            transport.abort()  # close() would wait half a minute for the host's TLS close_notify
