from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gzip
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from musicgpt_async._io.download import PATIENCE, Downloader, Fetched
from musicgpt_async._io.receiving import GATHERED, pieces
from musicgpt_async.errors import DownloadError, MusicGPTError, TransportError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_backoff")]

# A guard against hanging; no test passes or fails by it on its own.
LONG = 60
MIB = 1 << 20


def mp3(size: int) -> bytes:
    """Make what passes for an MP3."""
    return b"\xff\xfb\x90\x00" + secrets.token_bytes(size - 4)


def wav(size: int) -> bytes:
    """Make a WAV whose header tells its size."""
    return b"RIFF" + (size - 8).to_bytes(4, "little") + b"WAVE" + secrets.token_bytes(size - 12)


def ignore(_received: int, _total: int | None) -> None:
    """Take no notice of progress."""


Get = Callable[..., Any]


@pytest.fixture
def get(lanes: Any, executor: ThreadPoolExecutor) -> Get:
    """Download a link to a path, as the session would with the API on loopback."""

    async def download(url: str, target: Path, **settings: Any) -> Fetched:
        given = {"allow_loopback": True, "digests": True, **settings}
        which = {"what": given.pop("what", "a task"), "progress": given.pop("progress", ignore)}
        given = {"executor": executor, **given}
        timeout = given.pop("request_timeout", 30.0)
        async with lanes(request_timeout=timeout) as transport:
            receive = partial(pieces, patience=timeout)
            downloader = Downloader(fetch=transport.fetch, receive=receive, **given)
            return await downloader.download(url, target, **which)

    return download


@attrs.define
class Host:
    """A file host that knows ranges and can be told what to do with each request."""

    data: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    plan: list[Callable[[Any, Any], Any]] = attrs.field(factory=list)
    requests: list[dict[str, str]] = attrs.field(factory=list)

    async def __call__(self, peer: Any) -> None:
        """Do what is planned, then serve."""
        while True:
            request = await peer.request()
            self.requests.append(request.headers)
            step = self.plan.pop(0) if self.plan else self.serve
            await step(peer, request)

    async def serve(
        self, peer: Any, request: Any, *, cut: int | None = None, pause: float = 0.0
    ) -> None:
        """Serve what was asked for, cut after so many bytes."""
        start = self._start(request)
        piece = self.data[start:]
        headers = {"Content_Type": "audio/mpeg", "Content_Length": str(len(piece))}
        if self.etag:
            headers["ETag"] = self.etag
        if start:
            whole = len(self.data)
            headers["Content_Range"] = f"bytes {start}-{whole - 1}/{whole}"
        await peer.answer(206 if start else 200, piece[:cut], **headers)
        if cut is not None:
            await anyio.sleep(pause)  # aiohttp forgets what it has not handed on at the break
            peer.writer.close()
            raise ConnectionResetError

    def _start(self, request: Any) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if found and self.ranges and request.headers.get("if-range") == self.etag:
            return int(found[1])
        return 0

    def cut(self, after: int) -> Callable[[Any, Any], Any]:
        """Serve, and hang up after so many bytes of this answer."""

        async def step(peer: Any, request: Any) -> None:
            await self.serve(peer, request, cut=after)

        return step


def say(status: int, body: bytes = b"", **headers: str) -> Callable[[Any, Any], Any]:
    """Answer once with these."""

    async def step(peer: Any, _: Any) -> None:
        await peer.answer(status, body, **headers)

    return step


def close_delimited(body: bytes, **headers: str) -> Callable[[Any, Any], Any]:
    """Answer without a length, so that only hanging up says where it ends."""

    async def step(peer: Any, _: Any) -> None:
        await peer.answer(200, body, Content_Length="", Connection="close", **headers)
        peer.writer.close()
        raise ConnectionResetError

    return step


