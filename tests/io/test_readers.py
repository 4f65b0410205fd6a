from __future__ import annotations

import asyncio
import io
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiofiles
import anyio
import pytest
from starlette.datastructures import UploadFile

from musicgpt_async._io import sources
from musicgpt_async._io.content import BLOCK_SIZE, READ_SIZE, ReadableTrack
from musicgpt_async._io.sources import parse_source
from musicgpt_async.errors import InvalidOptionError, SourceError

pytestmark = pytest.mark.anyio

HANG = 30  # seconds


@pytest.fixture
def data() -> bytes:
    """More than one read, and no round number of blocks."""
    return secrets.token_bytes(READ_SIZE + BLOCK_SIZE + 17)


@asynccontextmanager
async def open_track(source: Any, executor: ThreadPoolExecutor) -> AsyncIterator[ReadableTrack]:
    """Open a source that has content."""
    async with sources.open_track(parse_source(source), executor) as content:
        assert content is not None
        yield content


async def read(content: ReadableTrack) -> bytes:
    """Read a content as an attempt does, into one buffer that is used again and again."""
    buffer = memoryview(bytearray(READ_SIZE))
    return b"".join([bytes(block) async for block in content.read_blocks(lambda: buffer)])


# Files.


class Recorder(ThreadPoolExecutor):
    """An executor that notes what is called on it, and which module asked for it."""

    def __init__(self) -> None:
        super().__init__(2)
        self.calls: list[tuple[str, str]] = []

    def submit(self, call: Any, /, *args: Any, **more: Any) -> Future[Any]:
        """Note the call and the first frame below asyncio, and make the call."""
        frame: Any = sys._getframe(1)
        while "asyncio" in frame.f_code.co_filename or "uvloop" in frame.f_code.co_filename:
            frame = frame.f_back
        function = getattr(call, "func", call)
        self.calls.append((frame.f_globals["__name__"].partition(".")[0], function.__name__))
        return super().submit(call, *args, **more)


async def test_a_file_is_opened_read_and_closed_by_aiofiles(tmp_path: Path, data: bytes) -> None:
    """Each attempt opens its own handle; every call on it is made by aiofiles."""
    (tmp_path / "a.wav").write_bytes(data)
    with Recorder() as executor:
        async with open_track(tmp_path / "a.wav", executor) as content:
            executor.calls.clear()
            for _ in range(2):
                assert await read(content) == data
    assert {module for module, _ in executor.calls} == {"aiofiles"}
    attempt = ["open", "readinto", "readinto", "stat", "close"]
    assert [name for _, name in executor.calls] == 2 * attempt


@pytest.mark.parametrize("manner", ["task", "scope"])
async def test_a_cancelled_opening_leaves_no_handle_open(
    manner: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """A handle that a thread opens while its attempt is cancelled is closed, not forgotten."""
    (tmp_path / "a.wav").write_bytes(b"sound")
    is_opening, go_on = anyio.Event(), anyio.Event()

    class Slow(Recorder):
        def submit(self, call: Any, /, *args: Any, **more: Any) -> Future[Any]:
            future = super().submit(call, *args, **more)
            if self.calls[-1][1] == "open":
                future.result(HANG)  # the file is open, and the attempt does not know it yet
                is_opening.set()
            return future

    async def attempt(slow: Slow) -> None:
        async with open_track(tmp_path / "a.wav", slow):
            await go_on.wait()

    with Slow() as slow:
        if manner == "task":
            task = asyncio.create_task(attempt(slow))
            await is_opening.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(attempt, slow)
                await is_opening.wait()
                group.cancel_scope.cancel()
    names = [name for _, name in slow.calls]
    assert names.count("open") == names.count("close") == 1


# Readers.


async def _binary_file(path: Path, _: AsyncExitStack) -> Any:
    return path.open("rb")


async def _unbuffered(path: Path, _: AsyncExitStack) -> Any:
    return path.open("rb", buffering=0)


async def _bytes_io(path: Path, _: AsyncExitStack) -> Any:
    return io.BytesIO(path.read_bytes())


async def _spooled(path: Path, _: AsyncExitStack) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=BLOCK_SIZE)  # noqa: SIM115 - the test closes it
    file.write(path.read_bytes())
    file.seek(0)
    return file


