from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from factories.downloads import (
    LONG,
    MIB,
    Get,
    Host,
    close_delimited,
    is_empty_directory,
    mp3,
    say,
    wav,
)
from factories.watching import held, until

from musicgpt_async._io.download import DownloadedFile, Downloader
from musicgpt_async.errors import DownloadError, MusicGPTError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_backoff")]


# Complete files.


@pytest.mark.parametrize("size", [100, MIB, 3 * MIB + 7])
async def test_a_file_arrives_complete_under_its_name(
    size: int, serve: Any, get: Get, tmp_path: Path
) -> None:
    """The directory is created, the file is alone in it, and its digest is returned."""
    host = Host(mp3(size))
    steps: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "dir" / "a - vocals.mp3"
    async with serve(host) as server:
        fetched = await get(
            f"{server.url}/a.mp3", target, progress=lambda *step: steps.append(step)
        )
    assert target.read_bytes() == host.data
    assert fetched == DownloadedFile(target, size, hashlib.sha256(host.data).hexdigest())
    assert list(target.parent.iterdir()) == [target]
    assert steps[-1] == (size, size)
    assert steps == sorted(steps)
    assert not held(tmp_path)


async def test_a_digest_is_taken_only_where_it_is_asked_for(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """Without a journal no digest is computed."""
    async with serve(Host(mp3(100))) as server:
        assert (await get(server.url, tmp_path / "a.mp3", digests=False)).sha256 == ""


async def test_an_older_file_is_replaced_atomically_by_a_complete_one(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """An existing file stays until the new one is complete, even if the download fails."""
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
        stream=None,  # type: ignore[arg-type]
        executor=executor,
        allow_loopback=True,
        digests=True,
        read_chunks=None,  # type: ignore[arg-type]
    )
    (tmp_path / "a.wav").write_bytes(b"sound")
    sha256 = hashlib.sha256(b"sound").hexdigest()
    assert await downloader.matches(tmp_path / "a.wav", size=5, sha256=sha256)
    assert not await downloader.matches(tmp_path / "a.wav", size=6, sha256=sha256)
    assert not await downloader.matches(tmp_path / "a.wav", size=5, sha256="0" * 64)
    assert not await downloader.matches(tmp_path / "b.wav", size=5, sha256=sha256)
    assert not await downloader.matches(tmp_path, size=tmp_path.stat().st_size, sha256=sha256)


# What is not complete audio.


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
    """Pages and messages, asked for again a few times, and nothing at all are never taken."""
    host = Host(b"", plan=[say(200, body, Content_Type=content_type)] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError):
            await get(server.url, tmp_path / "a.mp3")
        assert len(host.requests) == (4 if body else 1)
    assert is_empty_directory(tmp_path)


async def test_without_a_length_a_cut_file_is_not_complete(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A connection that is closed early looks like the end if there is no length."""
    host = Host(b"", plan=[close_delimited(mp3(1000))])
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="does not declare its length"):
            await get(server.url, tmp_path / "a.mp3")
    assert is_empty_directory(tmp_path)


async def test_a_wav_says_itself_how_long_it_is(serve: Any, get: Get, tmp_path: Path) -> None:
    """Without a length the WAV header decides: an incomplete file is retried."""
    whole = wav(3000)
    host = Host(b"", plan=[close_delimited(whole[:2000]), close_delimited(whole)])
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == whole
    assert len(host.requests) == 2


async def test_a_host_that_announces_less_than_the_wav_has_is_not_believed(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A mis-sized response is complete by its own length, but not by the WAV header."""
    host = Host(b"", plan=[say(200, wav(3000)[:2000])] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="its header declares 3000"):
            await get(server.url, tmp_path / "a.wav")
    assert is_empty_directory(tmp_path)


def chunked(
    iter_chunks: list[bytes], *, end: bool = True, extra: str = ""
) -> Callable[[Any, Any], Any]:
    """Respond in chunks, with or without the last one."""

    async def step(peer: Any, _: Any) -> None:
        await peer.say(f"HTTP/1.1 200 OK\r\n{extra}Transfer-Encoding: chunked\r\n\r\n".encode())
        for piece in iter_chunks:
            await peer.say(b"%x\r\n%b\r\n" % (len(piece), piece))
        if end:
            await peer.say(b"0\r\n\r\n")
        else:
            peer.writer.close()
            raise ConnectionResetError

    return step


async def test_a_chunked_file_is_complete_with_its_last_chunk(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """An incomplete chunked response is retried; a complete one is accepted."""
    iter_chunks = [mp3(5000), mp3(6000)]
    host = Host(b"", plan=[chunked(iter_chunks, end=False), chunked(iter_chunks)])
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == b"".join(iter_chunks)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "br", "zstd", "gzip, br"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_an_encoding_that_was_not_asked_for_is_refused(
    encoding: str, is_chunked: bool, serve: Any, get: Get, tmp_path: Path
) -> None:
    """A megabyte may unpack to gigabytes: only identity is asked for, and only that is taken."""
    packed = gzip.compress(bytes(4 * MIB)) + gzip.compress(mp3(100))  # two members
    if is_chunked:
        step = chunked([packed], extra=f"Content-Encoding: {encoding}\r\n")
    else:
        step = say(200, packed, Content_Encoding=encoding)
    host = Host(b"", plan=[step] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="encoding"):
            await get(server.url, tmp_path / "a.mp3")
    assert [head["accept-encoding"] for head in host.requests] == ["identity"]
    assert is_empty_directory(tmp_path)


async def test_content_that_calls_itself_identity_is_taken(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """The name of no encoding is none."""
    data = mp3(1000)
    host = Host(b"", plan=[say(200, data, Content_Encoding="identity")])
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == data


@pytest.mark.parametrize("pages", [1, 3])
async def test_a_page_in_place_of_audio_may_pass(
    pages: int, serve: Any, get: Get, tmp_path: Path
) -> None:
    """A captive portal or a proxy sends its own page for a while; then the file arrives."""
    host = Host(mp3(MIB))
    page = say(200, b"<html>Log in</html>", Content_Type="text/html", ETag='"page"')
    host.plan = [page] * pages
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_bytes() == host.data
    assert len(host.requests) == pages + 1
    assert not any("range" in head for head in host.requests)


async def test_the_same_bytes_twice_end_the_trying(serve: Any, get: Get, tmp_path: Path) -> None:
    """A host whose own copy is cut gives it again and again: two are enough to know."""
    same = say(200, wav(4000)[:2000])
    host = Host(b"", plan=[say(200, wav(3000)[:size]) for size in (1000, 2000)] + [same] * 100)
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="its header declares 4000"):
            await get(server.url, tmp_path / "a.wav")
        assert len(host.requests) == 4
    assert is_empty_directory(tmp_path)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF024, 0x7FFFF044, 0x7FFFF032, 0x7FFFF02C])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_wav_of_unknown_size_is_complete_by_its_content_length(
    size: int, is_chunked: bool, serve: Any, get: Get, tmp_path: Path
) -> None:
    """SoX and ffmpeg cannot write the size of a WAV to a pipe: the length on the wire counts."""
    data = b"RIFF" + size.to_bytes(4, "little") + wav(3000)[8:]
    host = Host(b"", plan=[chunked([data]) if is_chunked else say(200, data)])
    async with serve(host) as server:
        await get(server.url, tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == data


# Targets of links.


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
    """Every redirect is checked like the first link, and a refused one fails at once."""
    host = Host(b"", plan=[say(302, Location=place)] * 100)
    async with serve(host) as server:
        with anyio.fail_after(LONG), pytest.raises(DownloadError):
            await get(server.url, tmp_path / "a.mp3")
        assert len(host.requests) == 1
    assert is_empty_directory(tmp_path)


async def test_endless_redirects_are_an_error(serve: Any, get: Get, tmp_path: Path) -> None:
    """A circle of redirects is an error after a few hops."""
    host = Host(b"", plan=[say(302, Location="/again")] * 1000)
    async with serve(host) as server:
        with pytest.raises(DownloadError, match="redirects"):
            await get(server.url, tmp_path / "a.mp3")
    assert len(host.requests) < 20
    assert is_empty_directory(tmp_path)


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
    assert is_empty_directory(tmp_path)


@pytest.mark.parametrize("link", ["https://a..example/a.mp3", f"https://{'a' * 64}.example/"])
async def test_a_garbled_link_is_an_error_of_the_library(
    link: str, get: Get, tmp_path: Path
) -> None:
    """For any malformed link, a download raises no bare ValueError."""
    with pytest.raises(MusicGPTError):
        await get(link, tmp_path / "a.mp3")
