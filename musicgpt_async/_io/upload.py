"""A source as a sized, replayable body.

Sources are read in large blocks on an executor of their own, and every attempt builds a body anew:
aiohttp sends a used-up one as an empty file, and is paid for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import secrets
import stat
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
)
from concurrent.futures import Executor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import aiofiles.tempfile
import aiohttp
import anyio.lowlevel
import attrs
from aiohttp.abc import AbstractStreamWriter

from musicgpt_async.errors import (
    InvalidOptionError,
    MusicGPTError,
    SourceChangedError,
    SourceError,
    StalledError,
)

AudioSource = (
    str
    | os.PathLike[str]
    | bytes
    | AsyncIterable[bytes]
    | tuple[str, bytes]
    | tuple[str, AsyncIterable[bytes]]
)
"""A path, an http(s) URL, bytes or an async iterable of bytes; the latter two with a name."""

# 64 KiB cost two to three times the CPU; 4 MiB hold the loop for milliseconds.
BLOCK = 1 << 20
# Going off the loop and back costs as much as reading half a block.
READ = 2 * BLOCK
UNNAMED = "audio"


class Content(Protocol):
    """A track that is open and sized; its blocks can be read again for each attempt."""

    @property
    def name(self) -> str:
        """File name to send."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def version(self) -> str:
        """What changes with the content; empty where nothing tells."""

    def blocks(self, room: Callable[[], memoryview]) -> AsyncGenerator[memoryview, None]:
        """Yield the content from its start; the caller closes the iterator.

        ``room`` gives the memory for what is read next; what lay in it was yielded before.
        """


@attrs.frozen
class Track:
    """A source as it was given, not yet touched.

    Attributes:
        name: File name to send.
        location: Absolute path or URL; empty where it cannot be read a second time.
        content: What there is to send; ``None`` for a URL, which the vendor fetches itself.
    """

    name: str
    location: str
    content: Path | bytes | AsyncIterable[bytes] | None = attrs.field(repr=False)

    @property
    def title(self) -> str:
        """The name without its ending."""
        return PurePath(self.name).stem or UNNAMED


def track_of(source: AudioSource, *, label: str | None = None) -> Track:
    """Return a source in its one form; nothing is read yet.

    Raises:
        InvalidOptionError: It is nothing that can be sent.
    """
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        return Track(_name_in(source), source, None)
    if isinstance(source, (str, os.PathLike)):
        plain = os.fsdecode(source)
        path = Path(os.path.abspath(plain))  # noqa: PTH100 - Path.absolute() keeps the ".."
        return Track(path.name, str(path), path)
    name: Any = label or UNNAMED
    content: Any = source
    if isinstance(source, tuple) and len(source) == 2:
        name, content = source
    if isinstance(content, (bytearray, memoryview)):
        content = bytes(content)
    if not isinstance(name, str) or not isinstance(content, (bytes, AsyncIterable)):
        raise InvalidOptionError(
            f"A {type(source).__name__} cannot be submitted. Give a path, an http(s) URL, bytes or "
            'an async iterable of bytes, the latter two as a pair: ("song.mp3", data).'
        )
    return Track(PurePath(name).name or UNNAMED, "", content)


def _name_in(url: str) -> str:
    try:
        return PurePosixPath(unquote(urlsplit(url).path)).name or UNNAMED
    except ValueError as error:
        raise InvalidOptionError(f"{url[:200]!r} is no URL ({error}).") from error


@asynccontextmanager
async def opened(track: Track, executor: Executor) -> AsyncIterator[Content | None]:
    """Hold a track open for as long as it takes to submit it.

    Raises:
        SourceError: It cannot be read, or is empty.
    """
    async with AsyncExitStack() as stack:
        content = track.content
        if content is None:
            yield None
        elif isinstance(content, bytes):
            yield await _InMemory.of(track.name, content, executor)
        else:
            with _reading(track.name):
                if isinstance(content, Path):
                    file = await _InFile.open(track.name, content, executor, stack)
                else:
                    path = await _spooled(content, executor, stack)
                    file = await _InFile.open(track.name, path, executor, stack)
                    # The temporary file's own times say nothing of the stream.
                    file = attrs.evolve(file, version="")
            yield file


@attrs.frozen
class _InMemory:
    name: str
    version: str
    _data: bytes

    @classmethod
    async def of(cls, name: str, data: bytes, executor: Executor) -> _InMemory:
        _refuse_empty(name, len(data))
        digest = Digest(executor)
        await digest.update(data)
        return cls(name, digest.hexdigest, data)

    @property
    def size(self) -> int:
        return len(self._data)

    async def blocks(
        self,
        room: Callable[[], memoryview],  # noqa: ARG002 - all of it has its place already
    ) -> AsyncGenerator[memoryview, None]:
        for block in _split(memoryview(self._data)):
            yield block
            # `drain` returns without yielding while the peer keeps up.
            await anyio.lowlevel.checkpoint()