def held(path: Path) -> list[str]:
    """The descriptors of this process that lead into a directory."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(path)):
                found.append(fd)
    return found


async def until(condition: Callable[[], Any], *, within: float = LONG) -> None:
    """Wait for what another process, thread or kernel does."""
    with anyio.fail_after(within):
        while not condition():
            await anyio.sleep(0.002)


def nothing_lies_in(directory: Path) -> bool:
    """Tell whether a directory is empty and nothing in it is open."""
    return not list(directory.iterdir()) and not held(directory)


# Whole files.


@pytest.mark.parametrize("size", [100, MIB, 3 * MIB + 7])
async def test_a_file_arrives_whole_under_its_name(
    size: int, serve: Any, get: Get, tmp_path: Path
) -> None:
    """The directory is made, the file is there and nothing beside it, its digest is told."""
    host = Host(mp3(size))
    steps: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "dir" / "a - vocals.mp3"
    async with serve(host) as server:
        fetched = await get(
            f"{server.url}/a.mp3", target, progress=lambda *step: steps.append(step)
        )
    assert target.read_bytes() == host.data
    assert fetched == Fetched(target, size, hashlib.sha256(host.data).hexdigest())
    assert list(target.parent.iterdir()) == [target]
    assert steps[-1] == (size, size)
    assert steps == sorted(steps)
    assert not held(tmp_path)


async def test_a_digest_is_taken_only_where_it_is_asked_for(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """Without a journal nobody pays for hashing."""
    async with serve(Host(mp3(100))) as server:
        assert (await get(server.url, tmp_path / "a.mp3", digests=False)).sha256 == ""


async def test_an_older_file_is_replaced_at_once_and_only_by_a_whole_one(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """What lies there stays until the new file is whole, also where that fails."""
    target = tmp_path / "a.mp3"
    target.write_bytes(b"old")
    host = Host(mp3(3 * MIB))
    seen: list[bytes] = []

    async def in_halves(peer: Any, _: Any) -> None:
        await peer.answer(200, host.data[: 2 * MIB], Content_Length=str(len(host.data)))
        await until(lambda: list(tmp_path.glob(".*.part")))
        seen.append(target.read_bytes())
        await peer.say(host.data[2 * MIB :])

    host.plan = [say(403), in_halves]
    async with serve(host) as server:
        with pytest.raises(DownloadError):
            await get(server.url, target)
        assert target.read_bytes() == b"old"
        await get(server.url, target)
    assert seen == [b"old"]
    assert target.read_bytes() == host.data


async def test_has_knows_a_file_by_its_content(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """Same size is not same content; a missing file and a directory are not there."""
    downloader = Downloader(
        fetch=None,  # type: ignore[arg-type]
        executor=executor,
        allow_loopback=True,
        digests=True,
        receive=None,  # type: ignore[arg-type]
    )
    (tmp_path / "a.wav").write_bytes(b"sound")
    sha256 = hashlib.sha256(b"sound").hexdigest()
    assert await downloader.has(tmp_path / "a.wav", size=5, sha256=sha256)
    assert not await downloader.has(tmp_path / "a.wav", size=6, sha256=sha256)
    assert not await downloader.has(tmp_path / "a.wav", size=5, sha256="0" * 64)
    assert not await downloader.has(tmp_path / "b.wav", size=5, sha256=sha256)
    assert not await downloader.has(tmp_path, size=tmp_path.stat().st_size, sha256=sha256)


# Resuming.


async def test_a_cut_download_is_resumed(serve: Any, get: Get, tmp_path: Path) -> None:
    """Only the missing part is asked for, on the pinned ETag; the total is Content-Range's."""
    host = Host(mp3(5 * MIB))
    host.plan = [host.cut(2 * MIB + 5), host.cut(MIB + 5)]
    steps: list[tuple[int, int | None]] = []
    async with serve(host) as server:
        fetched = await get(
            server.url, tmp_path / "a.mp3", progress=lambda *step: steps.append(step)
        )
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert fetched.sha256 == hashlib.sha256(host.data).hexdigest()
    assert "range" not in host.requests[0]
    offsets = [int(head["range"][6:-1]) for head in host.requests[1:]]
    assert offsets == sorted(offsets)
    assert offsets[0] >= MIB
    assert {head["if-range"] for head in host.requests[1:]} == {'"one"'}
    assert {total for _, total in steps} == {5 * MIB}
    assert max(received for received, _ in steps) == 5 * MIB


