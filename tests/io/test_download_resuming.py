"""Downloads that break off, and hosts that say no."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from factories.downloads import LONG, MIB, Get, Host, is_empty_directory, mp3, say

from musicgpt_async._io.download import MAX_FRUITLESS_TRIES, DownloadedFile
from musicgpt_async._io.response_body import CHUNK_SIZE
from musicgpt_async.errors import DownloadError, MusicGPTError, TransportError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_backoff")]


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
        await host.serve(peer, request, cut=CHUNK_SIZE // 16, pause=0.05)

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
    assert fetched == DownloadedFile(
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


async def test_a_part_that_was_not_requested_is_not_the_file(
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
async def test_a_refusal_is_an_error_at_once(
    status: int, serve: Any, get: Get, tmp_path: Path
) -> None:
    """One request, the status in the error, and no signature in its message."""
    host = Host(b"", plan=[say(status, b"<Error>AccessDenied</Error>" if status > 300 else b"")])
    async with serve(host) as server:
        with pytest.raises(DownloadError) as caught:
            await get(f"{server.url}/a.mp3?X-Signature=s3cret", tmp_path / "a.mp3")
        assert len(host.requests) == 1
    assert caught.value.status == status
    assert "s3cret" not in str(caught.value)
    assert is_empty_directory(tmp_path)


async def test_a_host_that_keeps_failing_is_an_error(serve: Any, get: Get, tmp_path: Path) -> None:
    """After ``MAX_FRUITLESS_TRIES`` tries that bring nothing, the error says what the host said."""
    host = Host(b"", plan=[say(503)] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError) as caught:
            await get(server.url, tmp_path / "a.mp3")
    assert caught.value.status == 503
    assert type(caught.value) is DownloadError
    assert MAX_FRUITLESS_TRIES <= len(host.requests) <= MAX_FRUITLESS_TRIES + 1
    assert is_empty_directory(tmp_path)


async def test_a_host_that_always_cuts_at_the_same_place_is_an_error(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """Without ranges, tries that get no further than the one before come to an end."""
    host = Host(mp3(4 * MIB), ranges=False)
    host.plan = [host.cut(3 * MIB)] * 100
    async with serve(host) as server:
        with anyio.fail_after(LONG), pytest.raises(MusicGPTError):
            await get(server.url, tmp_path / "a.mp3")
    assert len(host.requests) <= 5 * MAX_FRUITLESS_TRIES
    assert is_empty_directory(tmp_path)


async def test_a_refused_connection_is_a_transport_error(get: Get, tmp_path: Path) -> None:
    """A refused connection is tried again a few times, and then said to be one."""
    with pytest.raises(TransportError):
        await get("http://127.0.0.1:9/a.mp3", tmp_path / "a.mp3")
    assert is_empty_directory(tmp_path)


async def test_a_host_that_stops_sending_is_asked_again(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A stalled download is resumed from its last byte."""
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
