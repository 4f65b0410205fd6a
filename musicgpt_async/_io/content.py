"""Read the content of a track: its size is known, and each attempt reads it from the start.

Files are opened and read with aiofiles, in large blocks, on the session's executor. The default
executor of the loop would delay DNS lookups, which run there too. Each attempt opens its own
handle. A seekable file object is read in place; a stream is spooled to a temporary file first.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar
from weakref import WeakValueDictionary

import aiofiles
import aiofiles.os
import aiofiles.tempfile
import anyio
import anyio.lowlevel
import attrs

from musicgpt_async.errors import MusicGPTError, SourceChangedError, SourceError

_T = TypeVar("_T")

# Bytes per write: 64 KiB cost two to three times the CPU; 4 MiB block the loop for milliseconds.
BLOCK_SIZE = 1 << 20
# Bytes per read: a round trip to the executor costs as much as reading half a block.
READ_SIZE = 2 * BLOCK_SIZE
# Bytes whose digest takes less time than a round trip to the executor.
SMALL_BLOCK = 1 << 15
CLOSE_TIMEOUT = 5.0  # seconds that a read of a disk may hold up the end of a submit


class ReadableTrack(Protocol):
    """A source of known size whose blocks can be read again for each attempt."""

    @property
    def name(self) -> str:
        """File name to send."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def version(self) -> str:
        """A string that changes with the content; empty if there is none."""

    def read_blocks(self, get_buffer: Callable[[], memoryview]) -> AsyncGenerator[memoryview, None]:
        """Yield the content from its start. The caller closes the generator.

        Args:
            get_buffer: Returns the buffer for the next read, which invalidates earlier blocks.
        """


@attrs.frozen
class InMemory:
    name: str
    version: str
    _data: bytes

    @classmethod
    async def of(cls, name: str, data: bytes, executor: Executor) -> InMemory:
        _refuse_empty(name, len(data))
        digest = Digest(executor)
        await digest.update(data)
        return cls(name, digest.hexdigest, data)

    @property
    def size(self) -> int:
        return len(self._data)

    async def read_blocks(
        self,
        get_buffer: Callable[[], memoryview],  # noqa: ARG002 - the data is in memory already
    ) -> AsyncGenerator[memoryview, None]:
        for block in _split(memoryview(self._data)):
            yield block
            # Yield to the loop: `drain` does not if the peer reads as fast as we write.
            await anyio.lowlevel.checkpoint()


@attrs.frozen
class InFile:
    name: str
    size: int
    version: str
    _path: Path
    _state: tuple[int, ...]
    _executor: Executor
    _readers: set[asyncio.Task[Any] | None] = attrs.field(factory=set)

    @classmethod
    async def open(cls, name: str, path: Path, executor: Executor) -> InFile:
        with _map_os_errors(name):
            try:
                async with _open_file(path, executor) as (_, status):
                    is_file = stat.S_ISREG(status.st_mode)
            except IsADirectoryError:
                is_file = False
            if not is_file:
                raise SourceError(f"{path} is not a file; give the path of an audio file.")
        _refuse_empty(name, status.st_size)
        version = f"{status.st_size}:{status.st_mtime_ns}"
        return cls(name, status.st_size, version, path, _file_state(status), executor)

    async def read_blocks(
        self, get_buffer: Callable[[], memoryview]
    ) -> AsyncGenerator[memoryview, None]:
        sent = 0
        with _map_os_errors(self.name), self._count_reader():
            async with _open_file(self._path, self._executor) as (file, status):
                self._check_unchanged(status)
                while sent < self.size:
                    space = get_buffer()[: self.size - sent]
                    count = await _run_to_end(file.readinto(space))
                    if not count:
                        break
                    sent += count
                    if sent == self.size:  # check before the last block is sent
                        self._check_unchanged(await _status(file, self._executor))
                    for block in _split(space[:count]):
                        yield block
                if sent < self.size:
                    self._check_unchanged(await _status(file, self._executor))

    @contextmanager
    def _count_reader(self) -> Iterator[None]:
        task = asyncio.current_task()
        self._readers.add(task)
        try:
            yield
        finally:
            self._readers.discard(task)

    async def aclose(self) -> None:
        """Stop what still reads the file, and wait until its handle is closed.

        A task of aiohttp's reads it, which is cancelled when a request fails but not waited for.
        """
        readers = [task for task in self._readers - {asyncio.current_task()} if task is not None]
        for task in readers:
            task.cancel()
        if readers:
            await _run_to_end(asyncio.wait(readers, timeout=CLOSE_TIMEOUT))

    def _check_unchanged(self, status: os.stat_result) -> None:
        if _file_state(status) != self._state:
            raise SourceChangedError(
                f"{self.name} changed while it was being sent; nothing was paid for. "
                "Submit it again after the file is complete."
            )


@attrs.frozen
class InReader:
    """A seekable file object, read from the position that it had when it was submitted.

    Jobs that share one object read it one attempt at a time, and restore its position.
    """

    name: str
    size: int
    _file: _CallerFile
    _start: int
    version: str = ""

    @classmethod
    async def open(cls, name: str, source: Any, executor: Executor) -> InReader | None:
        """Return the content, or ``None`` if the object cannot seek to find its size."""
        inner = getattr(source, "file", None)  # an UploadFile lacks tell(); its file has it
        file = _CallerFile(inner if hasattr(inner, "tell") else source, executor)
        async with file.lock:
            try:
                start = await file.call("tell")
                await file.call("seek", 0, os.SEEK_END)
                size = await file.call("tell") - start
                await file.call("seek", start)
            except (OSError, ValueError, AttributeError, TypeError):
                return None
        _refuse_empty(name, size)
        return cls(name, size, file, start)

    async def read_blocks(
        self,
        get_buffer: Callable[[], memoryview],  # noqa: ARG002 - read() returns memory of its own
    ) -> AsyncGenerator[memoryview, None]:
        left = self.size
        with _map_os_errors(self.name):
            async with self._file.lock:
                await self._file.call("seek", self._start)
                try:
                    while left and (
                        data := await _run_to_end(self._file.read(min(READ_SIZE, left)))
                    ):
                        left -= len(data)
                        for block in _split(memoryview(data)):
                            yield block
                            await anyio.lowlevel.checkpoint()
                finally:
                    await _run_to_end(self._file.call("seek", self._start))