async def test_a_host_that_hangs_up_often_is_outlasted(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """Every byte that came counts: connections shorter than one write still bring a file down."""
    host = Host(mp3(MIB))

    async def some(peer: Any, request: Any) -> None:
        await host.serve(peer, request, cut=GATHERED // 16, pause=0.05)

    host.plan = [some] * 15
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert len(host.requests) == 16


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_passing_failure_midway_keeps_what_came(
    status: int, serve: Any, get: Get, tmp_path: Path
) -> None:
    """A 503 between two parts costs a moment, not the part that is there."""
    host = Host(mp3(4 * MIB))
    host.plan = [host.cut(3 * MIB), say(status)]
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert host.requests[2].get("range", "").startswith("bytes=")


async def test_a_host_that_gives_less_than_was_asked_for_is_asked_on(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A 206 may be shorter than its range (RFC 9110): its own length is not the file's."""
    host = Host(mp3(4 * MIB))

    async def sparing(peer: Any, request: Any) -> None:
        start = host._start(request)
        span = f"bytes {start}-{start + MIB - 1}/{len(host.data)}"
        piece = host.data[start : start + MIB]
        await peer.answer(206, piece, Content_Range=span, ETag='"one"')

    host.plan = [host.cut(2 * MIB + 5), sparing]
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert len(host.requests) == 3


async def test_a_host_without_ranges_starts_over(serve: Any, get: Get, tmp_path: Path) -> None:
    """A 200 to a Range replaces what came before."""
    host = Host(mp3(4 * MIB), ranges=False)
    host.plan = [host.cut(3 * MIB)]
    async with serve(host) as server:
        fetched = await get(server.url, tmp_path / "a.mp3")
    assert "range" in host.requests[1]
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert fetched == Fetched(
        tmp_path / "a.mp3", len(host.data), hashlib.sha256(host.data).hexdigest()
    )


@pytest.mark.parametrize("size", [4 * MIB, 2 * MIB, 6 * MIB])
async def test_an_etag_that_changes_midway_starts_over(
    size: int, serve: Any, get: Get, tmp_path: Path
) -> None:
    """No file is ever made of two contents, whether the other is as long, shorter or longer."""
    host = Host(mp3(4 * MIB))
    first = host.cut(3 * MIB)

    async def change(peer: Any, request: Any) -> None:
        await first(peer, request)

    async def other(peer: Any, request: Any) -> None:
        host.data, host.etag = mp3(size), '"two"'
        await host.serve(peer, request)

    host.plan = [change, other]
    async with serve(host) as server:
        fetched = await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert fetched.sha256 == hashlib.sha256(host.data).hexdigest()


@pytest.mark.parametrize("size", [4 * MIB, 5 * MIB])
async def test_a_host_that_ignores_if_range_mixes_nothing(
    size: int, serve: Any, get: Get, tmp_path: Path
) -> None:
    """A part that bears another ETag belongs to another file, however well its range fits."""
    host = Host(mp3(4 * MIB))

    async def other(peer: Any, request: Any) -> None:
        host.data, host.etag = mp3(size), '"two"'
        request.headers["if-range"] = '"two"'
        await host.serve(peer, request)

    host.plan = [host.cut(3 * MIB), other]
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data


@pytest.mark.parametrize("etag", [None, 'W/"weak"', "bare"])
async def test_without_a_strong_etag_nothing_is_resumed(
    etag: str | None, serve: Any, get: Get, tmp_path: Path
) -> None:
    """If-Range takes strong validators alone; without one a cut file starts over."""
    host = Host(mp3(4 * MIB), etag=etag)
    host.plan = [host.cut(3 * MIB)]
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert not any("range" in head for head in host.requests)


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-99/4194304",
        "bytes 5-4194303/4194304",
        "bytes 3145728-4194303/*",
        "bytes */4194304",
        "items 1-2/3",
        "bytes 99999999999999999999-1/2",
        "",
    ],
)
async def test_a_wrong_part_is_not_taken(
    content_range: str, serve: Any, get: Get, tmp_path: Path
) -> None:
    """A 206 that brings something else than the range asked for is thrown away."""
    host = Host(mp3(4 * MIB))
    wrong = say(206, b"wrong" * 100, Content_Range=content_range, ETag='"one"')
    host.plan = [host.cut(3 * MIB), wrong]
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data


async def test_a_part_that_was_not_asked_for_is_not_the_whole(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A 206 to the first request never becomes the file."""
    host = Host(mp3(MIB))
    host.plan = [say(206, b"tail" * 10, Content_Range="bytes 10-49/50")]
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data


async def test_a_range_beyond_the_end_starts_over(serve: Any, get: Get, tmp_path: Path) -> None:
    """A 416 says that what came before does not fit: from the start."""
    host = Host(mp3(4 * MIB))
    host.plan = [host.cut(3 * MIB), say(416, Content_Range="bytes */100")]
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert "range" not in host.requests[2]


# A host that says no, or nothing.


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410, 451])
async def test_a_refusal_is_told_at_once(status: int, serve: Any, get: Get, tmp_path: Path) -> None:
    """One request, the status in the error, and no signature in its message."""
    host = Host(b"", plan=[say(status, b"<Error>AccessDenied</Error>" if status > 300 else b"")])
    async with serve(host) as server:
        with pytest.raises(DownloadError) as caught:
            await get(f"{server.url}/a.mp3?X-Signature=s3cret", tmp_path / "a.mp3")
        assert len(host.requests) == 1
    assert caught.value.status == status
    assert "s3cret" not in str(caught.value)
    assert nothing_lies_in(tmp_path)


async def test_a_host_that_keeps_failing_is_given_up(serve: Any, get: Get, tmp_path: Path) -> None:
    """After ``PATIENCE`` tries that bring nothing, the error says what the host said."""
    host = Host(b"", plan=[say(503)] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError) as caught:
            await get(server.url, tmp_path / "a.mp3")
    assert caught.value.status == 503
    assert type(caught.value) is DownloadError
    assert PATIENCE <= len(host.requests) <= PATIENCE + 1
    assert nothing_lies_in(tmp_path)


async def test_a_host_that_always_cuts_at_the_same_place_is_given_up(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """Without ranges, tries that get no further than the one before come to an end."""
    host = Host(mp3(4 * MIB), ranges=False)
    host.plan = [host.cut(3 * MIB)] * 100
    async with serve(host) as server:
        with anyio.fail_after(LONG), pytest.raises(MusicGPTError):
            await get(server.url, tmp_path / "a.mp3")
    assert len(host.requests) <= 5 * PATIENCE
    assert nothing_lies_in(tmp_path)


async def test_nobody_at_the_other_end_is_a_transport_error(get: Get, tmp_path: Path) -> None:
    """A refused connection is tried again a few times, and then said to be one."""
    with pytest.raises(TransportError):
        await get("http://127.0.0.1:9/a.mp3", tmp_path / "a.mp3")
    assert nothing_lies_in(tmp_path)


async def test_a_host_that_stops_sending_is_asked_again(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A stalled read goes on from where it stopped."""
    host = Host(mp3(4 * MIB))

    async def stall(peer: Any, _: Any) -> None:
        headers = {"Content-Length": str(len(host.data)), "ETag": '"one"'}
        await peer.answer(200, host.data[: 3 * MIB], **headers)
        await peer.rest()
        raise ConnectionResetError

    host.plan = [stall]
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3", request_timeout=0.5)
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert "range" in host.requests[1]


# What is no whole audio.


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html><body>expired</body></html>", "audio/mpeg"),
        (b"\xef\xbb\xbf\r\n <?xml version='1.0'?><Error/>", "audio/mpeg"),
        (b'{"error": "expired"}', "application/octet-stream"),
        (b"expired", "text/plain; charset=utf-8"),
        (b"Expired", "application/xml"),
        (b"expired" * 300000, "text/html"),
        (b"", "audio/mpeg"),
        (b" \r\n", "text/html"),
    ],
)
async def test_what_is_no_audio_is_refused(
    body: bytes, content_type: str, serve: Any, get: Get, tmp_path: Path
) -> None:
    """Pages, messages and nothing at all never lie under a stem's name."""
    host = Host(b"", plan=[say(200, body, Content_Type=content_type)])
    async with serve(host) as server:
        with pytest.raises(DownloadError):
            await get(server.url, tmp_path / "a.mp3")
        assert len(host.requests) == 1
    assert nothing_lies_in(tmp_path)