@attrs.frozen
class _InFile:
    name: str
    size: int
    version: str
    _modified: int
    _file: io.FileIO
    _executor: Executor

    @classmethod
    async def open(
        cls, name: str, path: Path, executor: Executor, stack: AsyncExitStack
    ) -> _InFile:
        run = asyncio.get_running_loop().run_in_executor
        try:
            file, status = await run(executor, _opened, path)
        except ValueError as error:  # a NUL in the path
            raise SourceError(f"{name!r} is no path ({error}); nothing was paid for.") from error
        stack.push_async_callback(_shielded, run, executor, file.close)
        _refuse_empty(name, status.st_size)
        version = f"{status.st_size}:{status.st_mtime_ns}"
        return cls(name, status.st_size, version, status.st_mtime_ns, file, executor)

    async def blocks(self, room: Callable[[], memoryview]) -> AsyncGenerator[memoryview, None]:
        run = asyncio.get_running_loop().run_in_executor
        sent = 0
        with _reading(self.name):
            while sent < self.size:
                space = room()[: self.size - sent]
                count, status = await run(self._executor, _read, self._file, sent, space)
                if (status.st_size, status.st_mtime_ns) != (self.size, self._modified):
                    raise SourceChangedError(
                        f"{self.name} changed while it was being sent; nothing was paid for. "
                        "Submit it again when it is no longer written to."
                    )
                if not count:
                    return
                for block in _split(space[:count]):
                    yield block
                sent += count


