from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import pytest
from aiohttp import web
from factories.uploads import (
    FIELDS,
    NARROW,
    Recorder,
    body_of,
    closing,
    open_track,
    parts_of,
    stream,
    write_track,
)
from factories.watching import until
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from musicgpt_async._io import sources
from musicgpt_async._io.content import BLOCK_SIZE, Digest
from musicgpt_async._io.sources import parse_source
from musicgpt_async.errors import (
    JobDetachedError,
    TransportError,
)

pytestmark = pytest.mark.anyio


# The bytes that are sent.


@pytest.mark.parametrize("kind", ["path", "bytes", "stream", "url"])
async def test_the_length_is_true_and_nothing_is_chunked(
    kind: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Each kind of source is sent with a Content-Length that counts every byte."""
    data = write_track(tmp_path / "song.flac", 3 * BLOCK_SIZE + 17)
    source = {
        "path": tmp_path / "song.flac",
        "bytes": ("song.flac", data),
        "stream": ("song.flac", stream(data)),
        "url": "https://music.example/write_track.flac",
    }[kind]
    vendor = Recorder()
    async with (
        serve(vendor) as server,
        lanes() as transport,
        sources.open_track(parse_source(source), executor) as content,
    ):
        body = body_of(content)
        answer = await transport.post(server.url, body)
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
async def test_every_attempt_sends_the_complete_track_again(
    kind: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """The same open track is sent three times completely, also after an aborted attempt."""
    data = write_track(tmp_path / "a.wav", 2 * BLOCK_SIZE + 5)
    source = {
        "path": tmp_path / "a.wav",
        "bytes": ("a.wav", data),
        "stream": ("a.wav", stream(data)),
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
        open_track(source, executor) as content,
    ):
        with pytest.raises(TransportError):
            await transport.post(server.url, body_of(content, before_commit=_never_ready(server)))
        for _ in range(3):
            assert (await transport.post(server.url, body_of(content))).status == 200
    assert [parts_of(request)[3][1] == data for request in vendor.requests] == [True] * 3


def _never_ready(server: Any) -> Callable[[], Any]:
    """Hold the closing boundary back until the server has hung up."""

    async def before_commit() -> None:
        await until(lambda: not server.open)
        await anyio.sleep(0.05)

    return before_commit


async def test_a_body_that_is_written_twice_is_complete_twice(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A reused body is never sent as an empty file."""
    data = write_track(tmp_path / "a.wav", BLOCK_SIZE + 5)
    vendor = Recorder()
    async with (
        serve(vendor) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content)
        await transport.post(server.url, body)
        await transport.post(server.url, body)
    assert [parts_of(request)[3][1] == data for request in vendor.requests] == [True, True]


async def test_the_closing_boundary_goes_out_last_and_alone(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """When ``before_commit`` is asked, the server has every byte but the closing boundary."""
    data = write_track(tmp_path / "a.wav", BLOCK_SIZE + 9)
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
        open_track(tmp_path / "a.wav", executor) as content,
    ):

        async def before_commit() -> None:
            await until(lambda: len(received) >= body.size - len(closing(body)))
            seen.append((body.size - len(received), closing(body) in received, body.delivered))

        body = body_of(content, before_commit=before_commit)
        await transport.post(server.url, body)
    assert seen == [(len(closing(body)), False, False)]
    assert received.endswith(data + closing(body))
    assert body.delivered


async def test_an_error_before_the_commit_point_keeps_the_boundary_back(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """If the delivery cannot be saved before, the closing boundary is not sent."""
    write_track(tmp_path / "a.wav", BLOCK_SIZE)
    received: list[bytes] = []

    async def refuse() -> None:
        raise JobDetachedError("let go of")

    async def listen(peer: Any) -> None:
        received.append(await peer.rest())

    async with (
        serve(listen) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content, before_commit=refuse)
        with pytest.raises(TransportError):
            await transport.post(server.url, body)
        await until(lambda: received)
    assert isinstance(body.failure, JobDetachedError)
    assert not body.delivered
    assert closing(body) not in received[0]


async def test_progress_counts_the_tracks_bytes(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Progress climbs block by block to the track's size, the envelope left out."""
    data = write_track(tmp_path / "a.wav", 3 * BLOCK_SIZE + 1)
    steps: list[int] = []
    digest = Digest(executor)
    async with (
        serve(Recorder()) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        await transport.post(server.url, body_of(content, progress=steps.append, digest=digest))
    assert steps == [BLOCK_SIZE, 2 * BLOCK_SIZE, 3 * BLOCK_SIZE, 3 * BLOCK_SIZE + 1]
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
    """A slow reader gets every block unchanged, with and without TLS."""
    data = secrets.token_bytes(9 * BLOCK_SIZE + 17)  # no block like another
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
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content)
        url = server.url.replace("http:", "https:") if tls else server.url
        with anyio.fail_after(60):
            assert (await transport.post(url, body)).status == 200
    head, tail = body._head, body._tail
    assert got.hexdigest() == hashlib.sha256(head + data + tail).hexdigest()


async def test_a_track_that_holds_line_breaks_and_boundaries_arrives_as_it_is(
    serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """No content can end its part early: each body has a random boundary."""
    vendor = Recorder()
    async with serve(vendor) as server, lanes() as transport:
        async with open_track(("a.wav", b"first"), executor) as content:
            await transport.post(server.url, body_of(content))
        captured = vendor.requests[0].body
        async with open_track(("a.wav", captured), executor) as content:
            await transport.post(server.url, body_of(content))
    assert parts_of(vendor.requests[1])[3][1] == captured


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
            open_track((name, b"sound") if "/" not in name else name, executor) as content,
        ):
            await transport.post(server.url, body_of(content))
            answer = await transport.post(
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
