"""The multipart body of a submit.

Every attempt builds a new body: aiohttp would send an exhausted one as an empty file, which
MusicGPT would charge for.

A body may run ahead of its slot: it is sent except for its end, which is held until the slot is
free. Meanwhile small pieces of the end are sent from time to time, because servers and proxies
close idle connections. If a connection is closed anyway, nothing was delivered.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager

import aiohttp
import anyio
import attrs
from aiohttp.abc import AbstractStreamWriter

from musicgpt_async._io.content import READ_SIZE, Digest, ReadableTrack
from musicgpt_async._rules.upload_ahead import HELD_BACK
from musicgpt_async.errors import MusicGPTError, SourceChangedError, TransportTimeoutError

DRIP_INTERVAL = 5.0  # seconds between two pieces of a held end; idle timeouts start at 30 s


@attrs.frozen
class Hold:
    """Callbacks and settings for a body whose end is held back until its slot is free.

    Attributes:
        wait: Waits for the slot for so many seconds; returns whether it is free. An error from it
            stops the body.
        drip: Bytes per second of the end that are sent meanwhile.
        began: Called when everything except the end was sent.
    """

    wait: Callable[[float], Awaitable[bool]]
    drip: float
    began: Callable[[], None] = lambda: None


class MultipartBody(aiohttp.Payload):
    """The multipart body of one attempt, with a Content-Length.

    The closing boundary is written last and separately: it is the commit point, before which no
    server has a complete request.

    Args:
        fields: The text fields, in order.
        content: The upload, or ``None`` if ``audio_url`` is sent instead.
        stall_timeout: Seconds in which the server accepts no byte until the upload fails; aiohttp
            has no such limit.
        before_commit: Awaited before the closing boundary is written; an error from it stops the
            body.
        progress: Called with the number of bytes of the track that were sent.
        digest: Updated with the track's content.
        hold: Holds back the end of the track, or ``None`` if its slot is acquired.

    Attributes:
        delivered: Whether the closing boundary was written to the transport.
        failure: The error that stopped the body, unless it was a network error.
        is_held: Whether everything except the end was sent, and the body waits for its slot.
    """

    def __init__(
        self,
        fields: Mapping[str, str],
        content: ReadableTrack | None,
        *,
        stall_timeout: float,
        before_commit: Callable[[], Awaitable[None]],
        progress: Callable[[int], None],
        digest: Digest | None = None,
        hold: Hold | None = None,
    ) -> None:
        boundary = f"musicgpt-async-{secrets.token_hex(16)}"
        super().__init__(content, content_type=f'multipart/form-data; boundary="{boundary}"')
        self._head = _build_head(boundary, fields, None if content is None else content.name)
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._content = content
        self._size = len(self._head) + (content.size if content else 0) + len(self._tail)
        self._stall_timeout = stall_timeout
        self._before_commit = before_commit
        self._progress = progress
        self._digest = digest
        self._hold = hold
        self._written = 0
        self.is_held = False
        self.delivered = False
        self.failure: BaseException | None = None

    def decode(self, encoding: str = "", errors: str = "") -> str:  # noqa: ARG002 - aiohttp's
        """Raise: the body is never in memory as text."""
        raise TypeError("an upload is not text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the complete body, or stop before its closing boundary."""
        try:
            await self._write_watched(writer)
        except Exception as error:
            if isinstance(error, ConnectionError) and not isinstance(error, MusicGPTError):
                return  # the server may have responded before it closed: let aiohttp read that
            self.failure = error
            raise

    async def write_with_length(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None,  # noqa: ARG002 - aiohttp's; ``size`` announced it
    ) -> None:
        """Write the body; called instead of ``write`` by aiohttp 3.12 and later."""
        await self.write(writer)

    def bytes_flushed(self, transport: asyncio.WriteTransport | None) -> int:
        """Return the number of bytes that the kernel has accepted."""
        return self._written - (transport.get_write_buffer_size() if transport else 0)

    async def _write_watched(self, writer: AbstractStreamWriter) -> None:
        with anyio.CancelScope() as scope, _WriteWatchdog(self, writer, scope, self._stall_timeout):
            await self._write(writer)
        if scope.cancelled_caught:
            raise TransportTimeoutError(
                f"MusicGPT accepted no byte of the upload for {self._stall_timeout:g} s."
            )

    async def _write(self, writer: AbstractStreamWriter) -> None:
        await self._write_block(writer, self._head)
        if self._content is not None:
            await self._write_content(writer, self._content)
        await self._before_commit()
        transport = _transport(writer)
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the connection was closed before the body was complete")
        self.delivered = True
        await self._write_block(writer, self._tail)
        await writer.drain()

    async def _write_content(self, writer: AbstractStreamWriter, content: ReadableTrack) -> None:
        read = 0
        goes_ahead = content.size - (min(HELD_BACK, content.size // 2) if self._hold else 0)
        end = bytearray()
        transport = _transport(writer)
        space = memoryview(b"")

        def buffer() -> memoryview:
            """Return the same buffer each time, unless the transport still refers to it.

            asyncio's transports may keep a view of what they could not send at once. Overwriting
            that memory would send other bytes than were hashed, so a new buffer is allocated until
            the transport is empty again. A closing transport never is: it may still hold a view.
            """
            nonlocal space
            if not (space and _is_empty(transport)):
                space = memoryview(bytearray(min(READ_SIZE, content.size)))
            return space

        async with _flush_every_write(transport), aclosing(content.read_blocks(buffer)) as blocks:
            async for block in blocks:
                if self._digest is not None:
                    await self._digest.update(block)
                ahead = block[: max(goes_ahead - read, 0)]
                end += block[len(ahead) :]
                read += len(block)
                if ahead:
                    await self._write_block(writer, ahead)
                    self._progress(min(read, goes_ahead))
        if read != content.size:
            raise SourceChangedError(
                f"{content.name} was truncated while it was being sent; nothing was paid for."
            )
        if self._hold is not None:
            await self._write_end(writer, memoryview(end), self._hold)
            self._progress(read)

    async def _write_end(self, writer: AbstractStreamWriter, end: memoryview, hold: Hold) -> None:
        """Write the end of the track when its slot is free, and small pieces of it before that."""
        interval = min(DRIP_INTERVAL, self._stall_timeout / 4)
        piece = math.ceil(hold.drip * interval)
        hold.began()
        self.is_held = True
        try:
            while not await hold.wait(interval):
                await self._write_block(writer, end[:piece])
                end = end[piece:]
        finally:
            self.is_held = False
        await self._write_block(writer, end)

    async def _write_block(self, writer: AbstractStreamWriter, block: bytes | memoryview) -> None:
        self._written += len(block)
        await writer.write(block)


class _WriteWatchdog:
    """Timer that cancels a write if the peer accepts no bytes; aiohttp has no such timeout."""

    def __init__(
        self,
        body: MultipartBody,
        writer: AbstractStreamWriter,
        scope: anyio.CancelScope,
        timeout: float,
    ) -> None:
        self._body = body
        self._writer = writer
        self._scope = scope
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._flushed = -1
        self._since = self._loop.time()

    def __enter__(self) -> None:
        self._check()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        flushed = self._body.bytes_flushed(_transport(self._writer))
        now = self._loop.time()
        is_idle = self._body.is_held and _is_empty(_transport(self._writer))
        if flushed != self._flushed or is_idle:
            self._flushed, self._since = flushed, now
        elif now - self._since >= self._timeout:
            self._scope.cancel()
            return
        self._timer = self._loop.call_later(self._timeout / 4, self._check)


@asynccontextmanager
async def _flush_every_write(transport: asyncio.WriteTransport | None) -> AsyncIterator[None]:
    """Make each write wait until the transport's buffer is empty, to reuse the read buffer."""
    if transport is not None and not transport.is_closing():
        transport.set_write_buffer_limits(high=1, low=0)  # asyncio's TLS never resumes from high=0
    yield
    if transport is not None and not transport.is_closing():
        transport.set_write_buffer_limits()


def _is_empty(transport: asyncio.WriteTransport | None) -> bool:
    return (
        transport is not None
        and not transport.is_closing()
        and not transport.get_write_buffer_size()
    )


def _transport(writer: AbstractStreamWriter) -> asyncio.WriteTransport | None:
    return getattr(writer, "transport", None)


def _build_head(boundary: str, fields: Mapping[str, str], file_name: str | None) -> bytes:
    """Return the part of the body before the track's first byte (RFC 7578)."""
    lines: list[str] = []
    for name, value in fields.items():
        disposition = f'Content-Disposition: form-data; name="{name}"'
        lines += [f"--{boundary}", disposition, "", value]
    if file_name is not None:
        name = _escape_header(file_name)
        disposition = f'Content-Disposition: form-data; name="audio_file"; filename="{name}"'
        lines += [f"--{boundary}", disposition, "Content-Type: application/octet-stream", "", ""]
    return "\r\n".join(lines).encode("utf-8", "replace")


def _escape_header(name: str) -> str:
    """Return a file name escaped for a quoted header parameter, with Unicode kept."""
    kept = name.translate({ord('"'): "'", ord("\\"): "_"})
    return "".join(c if ord(c) >= 32 and ord(c) != 127 else "_" for c in kept)