class Body(aiohttp.Payload):
    """One attempt's multipart body, with a true Content-Length.

    The closing boundary goes out last and alone: until then no server can have a whole request.

    Args:
        fields: The text fields, in order.
        content: The upload, or ``None`` where the fields say where it is.
        stall_timeout: Seconds without the other side taking a byte; aiohttp has no such limit.
        hand_over: Awaited before the closing boundary goes out; an error from it stops the body.
        progress: Called with the bytes of the track that have gone out.
        digest: Taken of the track's content.

    Attributes:
        delivered: Whether the closing boundary was handed to the transport.
        failure: Why the body broke off, where that was not the network.
    """

    def __init__(
        self,
        fields: Mapping[str, str],
        content: Content | None,
        *,
        stall_timeout: float,
        hand_over: Callable[[], Awaitable[None]],
        progress: Callable[[int], None],
        digest: Digest | None = None,
    ) -> None:
        boundary = f"musicgpt-async-{secrets.token_hex(16)}"
        super().__init__(content, content_type=f'multipart/form-data; boundary="{boundary}"')
        self._head = _head(boundary, fields, None if content is None else content.name)
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._content = content
        self._size = len(self._head) + (content.size if content else 0) + len(self._tail)
        self._stall_timeout = stall_timeout
        self._hand_over = hand_over
        self._progress = progress
        self._digest = digest
        self._handed = 0
        self.delivered = False
        self.failure: BaseException | None = None

    def decode(self, encoding: str = "", errors: str = "") -> str:  # noqa: ARG002 - aiohttp's
        """Refuse: the body exists on the wire alone."""
        raise TypeError("an upload is not text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the whole body, or break off before its closing boundary."""
        try:
            await self._write_watched(writer)
        except Exception as error:
            if isinstance(error, ConnectionError) and not isinstance(error, MusicGPTError):
                return  # the vendor may have answered before it hung up: let the answer be read
            self.failure = error
            raise

    async def write_with_length(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None,  # noqa: ARG002 - aiohttp's; ``size`` announced it
    ) -> None:
        """Write the body, as aiohttp 3.12 and later ask for it."""
        await self.write(writer)

    def taken(self, transport: asyncio.WriteTransport | None) -> int:
        """Return the bytes that the kernel has taken."""
        return self._handed - (transport.get_write_buffer_size() if transport else 0)

    async def _write_watched(self, writer: AbstractStreamWriter) -> None:
        with anyio.CancelScope() as scope, _Watchdog(self, writer, scope, self._stall_timeout):
            await self._write(writer)
        if scope.cancelled_caught:
            raise StalledError(
                f"The vendor took no byte of the upload for {self._stall_timeout:g} s."
            )

    async def _write(self, writer: AbstractStreamWriter) -> None:
        await self._put(writer, self._head)
        if self._content is not None:
            await self._write_content(writer, self._content)
        await self._hand_over()
        transport = _transport(writer)
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the connection closed before the body was whole")
        self.delivered = True
        await self._put(writer, self._tail)
        await writer.drain()

    async def _write_content(self, writer: AbstractStreamWriter, content: Content) -> None:
        sent = 0
        transport = _transport(writer)
        space = memoryview(b"")

        def room() -> memoryview:
            """Return the same memory each time, unless the transport still sends from it."""
            nonlocal space
            if not (space and _is_empty(transport)):
                space = memoryview(bytearray(min(READ, content.size)))
            return space

        async with _emptied(transport), aclosing(content.blocks(room)) as blocks:
            async for block in blocks:
                if self._digest is not None:
                    await self._digest.update(block)
                await self._put(writer, block)
                sent += len(block)
                self._progress(sent)
        if sent != content.size:
            raise SourceChangedError(
                f"{content.name} became shorter while it was being sent; nothing was paid for."
            )

    async def _put(self, writer: AbstractStreamWriter, block: bytes | memoryview) -> None:
        self._handed += len(block)
        await writer.write(block)


class _Watchdog:
    """Cancels a write while the other side takes nothing; aiohttp has no timeout for that."""

    def __init__(
        self, body: Body, writer: AbstractStreamWriter, scope: anyio.CancelScope, timeout: float
    ) -> None:
        self._body = body
        self._writer = writer
        self._scope = scope
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._taken = -1
        self._since = self._loop.time()

    def __enter__(self) -> None:
        self._look()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        taken = self._body.taken(_transport(self._writer))
        now = self._loop.time()
        if taken != self._taken:
            self._taken, self._since = taken, now
        elif now - self._since >= self._timeout:
            self._scope.cancel()
            return
        self._timer = self._loop.call_later(self._timeout / 4, self._look)


class Digest:
    """A digest of a track, taken off the loop while it is sent."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._sha256 = hashlib.sha256()

    @property
    def hexdigest(self) -> str:
        """The digest of what was sent so far."""
        return self._sha256.hexdigest()

    async def update(self, block: bytes | memoryview) -> None:
        """Take in what is sent next."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._sha256.update, block)


def _split(view: memoryview) -> Iterator[memoryview]:
    """Yield what was read in pieces that are sent at once, without a copy."""
    for start in range(0, len(view), BLOCK):
        yield view[start : start + BLOCK]


@asynccontextmanager
async def _emptied(transport: asyncio.WriteTransport | None) -> AsyncIterator[None]:
    """Have each write wait until the transport has nothing left, so that memory is used again."""
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


def _head(boundary: str, fields: Mapping[str, str], file_name: str | None) -> bytes:
    """Return everything before the track's first byte (RFC 7578)."""
    lines: list[str] = []
    for name, value in fields.items():
        disposition = f'Content-Disposition: form-data; name="{name}"'
        lines += [f"--{boundary}", disposition, "", value]
    if file_name is not None:
        name = _header_safe(file_name)
        disposition = f'Content-Disposition: form-data; name="audio_file"; filename="{name}"'
        lines += [f"--{boundary}", disposition, "Content-Type: application/octet-stream", "", ""]
    return "\r\n".join(lines).encode("utf-8", "replace")


def _header_safe(name: str) -> str:
    """Return a file name as it may stand between quotes in a header, Unicode kept."""
    kept = name.translate({ord('"'): "'", ord("\\"): "_"})
    return "".join(c if ord(c) >= 32 and ord(c) != 127 else "_" for c in kept)


def _refuse_empty(name: str, size: int) -> None:
    if size == 0:
        raise SourceError(f"{name} is empty; nothing was sent.")


class _reading:  # noqa: N801 - reads as a word: "with _reading(name)"
    """Turn an OSError of the source into the library's, so that none passes for the network's."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, MusicGPTError):
            reason = error.strerror or str(error)
            raise SourceError(
                f"{self._name} cannot be read ({reason}); nothing was paid for."
            ) from error


def _opened(path: Path) -> tuple[io.FileIO, os.stat_result]:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
        raise SourceError(f"{path} is not a file; give the path of an audio file.")
    file = path.open("rb", buffering=0)
    return file, os.fstat(file.fileno())


def _read(file: io.FileIO, offset: int, space: memoryview) -> tuple[int, os.stat_result]:
    """Fill the space, and tell what the file is after that."""
    if hasattr(os, "preadv"):  # a thread of an attempt that was given up may still move the cursor
        count = os.preadv(file.fileno(), [space], offset)
    else:
        file.seek(offset)
        count = file.readinto(space) or 0
    return count, os.fstat(file.fileno())


async def _spooled(
    iterable: AsyncIterable[bytes], executor: Executor, stack: AsyncExitStack
) -> Path:
    """Write an iterable of unknown length to a temporary file that goes with the stack."""
    file = await aiofiles.tempfile.NamedTemporaryFile(
        "wb", prefix="musicgpt-async-", executor=executor
    )
    # Not aiofiles' own exit, which takes the loop's shared executor.
    stack.push_async_callback(_shielded, file.close)
    try:
        async for block in iterable:
            await file.write(block)
        await file.flush()
    except OSError:
        raise
    except Exception as error:  # whatever the caller's own iterable raises
        raise SourceError(f"The stream broke off ({error}); nothing was paid for.") from error
    return Path(str(file.name))


async def _shielded(call: Callable[..., Awaitable[None]], *args: object) -> None:
    with anyio.CancelScope(shield=True):
        await call(*args)
