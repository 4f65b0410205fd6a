from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import attrs
import pytest
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from musicgpt_async._io import upload
from musicgpt_async._io.upload import BLOCK, Body, Content, Digest, Track, track_of
from musicgpt_async._rules.protocol import Answer
from musicgpt_async._rules.retrying import Verdict, submit_verdict
from musicgpt_async.errors import (
    InvalidOptionError,
    MusicGPTError,
    ReleasedError,
    SourceChangedError,
    SourceError,
    StalledError,
    TransportError,
)

pytestmark = pytest.mark.anyio

FIELDS = {"audio_url": "", "stems": '["vocals"]', "preprocessing_options": "[]"}
# More than the kernel and the transport hold between a client and a server that does not read.
MORE_THAN_BUFFERS = 24 * BLOCK
NARROW = 1 << 16
# Guards against hanging; no test passes or fails by it on its own.
PATIENCE = 60


async def _nothing() -> None:
    """Hand over without a word."""


def body_of(content: Content | None, **settings: Any) -> Body:
    """Make one attempt's body."""
    given = {"stall_timeout": 30.0, "hand_over": _nothing, "progress": lambda _: None, **settings}
    return Body(given.pop("fields", FIELDS), content, **given)


@asynccontextmanager
async def opened(source: Any, executor: ThreadPoolExecutor) -> AsyncIterator[Content]:
    """Open a source that has content."""
    track = source if isinstance(source, Track) else track_of(source)
    async with upload.opened(track, executor) as content:
        assert content is not None
        yield content