async def test_without_a_length_a_cut_file_is_not_whole(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A connection closed early looks like the end where nobody says how long it is."""
    host = Host(b"", plan=[close_delimited(mp3(1000))])
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="how long"):
            await get(server.url, tmp_path / "a.mp3")
    assert nothing_lies_in(tmp_path)


async def test_a_wav_says_itself_how_long_it_is(serve: Any, get: Get, tmp_path: Path) -> None:
    """Without a length the WAV header decides: cut it is fetched again, whole it is taken."""
    whole = wav(3000)
    host = Host(b"", plan=[close_delimited(whole[:2000]), close_delimited(whole)])
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == whole
    assert len(host.requests) == 2


async def test_a_host_that_announces_less_than_the_wav_has_is_not_believed(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A mis-sized answer passes for whole by its own length, and not by the file's."""
    host = Host(b"", plan=[say(200, wav(3000)[:2000])] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="its own header says 3000"):
            await get(server.url, tmp_path / "a.wav")
    assert nothing_lies_in(tmp_path)


def chunked(pieces: list[bytes], *, end: bool = True, extra: str = "") -> Callable[[Any, Any], Any]:
    """Answer in chunks, with or without the last one."""

    async def step(peer: Any, _: Any) -> None:
        await peer.say(f"HTTP/1.1 200 OK\r\n{extra}Transfer-Encoding: chunked\r\n\r\n".encode())
        for piece in pieces:
            await peer.say(b"%x\r\n%b\r\n" % (len(piece), piece))
        if end:
            await peer.say(b"0\r\n\r\n")
        else:
            peer.writer.close()
            raise ConnectionResetError

    return step


async def test_a_chunked_file_is_whole_when_its_last_chunk_says_so(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A chunked answer that breaks off is fetched again; one that ends is taken."""
    pieces = [mp3(5000), mp3(6000)]
    host = Host(b"", plan=[chunked(pieces, end=False), chunked(pieces)])
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
async def test_an_encoding_that_was_not_asked_for_is_undone(
    encoding: str, serve: Any, get: Get, tmp_path: Path
) -> None:
    """A host that packs a file all the same is asked not to, and its file comes out unpacked."""
    data = mp3(3 * MIB)
    packed = zlib.compress(data) if encoding == "deflate" else gzip.compress(data)
    host = Host(b"", plan=[say(200, packed, Content_Encoding=encoding, ETag='"one"')])
    async with serve(host) as server:
        fetched = await get(server.url, tmp_path / "a.mp3")
    assert host.requests[0]["accept-encoding"] == "identity"
    assert (tmp_path / "a.mp3").read_bytes() == data
    assert fetched.size == len(data)


async def test_a_packed_file_is_never_resumed(serve: Any, get: Get, tmp_path: Path) -> None:
    """Offsets into packed and unpacked bytes differ: a cut packed file starts over."""
    data = mp3(3 * MIB)
    packed = gzip.compress(data)

    async def cut(peer: Any, _: Any) -> None:
        headers = {"Content_Encoding": "gzip", "ETag": '"one"', "Content_Length": str(len(packed))}
        await peer.answer(200, packed[: 2 * MIB], **headers)
        peer.writer.close()
        raise ConnectionResetError

    host = Host(data, plan=[cut, say(200, packed, Content_Encoding="gzip", ETag='"one"')])
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == data
    assert "range" not in host.requests[1]


@pytest.mark.parametrize("sized", [False, True])
async def test_a_packed_file_that_ends_early_is_not_whole(
    sized: bool, serve: Any, get: Get, tmp_path: Path
) -> None:
    """A gzip stream without its trailer is half a file, however the connection ended."""
    packed = gzip.compress(mp3(MIB))[: MIB // 2]
    if sized:
        step = say(200, packed, Content_Encoding="gzip")
    else:
        step = close_delimited(packed, Content_Encoding="gzip")
    host = Host(b"", plan=[step] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError):
            await get(server.url, tmp_path / "a.mp3")
    assert nothing_lies_in(tmp_path)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br"])
async def test_an_encoding_that_is_not_known_is_refused(
    encoding: str, serve: Any, get: Get, tmp_path: Path
) -> None:
    """Packed bytes that cannot be unpacked are no audio."""
    step = chunked([b"\x1b\x0f\x00packed"], extra=f"Content-Encoding: {encoding}\r\n")
    host = Host(b"", plan=[step] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError):
            await get(server.url, tmp_path / "a.mp3")
    assert nothing_lies_in(tmp_path)


async def test_a_broken_packing_is_a_download_error(serve: Any, get: Get, tmp_path: Path) -> None:
    """What calls itself gzip and is none is refused."""
    host = Host(b"", plan=[say(200, b"no gzip at all", Content_Encoding="gzip")])
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="encoding"):
            await get(server.url, tmp_path / "a.mp3")
    assert nothing_lies_in(tmp_path)


# Where links lead.


async def test_redirects_are_followed_hop_by_hop(serve: Any, get: Get, tmp_path: Path) -> None:
    """Absolute and relative places, also on another host, lead to the file."""
    far = Host(mp3(100))
    async with serve(far) as elsewhere:
        near = Host(b"", plan=[say(302, Location="/b"), say(307, Location=f"{elsewhere.url}/c")])
        async with serve(near) as server:
            await get(f"{server.url}/a", tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == far.data
    assert all("authorization" not in head for head in near.requests + far.requests)


@pytest.mark.parametrize(
    "place",
    [
        "https://10.0.0.1/a.mp3",
        "https://169.254.169.254/latest/meta-data",
        "https://[fd00::1]/a.mp3",
        "https://[::ffff:10.0.0.1]/a.mp3",
        "http://93.184.216.34/a.mp3",
        "http://files.example/a.mp3",
        "ftp://files.example/a.mp3",
        "file:///etc/passwd",
        "//10.0.0.1/a.mp3",
        "javascript:alert(1)",
    ],
)
async def test_no_redirect_leads_into_a_private_network(
    place: str, serve: Any, get: Get, tmp_path: Path
) -> None:
    """Every hop is judged like the vendor's own link, and a refused one is told at once."""
    host = Host(b"", plan=[say(302, Location=place)] * 100)
    async with serve(host) as server:
        with anyio.fail_after(LONG), pytest.raises(DownloadError):
            await get(server.url, tmp_path / "a.mp3")
        assert len(host.requests) == 1
    assert nothing_lies_in(tmp_path)


async def test_redirects_that_do_not_end_are_given_up(serve: Any, get: Get, tmp_path: Path) -> None:
    """A circle of redirects is an error after a few hops."""
    host = Host(b"", plan=[say(302, Location="/again")] * 1000)
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="redirects"):
            await get(server.url, tmp_path / "a.mp3")
    assert len(host.requests) < 20
    assert nothing_lies_in(tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.0.0.2"])
async def test_a_link_to_this_machine_is_refused_where_the_api_is_elsewhere(
    host: str, serve: Any, get: Get, tmp_path: Path
) -> None:
    """With the API on the internet no link reaches a server on loopback."""
    async with serve(Host(mp3(100))) as server:
        for scheme in ("http", "https"):
            with pytest.raises(DownloadError):
                await get(
                    f"{scheme}://{host}:{server.port}/a", tmp_path / "a.mp3", allow_loopback=False
                )
        assert server.connections == 0
    assert nothing_lies_in(tmp_path)


@pytest.mark.parametrize("link", ["https://a..example/a.mp3", f"https://{'a' * 64}.example/"])
async def test_a_garbled_link_is_an_error_of_the_library(
    link: str, get: Get, tmp_path: Path
) -> None:
    """Whatever the vendor calls a link, no bare ValueError comes out of a download."""
    with pytest.raises(MusicGPTError):
        await get(link, tmp_path / "a.mp3")


# The file system.


async def test_a_target_that_cannot_be_written_is_told(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A directory in its place, a file as its directory, a name too long: clear, and no litter."""
    (tmp_path / "dir.mp3").mkdir()
    (tmp_path / "file").touch()
    before = set(tmp_path.iterdir())
    async with serve(Host(mp3(100))) as server:
        for target in (
            tmp_path / "dir.mp3",
            tmp_path / "file" / "a.mp3",
            tmp_path / ("x" * 300 + ".mp3"),
        ):
            with pytest.raises(DownloadError, match="cannot be written"):
                await get(server.url, target)
    assert set(tmp_path.iterdir()) == before
    assert not held(tmp_path)


_FULL = """
import asyncio, resource, sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from musicgpt_async._io.download import Downloader
from musicgpt_async._io.http import Transport
from musicgpt_async._io.receiving import pieces
from musicgpt_async.errors import DownloadError

async def main(url, target):
    transport = Transport("key", request_timeout=30, downloads=1, allows=lambda _: True)
    transport.open()
    with ThreadPoolExecutor(2) as executor:
        downloader = Downloader(fetch=transport.fetch, executor=executor, allow_loopback=True,
                                digests=True, receive=partial(pieces, patience=30))
        try:
            fetched = await downloader.download(url, Path(target), what="a task",
                                                progress=lambda *_: None)
            print(fetched.size, fetched.sha256)
        except DownloadError as error:
            print(error)
    await transport.close()

if sys.argv[3] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
asyncio.run(main(*sys.argv[1:3]))
"""


async def _in_a_child(url: str, target: Path, limit: int) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _FULL,
        url,
        str(target),
        str(limit),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_a_file_beyond_the_limit_leaves_nothing(serve: Any, tmp_path: Path) -> None:
    """Where the system takes no more bytes, the error says so and no half file stays."""
    host = Host(mp3(3 * MIB))
    async with serve(host) as server:
        said = await _in_a_child(server.url, tmp_path / "a.mp3", MIB + 100)
    assert "cannot be written: File too large" in said
    assert nothing_lies_in(tmp_path)
    assert len(host.requests) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a mebibyte."""
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False, capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("this user may mount nothing")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


async def test_a_full_disk_says_so_and_keeps_no_half_file(serve: Any, small_disk: Path) -> None:
    """The user is told to make room, at once, and the room that was taken is given back."""
    host = Host(mp3(3 * MIB))
    async with serve(host) as server:
        said = await _in_a_child(server.url, small_disk / "a.mp3", 0)
    assert "the disk is full; make room" in said
    assert nothing_lies_in(small_disk)
    assert len(host.requests) == 1


async def test_what_killed_processes_left_is_removed(serve: Any, get: Get, tmp_path: Path) -> None:
    """Old temporary files of this target go, but for those that another process is writing."""
    names = (".a.mp3.0123abcd.part", ".b.mp3.0123abcd.part", "a.mp3.part", ".a.mp3.part2")
    for name in (*names, ".a.mp3.4567abcd.part"):
        (tmp_path / name).touch()
    with (tmp_path / ".a.mp3.4567abcd.part").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with serve(Host(mp3(100))) as server:
            await get(server.url, tmp_path / "a.mp3")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names[1:], ".a.mp3.4567abcd.part", "a.mp3"}


@asynccontextmanager
async def _child(url: str, target: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that downloads; it is gone at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FULL, url, str(target), "0", stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _opened_by(process: asyncio.subprocess.Process, folder: Path) -> None:
    """Wait until a process has a temporary file in a folder open."""

    def files() -> list[str]:
        with contextlib.suppress(OSError):  # it may close one while we look
            return [str(each.readlink()) for each in Path(f"/proc/{process.pid}/fd").iterdir()]
        return []

    await until(lambda: any(each.startswith(f"{folder}/.a.mp3.") for each in files()))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("first", ["completes it", "is killed"])
async def test_two_processes_make_one_file_of_one_download(
    first: str, serve: Any, tmp_path: Path
) -> None:
    """The second waits for the first: it finds its file whole, or starts over where it died."""
    host, half, go_on = Host(mp3(3 * MIB)), anyio.Event(), anyio.Event()
    folder = tmp_path / "stems"

    async def in_two_halves(peer: Any, _: Any) -> None:
        headers = {"Content_Type": "audio/mpeg", "Content_Length": str(len(host.data))}
        await peer.answer(200, host.data[:MIB], **headers)
        half.set()
        await go_on.wait()
        await peer.say(host.data[MIB:])

    host.plan = [in_two_halves]
    async with serve(host) as server, _child(server.url, folder / "a.mp3") as one:
        with anyio.fail_after(LONG):
            await half.wait()
            async with _child(server.url, folder / "a.mp3") as other:
                await _opened_by(other, folder)
                [part] = folder.iterdir()  # they have one temporary file between them
                assert len(host.requests) == 1
                if first == "is killed":
                    one.kill()
                go_on.set()
                said = [(await each.communicate())[0].decode().split() for each in (one, other)]
    assert not part.exists()
    assert [path.name for path in folder.iterdir()] == ["a.mp3"]
    assert (folder / "a.mp3").read_bytes() == host.data
    assert len(host.requests) == (1 if first == "completes it" else 2)
    assert said[1] == [str(len(host.data)), hashlib.sha256(host.data).hexdigest()]


async def test_other_content_for_the_same_name_is_not_waited_for(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A download that stands still holds up none of another job; each writes a file of its own."""
    host = Host(mp3(MIB))
    async with stalling(serve) as (stuck, sent), serve(host) as server:
        task = asyncio.create_task(get(stuck.url, tmp_path / "a.mp3", what="one task"))
        await sent.wait()
        await get(server.url, tmp_path / "a.mp3", what="another task")
        assert (tmp_path / "a.mp3").read_bytes() == host.data
        assert len(list(tmp_path.glob(".*.part"))) == 1
        task.cancel()
        await asyncio.wait([task])
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp3"]


async def test_a_wait_for_another_process_may_be_cancelled(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """Whoever gives up waiting leaves the other one's temporary file alone."""
    async with stalling(serve) as (server, sent):
        task = asyncio.create_task(get(server.url, tmp_path / "a.mp3"))
        await sent.wait()
        [part] = tmp_path.iterdir()
        with anyio.move_on_after(0.3) as scope:
            await get(server.url, tmp_path / "a.mp3")
        assert scope.cancelled_caught
        assert server.connections == 1
        assert part.exists()
        task.cancel()
        await asyncio.wait([task])


# Cancelling.


@asynccontextmanager
async def stalling(serve: Any) -> AsyncIterator[tuple[Any, anyio.Event]]:
    """A host that sends the first mebibytes and no more."""
    sent = anyio.Event()
    data = mp3(8 * MIB)

    async def half(peer: Any) -> None:
        await peer.request()
        await peer.answer(200, data[: 2 * MIB], Content_Length=str(len(data)))
        sent.set()
        await anyio.sleep(LONG)

    async with serve(half) as server:
        yield server, sent


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancelling_leaves_no_part(how: str, serve: Any, get: Get, tmp_path: Path) -> None:
    """Whoever cancels a download finds no half file and no open descriptor."""
    async with stalling(serve) as (server, _):
        written = anyio.Event()

        async def download() -> None:
            await get(server.url, tmp_path / "a.mp3", progress=lambda *_: written.set())

        if how == "task":
            task = asyncio.create_task(download())
            await written.wait()
            assert list(tmp_path.glob(".*.part"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(download)
                await written.wait()
                assert list(tmp_path.glob(".*.part"))
                group.cancel_scope.cancel()
        await until(lambda: nothing_lies_in(tmp_path))


class _Slow(ThreadPoolExecutor):
    """Threads that finish their work and report it only when they are let."""

    def __init__(self) -> None:
        super().__init__(1)
        self.worked, self.free = threading.Event(), threading.Event()

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def slowly() -> Any:
            try:
                return call(*args, **kwargs)
            finally:
                self.worked.set()
                self.free.wait(LONG)

        return super().submit(slowly)


async def test_cancelling_while_the_part_is_made_leaves_none(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A download cancelled in its first moment leaves no empty part and no descriptor."""
    async with serve(Host(mp3(100))) as server:
        with _Slow() as threads:
            task = asyncio.create_task(get(server.url, tmp_path / "a.mp3", executor=threads))
            await until(threads.worked.is_set)
            task.cancel()
            await anyio.lowlevel.checkpoint()
            threads.free.set()
            with pytest.raises(asyncio.CancelledError):
                await task
    try:
        await until(lambda: nothing_lies_in(tmp_path), within=2)
    finally:
        for fd in held(tmp_path):
            os.close(int(fd))


# What it costs.

_SOURCE = """
import socket, sys
s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True)
size = int(sys.argv[1]); block = b"\\xff\\xfb" + bytes((1 << 20) - 2)
while True:
    c, _ = s.accept()
    c.recv(1 << 16)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % size)
    for _ in range(size // len(block)):
        c.sendall(block)
    c.close()
"""


async def _largest_gap(stop: anyio.Event) -> float:
    """The longest time in which the loop served nobody else."""
    largest, last = 0.0, anyio.current_time()
    while not stop.is_set():
        await anyio.sleep(0.001)
        now = anyio.current_time()
        largest, last = max(largest, now - last), now
    return largest


async def test_a_download_does_not_starve_the_loop(get: Get, tmp_path: Path) -> None:
    """Others get their turn all through a transfer: no gap is near as long as the transfer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SOURCE, str(256 * MIB), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(await process.stdout.readline())}/"
        stop, gaps = anyio.Event(), []

        async def watch() -> None:
            gaps.append(await _largest_gap(stop))

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            began = anyio.current_time()
            fetched = await get(url, tmp_path / "a.mp3")
            took = anyio.current_time() - began
            stop.set()
    finally:
        process.kill()
        await process.communicate()
    print(f"256 MiB: {took:.2f} s, largest gap {gaps[0]:.4f} s")  # noqa: T201 - for pytest -rP
    assert fetched.size == 256 * MIB
    assert gaps[0] < took / 3


# Others in line, sessions that close, users who tidy up.


@asynccontextmanager
async def dripping(serve: Any, data: bytes, pieces: int) -> AsyncIterator[tuple[Any, anyio.Event]]:
    """A host that sends a file in pieces, the last one only when it is let."""
    let = anyio.Event()

    async def drip(peer: Any) -> None:
        await peer.request()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        await peer.say(head.encode())
        step = len(data) // pieces
        for start in range(0, len(data) - step, step):
            await peer.say(data[start : start + step])
            await anyio.sleep(0.1)
        await let.wait()
        await peer.say(data[step * (pieces - 1) :])

    async with serve(drip) as server:
        yield server, let


async def test_a_file_waits_for_its_turn_as_long_as_it_takes(
    serve: Any, lanes: Any, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """A file in line behind one that takes three timeouts, and is never silent, is not given up."""
    data = mp3(16_000)
    async with (
        dripping(serve, data, 16) as (server, let),
        lanes(downloads=1, request_timeout=0.5) as transport,
        anyio.create_task_group() as both,
    ):
        let.set()
        downloader = Downloader(
            fetch=transport.fetch,
            executor=executor,
            allow_loopback=True,
            digests=False,
            receive=partial(pieces, patience=0.5),
        )
        for name in ("a", "b"):
            url, target = f"{server.url}/{name}.mp3", tmp_path / f"{name}.mp3"
            both.start_soon(partial(downloader.download, url, target, progress=ignore))
        await until(lambda: server.connections)
        # Cancelled in line: a request that was made too early would never be awaited.
        with anyio.move_on_after(0.2):
            await downloader.download(f"{server.url}/c.mp3", tmp_path / "c.mp3", progress=ignore)
    assert server.most_open == 1
    assert [(tmp_path / f"{name}.mp3").read_bytes() == data for name in "ab"] == [True, True]


async def test_a_download_whose_threads_are_gone_frees_its_file(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A session that closes amid a download leaves no lock for its successor to wait at."""
    data = mp3(16_000)
    target = tmp_path / "a.mp3"
    async with dripping(serve, data, 2) as (server, let):
        threads = ThreadPoolExecutor(1)
        first = asyncio.create_task(get(f"{server.url}/a.mp3", target, executor=threads))
        await until(lambda: list(tmp_path.glob(".*.part")))
        threads.shutdown(wait=True)
        let.set()
        with pytest.raises(Exception, match=r"shutdown|closed"):
            await first
        assert not list(tmp_path.iterdir())
        with anyio.fail_after(30):
            await get(f"{server.url}/a.mp3", target)
    assert target.read_bytes() == data


@pytest.mark.skipif(os.name == "nt", reason="nobody can remove a file in use")
async def test_a_temporary_file_that_is_taken_away_never_gets_the_final_name(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """Somebody removes the temporary file and another makes it anew: it is not renamed."""
    data = mp3(16_000)
    target = tmp_path / "a.mp3"
    async with dripping(serve, data, 2) as (server, let):
        first = asyncio.create_task(get(f"{server.url}/a.mp3", target))
        await until(lambda: list(tmp_path.glob(".*.part")))
        (part,) = tmp_path.glob(".*.part")
        part.unlink()
        part.write_bytes(b"half")
        let.set()
        with pytest.raises(DownloadError, match="taken away"):
            await first
    assert not target.exists()