class _CallerFile:
    """The caller's file object: async methods are awaited, sync ones run on the executor.

    Args:
        file: Has ``read``, and optionally ``seek`` and ``tell``, each sync or async.
        executor: Runs sync methods.

    Attributes:
        lock: Shared by all jobs that read the same object, since they share its position.
    """

    # By id, because the object may not be hashable.
    _locks: ClassVar[WeakValueDictionary[int, asyncio.Lock]] = WeakValueDictionary()

    def __init__(self, file: Any, executor: Executor) -> None:
        self._file = file
        self._executor = executor
        self.lock: asyncio.Lock = self._locks.setdefault(id(file), asyncio.Lock())

    async def call(self, method: str, /, *args: Any) -> Any:
        """Call a method and return its result.

        Raises:
            AttributeError: The object does not have the method.
        """
        function = getattr(self._file, method)
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._executor, partial(function, *args))
        return await result if inspect.isawaitable(result) else result

    async def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, ``b""`` at the end.

        Raises:
            SourceError: ``read`` returned something other than bytes.
        """
        data = await self.call("read", size)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise SourceError(
                f"read() returned {type(data).__name__}, not bytes; nothing was paid for."
            )
        return bytes(data)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read(READ_SIZE):
            yield data


class Digest:
    """The digest of a track, computed on the executor while the track is sent."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._sha256 = hashlib.sha256()

    @property
    def hexdigest(self) -> str:
        """Return the digest of the blocks added so far."""
        return self._sha256.hexdigest()

    async def update(self, block: bytes | memoryview) -> None:
        """Add the next block."""
        if len(block) <= SMALL_BLOCK:
            self._sha256.update(block)
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._sha256.update, block)


def _split(view: memoryview) -> Iterator[memoryview]:
    """Yield a read as blocks of at most ``BLOCK_SIZE``, without copying."""
    for start in range(0, len(view), BLOCK_SIZE):
        yield view[start : start + BLOCK_SIZE]


def _refuse_empty(name: str, size: int) -> None:
    if size <= 0:
        raise SourceError(f"{name} is empty; nothing was sent.")


class _map_os_errors:  # noqa: N801 - used as a function: "with _map_os_errors(name)"
    """Convert errors of the source to `SourceError`, so that none looks like a network error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, (MusicGPTError, GeneratorExit)) or not _is_source_error(error):
            return
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"{self._name} cannot be read ({reason}); nothing was paid for."
        ) from error


def _is_source_error(error: BaseException | None) -> bool:
    if isinstance(error, asyncio.CancelledError):
        # The caller's reader may have awaited a task that was cancelled: an error of the source,
        # unless this task is being cancelled too.
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception)


@asynccontextmanager
async def _open_file(path: Path, executor: Executor) -> AsyncIterator[tuple[Any, os.stat_result]]:
    """Open a file with aiofiles, unbuffered; yield it with its ``os.stat_result``."""
    opener = _Opener()
    opening = asyncio.ensure_future(
        aiofiles.open(path, "rb", buffering=0, opener=opener, executor=executor)
    )
    try:
        yield await _run_to_end(opening), opener.status
    finally:
        await _close(opening)


class _Opener:
    """Opener for aiofiles that also calls ``fstat``, to save a round trip to the executor.

    Attributes:
        status: The status of the file when it was opened.
    """

    status: os.stat_result

    def __call__(self, path: str, flags: int) -> int:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        try:
            self.status = os.fstat(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


async def _status(file: Any, executor: Executor) -> os.stat_result:
    return await aiofiles.os.stat(file.fileno(), executor=executor)


def _file_state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def spool(name: str, content: Any, executor: Executor, stack: AsyncExitStack) -> Path:
    """Write a stream of unknown length to a temporary file, which the stack removes."""
    blocks = _CallerFile(content, executor) if hasattr(content, "read") else content
    with _map_os_errors(name):
        opening = asyncio.ensure_future(
            aiofiles.tempfile.NamedTemporaryFile("wb", prefix="musicgpt-async-", executor=executor)
        )
        stack.push_async_callback(_close, opening)
        file = await _run_to_end(opening)
        async for block in blocks:
            await file.write(block)
        await file.flush()
    return Path(str(file.name))


async def _close(opening: asyncio.Future[Any]) -> None:
    """Close an opened file on the executor; aiofiles' ``__aexit__`` would use the loop's own."""
    if not opening.exception():
        await _run_to_end(opening.result().close())


async def _run_to_end(awaitable: Awaitable[_T]) -> _T:
    """Await a file operation to its end, and raise a cancellation only after that.

    A file must not be closed while a thread reads it, nor leak while a thread opens it.
    """
    call = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        # Shielded by a scope, because anyio repeats a cancellation until its own scope is left.
        with anyio.CancelScope(shield=True):
            while not call.done():
                with suppress(asyncio.CancelledError):  # by aiohttp, which a scope cannot shield
                    await asyncio.wait([call])
        raise