def song(path: Path, size: int) -> bytes:
    """Write a track and return its bytes."""
    data = secrets.token_bytes(min(size, BLOCK))
    whole = (data * (size // len(data) + 1))[:size]
    path.write_bytes(whole)
    return whole


def parts_of(request: Any) -> list[tuple[bytes, bytes]]:
    """Cut a multipart body by hand: (head, content) of each part."""
    boundary = re.search(r'boundary="?([^";]+)', request.headers["content-type"])[1].encode()
    assert request.body.startswith(b"--" + boundary + b"\r\n")
    assert request.body.endswith(b"\r\n--" + boundary + b"--\r\n")
    inner = request.body[len(boundary) + 4 : -len(boundary) - 8]
    pieces = inner.split(b"\r\n--" + boundary + b"\r\n")
    return [tuple(piece.split(b"\r\n\r\n", 1)) for piece in pieces]  # type: ignore[misc]


def closing(body: Body) -> bytes:
    """The closing boundary, which has to go out last."""
    return body._tail


def held(path: Path) -> list[str]:
    """The descriptors of this process that lead to a file."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(path)):
                found.append(fd)
    return found


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what another process or the kernel does."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.002)


@attrs.define
class Recorder:
    """A vendor that reads whole submits and says yes."""

    requests: list[Any] = attrs.field(factory=list)
    peers: list[int] = attrs.field(factory=list)

    async def __call__(self, peer: Any) -> None:
        """Read whole submits for as long as the client sends them."""
        while True:
            self.requests.append(await peer.request())
            self.peers.append(peer.number)
            await peer.answer(200, b'{"success": true, "task_id": "t"}')


async def _stream(data: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), 700_001):
        yield data[start : start + 700_001]


# What goes out.


@pytest.mark.parametrize("kind", ["path", "bytes", "stream", "url"])
async def test_the_length_is_true_and_nothing_is_chunked(
    kind: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Each kind of source goes out under a Content-Length that counts every byte."""
    data = song(tmp_path / "song.flac", 3 * BLOCK + 17)
    source = {
        "path": tmp_path / "song.flac",
        "bytes": ("song.flac", data),
        "stream": ("song.flac", _stream(data)),
        "url": "https://music.example/song.flac",
    }[kind]
    vendor = Recorder()
    async with (
        serve(vendor) as server,
        lanes() as transport,
        upload.opened(track_of(source), executor) as content,
    ):
        body = body_of(content)
        answer = await transport.send(server.url, body)
    (request,) = vendor.requests
    assert (answer.status, body.delivered, body.failure) == (200, True, None)
    assert request.headers["content-length"] == str(len(request.body)) == str(body.size)
    assert "transfer-encoding" not in request.headers
    parts = parts_of(request)
    texts = [(f'form-data; name="{name}"', value) for name, value in FIELDS.items()]
    for (name, value), (head, content_) in zip(texts, parts, strict=False):
        assert (head, content_) == (f"Content-Disposition: {name}".encode(), value.encode())
    if kind == "url":
        assert len(parts) == 3
    else:
        assert parts[3][1] == data
        assert b'name="audio_file"; filename="song.flac"' in parts[3][0]


@pytest.mark.parametrize("kind", ["path", "bytes", "stream"])
async def test_every_attempt_sends_the_whole_track_anew(
    kind: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """The same open track goes out three times, whole each time, after a try broken off midway."""
    data = song(tmp_path / "a.wav", 2 * BLOCK + 5)
    source = {
        "path": tmp_path / "a.wav",
        "bytes": ("a.wav", data),
        "stream": ("a.wav", _stream(data)),
    }[kind]
    vendor = Recorder()

    async def first_hangs_up(peer: Any) -> None:
        if peer.number == 1:
            await peer.reader.readexactly(NARROW)
            peer.reset()
        else:
            await vendor(peer)

    async with (
        serve(first_hangs_up, window=NARROW) as server,
        lanes() as transport,
        opened(source, executor) as content,
    ):
        with pytest.raises(TransportError):
            await transport.send(server.url, body_of(content, hand_over=_never_ready(server)))
        for _ in range(3):
            assert (await transport.send(server.url, body_of(content))).status == 200
    assert [parts_of(request)[3][1] == data for request in vendor.requests] == [True] * 3


def _never_ready(server: Any) -> Callable[[], Any]:
    """Hold the closing boundary back until the server has hung up."""

    async def hand_over() -> None:
        await until(lambda: not server.open)
        await anyio.sleep(0.05)

    return hand_over


async def test_a_body_that_is_written_twice_is_whole_twice(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Even one and the same body never goes out as an empty file."""
    data = song(tmp_path / "a.wav", BLOCK + 5)
    vendor = Recorder()
    async with (
        serve(vendor) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content)
        await transport.send(server.url, body)
        await transport.send(server.url, body)
    assert [parts_of(request)[3][1] == data for request in vendor.requests] == [True, True]


async def test_the_closing_boundary_goes_out_last_and_alone(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """When ``hand_over`` is asked, the server has every byte but the closing boundary."""
    data = song(tmp_path / "a.wav", BLOCK + 9)
    received = bytearray()
    seen: list[tuple[int, bool, bool]] = []

    async def count(peer: Any) -> None:
        head = await peer.head()
        while len(received) < int(head.headers["content-length"]):
            received.extend(await peer.reader.read(1 << 16))
        await peer.answer(200, b"{}")

    async with (
        serve(count) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):

        async def hand_over() -> None:
            await until(lambda: len(received) >= body.size - len(closing(body)))
            seen.append((body.size - len(received), closing(body) in received, body.delivered))

        body = body_of(content, hand_over=hand_over)
        await transport.send(server.url, body)
    assert seen == [(len(closing(body)), False, False)]
    assert received.endswith(data + closing(body))
    assert body.delivered


async def test_an_error_at_the_handing_over_keeps_the_boundary_back(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Where it could not be written down that the track goes out, it does not go out whole."""
    song(tmp_path / "a.wav", BLOCK)
    received: list[bytes] = []

    async def refuse() -> None:
        raise ReleasedError("let go of")

    async def listen(peer: Any) -> None:
        received.append(await peer.rest())

    async with (
        serve(listen) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content, hand_over=refuse)
        with pytest.raises(TransportError):
            await transport.send(server.url, body)
        await until(lambda: received)
    assert isinstance(body.failure, ReleasedError)
    assert not body.delivered
    assert closing(body) not in received[0]


async def test_progress_counts_the_tracks_bytes(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Progress climbs block by block to the track's size, the envelope left out."""
    data = song(tmp_path / "a.wav", 3 * BLOCK + 1)
    steps: list[int] = []
    digest = Digest(executor)
    async with (
        serve(Recorder()) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        await transport.send(server.url, body_of(content, progress=steps.append, digest=digest))
    assert steps == [BLOCK, 2 * BLOCK, 3 * BLOCK, 3 * BLOCK + 1]
    assert digest.hexdigest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("tls", [False, True])
async def test_memory_that_is_used_again_never_mixes_blocks(
    tls: bool,
    tmp_path: Path,
    serve: Any,
    lanes: Any,
    certificates: Any,
    executor: ThreadPoolExecutor,
) -> None:
    """A vendor that reads in sips gets every block as it was, in clear and over TLS."""
    data = secrets.token_bytes(9 * BLOCK + 17)  # no block like another
    (tmp_path / "a.wav").write_bytes(data)
    theirs, ours = certificates
    got = hashlib.sha256()

    async def sip(peer: Any) -> None:
        left = int((await peer.head()).headers["content-length"])
        while left:
            piece = await peer.reader.read(min(left, 50_021))
            got.update(piece)
            left -= len(piece)
            await anyio.lowlevel.checkpoint()
        await peer.answer(200, b'{"success": true, "task_id": "t"}')

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ours)) as http,
        serve(sip, window=NARROW, tls=theirs if tls else None) as server,
        lanes(http=http) as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content)
        url = server.url.replace("http:", "https:") if tls else server.url
        with anyio.fail_after(60):
            assert (await transport.send(url, body)).status == 200
    head, tail = body._head, body._tail
    assert got.hexdigest() == hashlib.sha256(head + data + tail).hexdigest()


async def test_a_track_that_holds_line_breaks_and_boundaries_arrives_as_it_is(
    serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """No content can end its part early: each body draws a boundary of its own."""
    vendor = Recorder()
    async with serve(vendor) as server, lanes() as transport:
        async with opened(("a.wav", b"first"), executor) as content:
            await transport.send(server.url, body_of(content))
        captured = vendor.requests[0].body
        async with opened(("a.wav", captured), executor) as content:
            await transport.send(server.url, body_of(content))
    assert parts_of(vendor.requests[1])[3][1] == captured


# A source that is not what it was.


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
    """It shrinks, grows or is written to: its own error, and no server gets a whole request."""
    path = tmp_path / "a.wav"
    song(path, MORE_THAN_BUFFERS)
    received: list[bytes] = []

    async def change_midway(peer: Any) -> None:
        start = await peer.reader.readexactly(NARROW)
        change(path)
        received.append(start + await peer.rest())

    async with (
        serve(change_midway, window=NARROW) as server,
        lanes() as transport,
        opened(path, executor) as content,
    ):
        body = body_of(content)
        with anyio.fail_after(PATIENCE), pytest.raises(TransportError):
            await transport.send(server.url, body)
        await until(lambda: received)
    assert isinstance(body.failure, SourceChangedError)
    assert submit_verdict(body.failure, delivered=body.delivered) is Verdict.REFUSED
    assert not body.delivered
    assert closing(body) not in received[0]


async def test_a_track_that_is_replaced_goes_out_as_it_was(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Another file under the same name is another track: the one that was opened is sent."""
    data = song(tmp_path / "a.wav", BLOCK)
    vendor = Recorder()
    async with (
        serve(vendor) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        (tmp_path / "b.wav").write_bytes(b"another")
        (tmp_path / "b.wav").replace(tmp_path / "a.wav")
        await transport.send(server.url, body_of(content))
    assert parts_of(vendor.requests[0])[3][1] == data


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
        async with opened(tmp_path / "a.wav", executor):
            pass


async def test_a_file_without_the_right_to_read_is_a_source_error(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """Permission denied is the track's fault, not the network's."""
    song(tmp_path / "a.wav", 10)
    (tmp_path / "a.wav").chmod(0)
    if os.access(tmp_path / "a.wav", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(SourceError, match="Permission denied"):
        async with opened(tmp_path / "a.wav", executor):
            pass


async def test_a_path_that_no_file_can_have_is_a_source_error(
    executor: ThreadPoolExecutor,
) -> None:
    """A name with a NUL in it cannot be read, and says so like any other."""
    with pytest.raises(SourceError):
        async with opened(Track("song.wav", "/so\0ng.wav", Path("/so\0ng.wav")), executor):
            pass


@pytest.mark.parametrize("empty", [("a.wav", b""), "stream"])
async def test_empty_bytes_and_streams_are_refused(
    empty: Any, executor: ThreadPoolExecutor
) -> None:
    """An empty song is not sent, wherever it comes from."""
    source = ("a.wav", _stream(b"")) if empty == "stream" else empty
    with pytest.raises(SourceError, match="empty"):
        async with opened(source, executor):
            pass


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("gone"), TimeoutError("slow"), RuntimeError("odd"), KeyError("k")],
)
async def test_a_stream_that_breaks_off_is_the_tracks_fault(
    error: Exception, executor: ThreadPoolExecutor
) -> None:
    """Whatever the caller's own stream raises is no failure of the network towards the vendor."""

    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"first"
        raise error

    with pytest.raises(SourceError) as caught:
        async with opened(("a.wav", broken()), executor):
            pass
    assert not isinstance(caught.value, TransportError)
    assert caught.value.__cause__ is error


@attrs.frozen
class _Unreadable:
    """A track whose disk fails in the middle."""

    error: Exception
    name: str = "a.wav"
    size: int = 2 * BLOCK
    version: str = "1"

    async def blocks(self, _: object) -> AsyncGenerator[memoryview, None]:
        yield memoryview(bytes(BLOCK))
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
            await transport.send(server.url, body)
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

    async def blocks(self, _: object) -> AsyncGenerator[memoryview, None]:
        yield memoryview(b"x" * 100)


@pytest.mark.parametrize("announced", [99, 101])
async def test_content_that_belies_its_size_never_goes_out_whole(
    announced: int, serve: Any, lanes: Any
) -> None:
    """What was sent is counted against what was announced."""
    received: list[bytes] = []

    async def listen(peer: Any) -> None:
        received.append(await peer.rest())

    async with serve(listen) as server, lanes() as transport:
        body = body_of(_Longer(announced))
        with anyio.fail_after(PATIENCE), pytest.raises(TransportError):
            await transport.send(server.url, body)
        await until(lambda: received)
    assert isinstance(body.failure, SourceChangedError)
    assert not body.delivered
    assert closing(body) not in received[0]


# Cancelling.


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancelling_midway_closes_the_file(
    how: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """No descriptor stays behind, and no closing boundary goes out."""
    path = tmp_path / "a.wav"
    song(path, MORE_THAN_BUFFERS)
    received: list[bytes] = []
    started, read_on = anyio.Event(), anyio.Event()

    async def stop_reading(peer: Any) -> None:
        start = await peer.reader.readexactly(NARROW)
        started.set()
        await read_on.wait()
        received.append(start + await peer.rest())

    async with serve(stop_reading, window=NARROW) as server, lanes() as transport:
        bodies: list[Body] = []

        async def submit() -> None:
            async with opened(path, executor) as content:
                bodies.append(body_of(content))
                await transport.send(server.url, bodies[0])

        if how == "task":
            task = asyncio.create_task(submit())
            await started.wait()
            assert held(path)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(submit)
                await started.wait()
                assert held(path)
                group.cancel_scope.cancel()
        await until(lambda: not held(path))
        read_on.set()
        await until(lambda: received)
    assert not bodies[0].delivered
    assert closing(bodies[0]) not in received[0]


async def test_a_spooled_stream_leaves_no_file_behind(executor: ThreadPoolExecutor) -> None:
    """The temporary file of a stream goes with the submit."""
    async with opened(("a.wav", _stream(b"x" * 100)), executor) as content:
        spool = Path(content._file.name)
        assert (content.size, spool.stat().st_size) == (100, 100)
    assert not spool.exists()


@pytest.mark.parametrize("kind", ["path", "stream"])
@pytest.mark.parametrize("ends", ["normally", "cancelled"])
def test_the_file_is_closed_though_the_shared_threads_are_busy(
    ends: str, kind: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """Slow lookups of names hold up neither the end of a submit nor the closing of its file."""
    song(tmp_path / "a.wav", 100)
    free = threading.Event()
    kept: list[Any] = []  # so that no collection closes what the submit forgot

    async def submit() -> None:
        shared = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(shared)
        source = tmp_path / "a.wav" if kind == "path" else ("a.wav", _stream(b"x" * 100))
        with anyio.CancelScope() as scope:
            async with opened(source, executor) as content:
                shared.submit(free.wait, PATIENCE)
                kept.append(content)
                if ends == "cancelled":
                    scope.cancel()
                    await anyio.sleep(PATIENCE)

    async def main() -> None:
        try:
            with anyio.fail_after(2):
                await submit()
        finally:
            free.set()
        path = kept[0]._file.name
        with anyio.fail_after(2):
            await until(lambda: not held(path) and (kind == "path" or not Path(path).exists()))

    try:
        asyncio.run(main())
    finally:
        for content in kept:
            content._file.close()


# A vendor that does not read, hangs up, or answers early.


async def test_a_vendor_that_stops_reading_is_noticed(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """No byte taken for the stall timeout ends the upload, not delivered and thus sent again."""
    song(tmp_path / "a.wav", MORE_THAN_BUFFERS)

    async def read_nothing(peer: Any) -> None:
        await peer.head()
        await anyio.sleep(PATIENCE * 2)

    async with (
        serve(read_nothing, window=NARROW) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content, stall_timeout=0.4)
        began = anyio.current_time()
        with anyio.fail_after(PATIENCE), pytest.raises(TransportError):
            await transport.send(server.url, body)
        assert anyio.current_time() - began >= 0.4
    assert isinstance(body.failure, StalledError)
    assert "0.4 s" in str(body.failure)
    assert not body.delivered
    assert submit_verdict(body.failure, delivered=False) is Verdict.NOT_DELIVERED


async def test_a_slow_upload_outlasts_every_timeout(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """As long as bytes are taken, neither the request's nor the stall timeout cuts an upload."""
    data = song(tmp_path / "a.wav", MORE_THAN_BUFFERS)
    received: list[bytes] = []
    timeout = 0.8

    async def sip_then_gulp(peer: Any) -> None:
        length = int((await peer.head()).headers["content-length"])
        began = anyio.current_time()
        while sum(map(len, received)) < length:
            received.append(await peer.reader.read(NARROW))
            if anyio.current_time() - began < 3 * timeout:
                await anyio.sleep(timeout / 40)
        await peer.answer(200, b"{}")

    async with (
        serve(sip_then_gulp, window=NARROW) as server,
        lanes(request_timeout=timeout) as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content, stall_timeout=timeout)
        began = anyio.current_time()
        answer = await transport.send(server.url, body)
        assert anyio.current_time() - began > 3 * timeout
    assert answer.status == 200
    assert b"".join(received).endswith(data + closing(body))


async def test_a_total_timeout_of_the_callers_session_does_not_cut_an_upload(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Aiohttp's total (300 s by default) covers upload and answer together: it must not apply."""
    song(tmp_path / "a.wav", BLOCK)

    async def take_longer(peer: Any) -> None:
        await peer.head()
        await anyio.sleep(0.6)
        await peer.reader.readexactly(BLOCK)
        await peer.answer(200, b"{}")

    timeout = aiohttp.ClientTimeout(total=0.2)
    async with (
        serve(take_longer, window=NARROW) as server,
        aiohttp.ClientSession(timeout=timeout) as http,
        lanes(http=http) as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        assert (await transport.send(server.url, body_of(content))).status == 200


@pytest.mark.parametrize("status", [402, 413, 429])
@pytest.mark.parametrize("manner", ["keeps reading", "stops reading", "closes its side"])
async def test_an_early_answer_is_read(
    status: int,
    manner: str,
    tmp_path: Path,
    serve: Any,
    lanes: Any,
    executor: ThreadPoolExecutor,
) -> None:
    """A refusal while the upload runs arrives, and the rest of the track is kept back."""
    song(tmp_path / "a.wav", MORE_THAN_BUFFERS)

    async def refuse(peer: Any) -> None:
        await peer.head()
        await peer.reader.readexactly(1 << 16)
        await peer.answer(status, b'{"success": false, "message": "no"}', Connection="close")
        if manner == "keeps reading":
            await peer.rest()
            return
        if manner == "closes its side":
            peer.writer.write_eof()
        await anyio.sleep(PATIENCE)

    async with (
        serve(refuse, window=NARROW) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content)
        with anyio.fail_after(PATIENCE):
            answer = await transport.send(server.url, body)
    assert (answer.status, answer.body[:17]) == (status, b'{"success": false')
    assert not body.delivered


@pytest.mark.parametrize("manner", ["reset", "close"])
async def test_an_answer_is_read_though_the_vendor_hangs_up(
    manner: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A 402 before a hang-up is read where the kernel still has it, and is never a delivery."""
    song(tmp_path / "a.wav", MORE_THAN_BUFFERS)
    answers: list[Answer] = []

    async def refuse(peer: Any) -> None:
        await peer.head()
        await peer.reader.readexactly(1 << 16)
        await peer.answer(402, b'{"message": "add credit"}', Connection="close")
        if manner == "reset":
            peer.reset()

    async with (
        serve(refuse, window=NARROW) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        for _ in range(10):
            body = body_of(content)
            # A reset that overtakes the answer takes it along: on a busy machine some do.
            with suppress(TransportError):
                answers.append(await transport.send(server.url, body))
            assert not body.delivered
    assert {answer.status for answer in answers} == {402}


@pytest.mark.parametrize("manner", ["reset", "close"])
async def test_hanging_up_midway_is_not_delivered(
    manner: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A connection that breaks under the track leaves nothing that could be paid for."""
    song(tmp_path / "a.wav", MORE_THAN_BUFFERS)

    async def hang_up(peer: Any) -> None:
        await peer.reader.readexactly(1 << 16)
        if manner == "reset":
            peer.reset()

    async with (
        serve(hang_up, window=NARROW) as server,
        lanes() as transport,
        opened(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content)
        with anyio.fail_after(PATIENCE), pytest.raises(TransportError) as caught:
            await transport.send(server.url, body)
    assert not body.delivered
    error = body.failure or caught.value
    assert isinstance(error, MusicGPTError)
    assert submit_verdict(error, delivered=body.delivered) is Verdict.NOT_DELIVERED


@pytest.mark.parametrize("manner", ["reset", "close"])
async def test_hanging_up_before_the_boundary_is_not_delivered(
    manner: str, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A connection seen to be closed when the boundary is due never gets it."""
    received: list[bytes] = []

    async def hang_up(peer: Any) -> None:
        head = await peer.head()
        missing = int(head.headers["content-length"]) - len(closing(body))
        received.append(await peer.reader.readexactly(missing))
        if manner == "reset":
            peer.reset()

    async with (
        serve(hang_up) as server,
        lanes() as transport,
        opened(("a.wav", b"x" * 1000), executor) as content,
    ):

        async def hand_over() -> None:
            await until(lambda: received and not server.open)
            await anyio.sleep(0.05)

        body = body_of(content, hand_over=hand_over)
        with pytest.raises(TransportError) as caught:
            await transport.send(server.url, body)
    assert not body.delivered
    assert submit_verdict(caught.value, delivered=body.delivered) is Verdict.NOT_DELIVERED


@pytest.mark.parametrize("manner", ["reset", "close", "half an answer", "silence"])
async def test_a_whole_track_without_an_answer_is_unknown(
    manner: str, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Once the boundary is out, a missing answer never reads as "not delivered"."""

    async def say_nothing(peer: Any) -> None:
        await peer.request()
        if manner == "reset":
            peer.reset()
        elif manner == "half an answer":
            await peer.say(b'HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"success": tr')
        elif manner == "silence":
            await anyio.sleep(PATIENCE)

    async with (
        serve(say_nothing) as server,
        lanes(request_timeout=0.5) as transport,
        opened(("a.wav", b"x" * 1000), executor) as content,
    ):
        body = body_of(content)
        with pytest.raises(TransportError) as caught:
            await transport.send(server.url, body)
        assert server.connections == 1
    assert body.delivered
    assert body.failure is None
    assert submit_verdict(caught.value, delivered=body.delivered) is Verdict.UNKNOWN


async def test_no_server_at_all_is_not_delivered(
    lanes: Any, executor: ThreadPoolExecutor, unused_port: int
) -> None:
    """A refused connection hands nothing over."""
    async with lanes() as transport, opened(("a.wav", b"x"), executor) as content:
        body = body_of(content)
        with pytest.raises(TransportError) as caught:
            await transport.send(f"http://127.0.0.1:{unused_port}", body)
    assert submit_verdict(caught.value, delivered=body.delivered) is Verdict.NOT_DELIVERED


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        yield sock.getsockname()[1]


# File names.

NAMES = {
    'Прив "x" é.mp3': "Прив 'x' é.mp3",
    "歌🎵 𝄞.flac": "歌🎵 𝄞.flac",
    "a;b=c, d.mp3": "a;b=c, d.mp3",
    "100%25 é%22.wav": "100%25 é%22.wav",
    "back\\slash\\.mp3": "back_slash_.mp3",
    "ends with \\": "ends with _",
    "line\r\nX-Evil: 1\r\n\r\n.mp3": "line__X-Evil: 1____.mp3",
    "tab\tnul\0del\x7f.mp3": "tab_nul_del_.mp3",
    '"; name="stems': "'; name='stems",
    "=?utf-8?q?x?=.mp3": "=?utf-8?q?x?=.mp3",
    "  spaces .mp3": "  spaces .mp3",
    "sur\udcffrogate.mp3": "sur?rogate.mp3",
    "x" * 300 + ".mp3": "x" * 300 + ".mp3",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items(), ids=range(len(NAMES)))
async def test_file_names_arrive_at_aiohttp_and_starlette(
    name: str, expected: str, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Unicode arrives as it is on disk; quotes, backslashes and control characters are replaced."""
    vendor = Recorder()
    arrived: list[tuple[str, bytes, dict[str, str]]] = []

    async def receive(request: web.Request) -> web.Response:
        form = await request.post()
        file: Any = form["audio_file"]
        texts = {key: str(value) for key, value in form.items() if key != "audio_file"}
        arrived.append((file.filename, file.file.read(), texts))
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with (
            serve(vendor) as server,
            lanes() as transport,
            opened((name, b"sound") if "/" not in name else name, executor) as content,
        ):
            await transport.send(server.url, body_of(content))
            answer = await transport.send(
                f"http://127.0.0.1:{runner.addresses[0][1]}/", body_of(content)
            )
    finally:
        await runner.cleanup()
    assert answer.status == 200
    assert arrived == [(expected, b"sound", FIELDS)]

    async def sent() -> AsyncGenerator[bytes, None]:
        yield vendor.requests[0].body
        yield b""

    headers = Headers({"content-type": vendor.requests[0].headers["content-type"]})
    form = await MultiPartParser(headers, sent()).parse()
    try:
        file: Any = form["audio_file"]
        assert (file.filename, await file.read()) == (expected, b"sound")
        assert {key: form[key] for key in FIELDS} == FIELDS
    finally:
        await form.close()


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
    track = track_of(source, label=label)
    assert (track.name, track.title) == (name, title)
    assert ".." not in track.location


@pytest.mark.parametrize("source", [None, 3, ["a.wav"], ("a.wav", 3), (1, b"x"), ("a", "b"), {}])
def test_what_cannot_be_sent_is_refused_at_once(source: Any) -> None:
    """A wrong type is named, and what would be right."""
    with pytest.raises(InvalidOptionError, match="cannot be submitted"):
        track_of(source)


# What it costs.

_SINK = """
import socket
s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True)
block = memoryview(bytearray(1 << 20))
while True:
    c, _ = s.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += c.recv(1 << 16)
    head, _, start = head.partition(b"\\r\\n\\r\\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\\r\\n")[0]) - len(start)
    while length:
        length -= c.recv_into(block)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}"); c.close()
"""

_UPLOAD = """
import asyncio, resource, sys
from concurrent.futures import ThreadPoolExecutor
from musicgpt_async._io import upload
from musicgpt_async._io.http import Transport

async def nothing(): pass

async def send(transport, executor, path, url):
    async with upload.opened(upload.track_of(path), executor) as content:
        body = upload.Body({"a": "b"}, content, stall_timeout=60, hand_over=nothing,
                           progress=lambda _: None, digest=upload.Digest(executor))
        assert (await transport.send(url, body)).status == 200 and body.delivered

def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def main(small, large, url):
    transport = Transport("key", request_timeout=60, downloads=1, allows=lambda _: True)
    transport.open()
    with ThreadPoolExecutor(6) as executor:
        await send(transport, executor, small, url)
        before = most()
        await send(transport, executor, large, url)
        print(before, most(), flush=True)
    await transport.close()

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def sink() -> AsyncIterator[str]:
    """A server in a process of its own that swallows uploads as fast as they come."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SINK, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.communicate()


async def test_a_file_of_a_gibibyte_adds_less_than_16_mebibytes(tmp_path: Path) -> None:
    """Memory is flat: a large file costs what a small one costs, and a little for its blocks."""
    song(tmp_path / "small.wav", 1000)
    (tmp_path / "large.wav").touch()
    os.truncate(tmp_path / "large.wav", 1 << 30)
    async with sink() as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _UPLOAD,
            str(tmp_path / "small.wav"),
            str(tmp_path / "large.wav"),
            url,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    before, after = (int(word) for word in out.split())
    print(f"1 GiB added {after - before} KiB")  # noqa: T201 - the figure for pytest -rP
    assert after - before < 16 * 1024


class _Swallows(AbstractStreamWriter):
    """A writer that takes everything at once and never makes anybody wait."""

    async def write(self, chunk: Any) -> None:
        """Take it."""

    async def write_eof(self, chunk: bytes = b"") -> None:
        """End."""

    async def drain(self) -> None:
        """Return at once, as aiohttp's does while the other side keeps up."""

    def enable_compression(self, encoding: str = "deflate", strategy: Any = None) -> None:
        """Never."""

    def enable_chunking(self) -> None:
        """Never."""

    async def write_headers(self, status_line: str, headers: Any) -> None:
        """Take them."""


@pytest.mark.parametrize("kind", ["path", "bytes", "stream"])
async def test_others_have_their_turn_after_every_block(
    kind: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """Even where neither reading nor writing ever waits, an upload lets go of the loop."""
    blocks = 32
    data = song(tmp_path / "a.wav", blocks * BLOCK)
    source = {"path": tmp_path / "a.wav", "bytes": ("a", data), "stream": ("a", _stream(data))}
    turns, done = 0, anyio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with opened(source[kind], executor) as content, anyio.create_task_group() as group:
        group.start_soon(count)
        await body_of(content).write(_Swallows())
        done.set()
    assert turns >= blocks


async def _largest_gap(stop: anyio.Event) -> float:
    """The longest time in which the loop served nobody else."""
    largest, last = 0.0, anyio.current_time()
    while not stop.is_set():
        await anyio.sleep(0.001)  # spinning would take the threads' share of the interpreter
        now = anyio.current_time()
        largest, last = max(largest, now - last), now
    return largest


@pytest.mark.parametrize("kind", ["path", "bytes"])
async def test_an_upload_does_not_starve_the_loop(
    kind: str, tmp_path: Path, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Others get their turn all through a transfer: no gap is near as long as the transfer."""
    size = 512 << 20
    if kind == "path":
        (tmp_path / "large.wav").touch()
        os.truncate(tmp_path / "large.wav", size)
        source: Any = tmp_path / "large.wav"
    else:
        source = ("large.wav", bytes(size))
    async with sink() as url, lanes() as transport, opened(source, executor) as content:
        stop, gaps = anyio.Event(), []

        async def watch() -> None:
            gaps.append(await _largest_gap(stop))

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            began = anyio.current_time()
            await transport.send(url, body_of(content))
            took = anyio.current_time() - began
            stop.set()
    print(f"{kind}: {took:.2f} s, largest gap {gaps[0]:.4f} s")  # noqa: T201 - for pytest -rP
    assert gaps[0] < took / 3