async def _upload(path: Path, stack: AsyncExitStack) -> Any:
    upload = UploadFile(path.open("rb"), filename="song.wav")
    stack.push_async_callback(upload.close)
    return upload


async def _aiofiles(path: Path, stack: AsyncExitStack) -> Any:
    return await stack.enter_async_context(aiofiles.open(path, "rb"))


class _AsyncOnly:
    """A reader that can do nothing else, such as a response's body."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, size: int) -> bytes:
        """Return the next bytes, never all that was asked for."""
        return self._data.read(min(size, 100_000))


class _SyncOnly:
    """A blocking reader that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        return self._data.read(min(size, 100_000))


async def _async_reader(path: Path, _: AsyncExitStack) -> Any:
    return _AsyncOnly(path.read_bytes())


async def _sync_reader(path: Path, _: AsyncExitStack) -> Any:
    return _SyncOnly(path.read_bytes())


async def _stream_reader(path: Path, _: AsyncExitStack) -> Any:
    reader = asyncio.StreamReader()
    reader.feed_data(path.read_bytes())
    reader.feed_eof()
    return reader


SEEKABLE = [_binary_file, _unbuffered, _bytes_io, _spooled, _upload, _aiofiles]
READERS = [*SEEKABLE, _async_reader, _sync_reader, _stream_reader]
Make = Callable[[Path, AsyncExitStack], Any]


async def close(reader: Any) -> None:
    """Close a reader that was not opened on the stack."""
    if isinstance(reader, (io.IOBase, tempfile.SpooledTemporaryFile)):
        reader.close()


@pytest.mark.parametrize("make", READERS)
async def test_anything_with_read_is_a_source(
    make: Make, tmp_path: Path, data: bytes, executor: ThreadPoolExecutor
) -> None:
    """Sync or async, seekable or not, a reader is sent completely, at the second attempt too."""
    (tmp_path / "song.wav").write_bytes(data)
    async with AsyncExitStack() as stack:
        reader = await make(tmp_path / "song.wav", stack)
        stack.push_async_callback(close, reader)
        async with open_track(("a.wav", reader), executor) as content:
            assert (content.name, content.size, content.version) == ("a.wav", len(data), "")
            for _ in range(2):
                assert await read(content) == data


@pytest.mark.parametrize("make", READERS)
async def test_a_reader_is_sent_from_its_current_position(
    make: Make, tmp_path: Path, data: bytes, executor: ThreadPoolExecutor
) -> None:
    """Only the rest of a reader is sent, and a seekable reader keeps its position."""
    (tmp_path / "song.wav").write_bytes(data)
    async with AsyncExitStack() as stack:
        reader = await make(tmp_path / "song.wav", stack)
        stack.push_async_callback(close, reader)
        start = reader.read(10)
        assert (await start if asyncio.iscoroutine(start) else start) == data[:10]
        async with open_track(("a.wav", reader), executor) as content:
            assert await read(content) == data[10:]
        if make in SEEKABLE:
            after = reader.read(10)
            assert (await after if asyncio.iscoroutine(after) else after) == data[10:20]


async def test_a_seekable_reader_is_not_copied(
    tmp_path: Path, data: bytes, executor: ThreadPoolExecutor
) -> None:
    """The size of a file object is found by seeking: no temporary file is made for it."""
    (tmp_path / "song.wav").write_bytes(data)
    with (tmp_path / "song.wav").open("rb") as file:
        async with open_track(file, executor) as content:
            open_files = [
                os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
            ]
            assert not [path for path in open_files if "musicgpt-async-" in path]
            assert await read(content) == data


