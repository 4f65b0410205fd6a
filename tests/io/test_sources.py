"""What a source may be, and one that is not what it was."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from factories.uploads import (
    MORE_THAN_BUFFERS,
    NARROW,
    PATIENCE,
    Recorder,
    body_of,
    closing,
    open_track,
    stream,
    write_track,
)
from factories.watching import until

from musicgpt_async._io.content import BLOCK_SIZE
from musicgpt_async._io.sources import Track, parse_source
from musicgpt_async._rules.retrying import SubmitOutcome, submit_outcome
from musicgpt_async.errors import (
    InvalidOptionError,
    SourceChangedError,
    SourceError,
    TransportError,
)

pytestmark = pytest.mark.anyio


def _shrink(path: Path) -> None:
    os.truncate(path, MORE_THAN_BUFFERS // 2)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [_shrink, _grow, _overwrite])
async def test_a_track_that_changes_under_way_is_broken_off(
    change: Callable[[Path], None],
    tmp_path: Path,
    serve: Any,
    lanes: Any,
    executor: ThreadPoolExecutor,
) -> None:
    """A truncated, growing or rewritten file raises its own error, and no request completes."""
    path = tmp_path / "a.wav"
    write_track(path, MORE_THAN_BUFFERS)
    received: list[bytes] = []

    async def change_midway(peer: Any) -> None:
        start = await peer.reader.readexactly(NARROW)
        change(path)
        received.append(start + await peer.rest())

    async with (
        serve(change_midway, window=NARROW) as server,
        lanes() as transport,
        open_track(path, executor) as content,
    ):
        body = body_of(content)
        with anyio.fail_after(PATIENCE), pytest.raises(TransportError):
            await transport.post(server.url, body)
        await until(lambda: received)
    assert isinstance(body.failure, SourceChangedError)
    assert submit_outcome(body.failure, delivered=body.delivered) is SubmitOutcome.REFUSED
    assert not body.delivered
    assert closing(body) not in received[0]


async def test_a_track_that_is_replaced_is_not_sent(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Another file under the same name is another track: each attempt opens it anew and sees it."""
    write_track(tmp_path / "a.wav", BLOCK_SIZE)
    status = (tmp_path / "a.wav").stat()
    async with (
        serve(Recorder()) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        write_track(tmp_path / "b.wav", BLOCK_SIZE)
        os.utime(tmp_path / "b.wav", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "b.wav").replace(tmp_path / "a.wav")
        body = body_of(content)
        with pytest.raises(TransportError):
            await transport.post(server.url, body)
    assert isinstance(body.failure, SourceChangedError)
    assert not body.delivered


def _directory(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [_directory, _pipe, _device, _loop, Path.touch, lambda _: None])
async def test_what_is_no_readable_file_is_said_before_anything_is_sent(
    make: Callable[[Path], None], tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """A directory, a pipe, a device, a circle of links, an empty file and none at all."""
    make(tmp_path / "a.wav")
    with anyio.fail_after(PATIENCE), pytest.raises(SourceError, match=r"a\.wav"):
        async with open_track(tmp_path / "a.wav", executor):
            pass


async def test_a_file_without_the_right_to_read_is_a_source_error(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """Permission denied is the track's fault, not the network's."""
    write_track(tmp_path / "a.wav", 10)
    (tmp_path / "a.wav").chmod(0)
    if os.access(tmp_path / "a.wav", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(SourceError, match="Permission denied"):
        async with open_track(tmp_path / "a.wav", executor):
            pass


async def test_a_path_that_no_file_can_have_is_a_source_error(
    executor: ThreadPoolExecutor,
) -> None:
    """A name with a NUL in it cannot be read, and says so like any other."""
    with pytest.raises(SourceError):
        async with open_track(Track("song.wav", "/so\0ng.wav", Path("/so\0ng.wav")), executor):
            pass


@pytest.mark.parametrize("empty", [("a.wav", b""), "stream"])
async def test_empty_bytes_and_streams_are_refused(
    empty: Any, executor: ThreadPoolExecutor
) -> None:
    """An empty write_track is not sent, wherever it comes from."""
    source = ("a.wav", stream(b"")) if empty == "stream" else empty
    with pytest.raises(SourceError, match="empty"):
        async with open_track(source, executor):
            pass


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("gone"), TimeoutError("slow"), RuntimeError("odd"), KeyError("k")],
)
async def test_a_stream_that_breaks_off_is_the_tracks_fault(
    error: Exception, executor: ThreadPoolExecutor
) -> None:
    """An error that the caller's stream raises is not a network error."""

    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"first"
        raise error

    with pytest.raises(SourceError) as caught:
        async with open_track(("a.wav", broken()), executor):
            pass
    assert not isinstance(caught.value, TransportError)
    assert caught.value.__cause__ is error


@attrs.frozen
class _Unreadable:
    """A track whose disk fails in the middle."""

    error: Exception
    name: str = "a.wav"
    size: int = 2 * BLOCK_SIZE
    version: str = "1"

    async def read_blocks(self, _: object) -> AsyncGenerator[memoryview, None]:
        yield memoryview(bytes(BLOCK_SIZE))
        raise self.error


@pytest.mark.parametrize("error", [SourceError("cannot be read"), OSError(5, "Input/output error")])
async def test_a_read_error_midway_is_kept_as_what_it_is(
    error: Exception, serve: Any, lanes: Any
) -> None:
    """Aiohttp reports a failed read as a network fault; the body keeps the true one."""
    received: list[bytes] = []

    async def listen(peer: Any) -> None:
        received.append(await peer.rest())

    async with serve(listen) as server, lanes() as transport:
        body = body_of(_Unreadable(error))
        with pytest.raises(TransportError):
            await transport.post(server.url, body)
        await until(lambda: received)
    assert body.failure is error
    assert not body.delivered
    assert closing(body) not in received[0]


@attrs.frozen
class _Longer:
    """A track that yields more than it announced, or less."""

    size: int
    name: str = "a.wav"
    version: str = "1"

    async def read_blocks(self, _: object) -> AsyncGenerator[memoryview, None]:
        yield memoryview(b"x" * 100)


@pytest.mark.parametrize("announced", [99, 101])
async def test_content_that_contradicts_its_size_is_never_delivered(
    announced: int, serve: Any, lanes: Any
) -> None:
    """What was sent is counted against what was announced."""
    received: list[bytes] = []

    async def listen(peer: Any) -> None:
        received.append(await peer.rest())

    async with serve(listen) as server, lanes() as transport:
        body = body_of(_Longer(announced))
        with anyio.fail_after(PATIENCE), pytest.raises(TransportError):
            await transport.post(server.url, body)
        await until(lambda: received)
    assert isinstance(body.failure, SourceChangedError)
    assert not body.delivered
    assert closing(body) not in received[0]


# What a source may be.


@pytest.mark.parametrize(
    ("source", "label", "name", "title"),
    [
        ("https://a.example/b/So%20ng.mp3?sig=1", None, "So ng.mp3", "So ng"),
        ("HTTP://a.example/", None, "audio", "audio"),
        (b"sound", None, "audio", "audio"),
        (b"sound", "mine.wav", "mine.wav", "mine"),
        (("dir/mine.wav", b"sound"), None, "mine.wav", "mine"),
        (("", b"sound"), None, "audio", "audio"),
        (("m.wav", bytearray(b"sound")), None, "m.wav", "m"),
        (("m.wav", memoryview(b"sound")), "other", "m.wav", "m"),
        ("dir/../Прив é.mp3", None, "Прив é.mp3", "Прив é"),
    ],
)
def test_a_track_is_named_after_its_source(
    source: Any, label: str | None, name: str, title: str
) -> None:
    """The file name is the source's own; bytes are called by their label."""
    track = parse_source(source, label=label)
    assert (track.name, track.title) == (name, title)
    assert ".." not in track.location


@pytest.mark.parametrize(
    "source",
    [None, 3, ["a.wav"], ("a.wav", 3), (1, b"x"), ("a", "b"), {}, "ftp://example.org/a.wav"],
)
def test_what_cannot_be_sent_is_refused_at_once(source: Any) -> None:
    """A wrong type or scheme is named, and what would be right."""
    with pytest.raises(InvalidOptionError, match="cannot be submitted"):
        parse_source(source)
