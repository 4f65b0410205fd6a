"""Sources of audio: paths, URLs, bytes and streams, opened as sized, replayable content.

Files are read in large blocks on an executor of their own.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import stat
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
)
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import aiofiles.tempfile
import anyio
import anyio.lowlevel
import attrs

from musicgpt_async.errors import (
    InvalidOptionError,
    MusicGPTError,
    SourceChangedError,
    SourceError,
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