async def test_jobs_that_share_a_reader_take_turns(
    tmp_path: Path, data: bytes, executor: ThreadPoolExecutor
) -> None:
    """Two jobs with one file object each send it completely: their reads do not mix."""
    (tmp_path / "song.wav").write_bytes(data)
    results: list[bytes] = []
    with (tmp_path / "song.wav").open("rb") as file:

        async def send() -> None:
            async with open_track(file, executor) as content:
                results.append(await read(content))

        with anyio.fail_after(HANG):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(send)
    assert results == [data] * 4


def test_a_reader_is_named_after_its_file(tmp_path: Path) -> None:
    """An upload's file name or a file's own goes before the label; a nameless one has the label."""
    (tmp_path / "song.wav").write_bytes(b"sound")
    with (tmp_path / "song.wav").open("rb") as file:
        assert parse_source(file, label="other").name == "song.wav"
        assert parse_source(("b.wav", file)).name == "b.wav"
    assert parse_source(UploadFile(io.BytesIO(b"s"), filename="dir/up.wav")).name == "up.wav"
    assert parse_source(io.BytesIO(b"s"), label="mine").name == "mine"
    assert parse_source(io.BytesIO(b"s")).name == "audio"


@pytest.mark.parametrize("named", [False, True])
def test_a_text_file_is_refused_at_once(named: bool, tmp_path: Path) -> None:
    """A file in text mode would be garbled; the error says how to open it."""
    (tmp_path / "song.wav").write_bytes(b"sound")
    for text in ((tmp_path / "song.wav").open(), io.StringIO("sound")):
        with text, pytest.raises(InvalidOptionError, match="binary mode"):
            parse_source(("a.wav", text) if named else text)


async def test_an_aiofiles_text_handle_is_refused(tmp_path: Path) -> None:
    """The same for a text file that aiofiles has opened."""
    (tmp_path / "song.wav").write_bytes(b"sound")
    async with aiofiles.open(tmp_path / "song.wav") as handle:
        with pytest.raises(InvalidOptionError, match="binary mode"):
            parse_source(handle)


class _Texts:
    def read(self, _: int) -> str:
        """Return what is not bytes."""
        return "text"


class _StrayCancel:
    async def read(self, _: int) -> bytes:
        """Await a task that was cancelled elsewhere."""
        raise asyncio.CancelledError


def _closed() -> io.BytesIO:
    file = io.BytesIO(b"sound")
    file.close()
    return file


@pytest.mark.parametrize("make", [_Texts, _StrayCancel, _closed])
async def test_a_readers_own_failure_is_the_sources(
    make: Callable[[], Any], executor: ThreadPoolExecutor
) -> None:
    """No bytes, a stray cancellation, a closed file: that track fails, and nothing else does."""
    with pytest.raises(SourceError):
        async with open_track(("a.wav", make()), executor):
            pass


async def test_an_empty_reader_is_refused(executor: ThreadPoolExecutor) -> None:
    """Nothing is left to send from a file that was read to its end."""
    file = io.BytesIO(b"sound")
    file.read()
    with pytest.raises(SourceError, match="empty"):
        async with open_track(("a.wav", file), executor):
            pass


async def test_cancelling_leaves_a_reader_where_it_was(
    data: bytes, executor: ThreadPoolExecutor
) -> None:
    """An attempt that is cancelled midway puts the position back before it ends."""
    file = io.BytesIO(data)
    file.seek(3)
    async with open_track(("a.wav", file), executor) as content:
        with anyio.CancelScope() as scope:
            async with aclosing(content.read_blocks(lambda: memoryview(b""))) as read_blocks:
                async for _ in read_blocks:
                    scope.cancel()
                    await anyio.sleep(HANG)
        assert scope.cancelled_caught
        assert file.tell() == 3
