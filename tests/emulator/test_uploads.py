from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web

pytestmark = pytest.mark.anyio

HEAD = (
    b"--edge\r\nContent-Disposition: form-data; name=stems\r\n\r\n[]\r\n"
    b'--edge\r\nContent-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n'
)
TAIL = b"\r\n--edge--\r\n"


async def post_raw(me: Any, body: bytes, *, length: int | None = None) -> bytes:
    """Send a submit byte by byte as given; return everything that the server sends."""
    host, port = me.vendor.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /api/public/v1/Extraction HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Authorization: {me.vendor.api_key}\r\nContent-Length: {length or len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    if length is not None:
        writer.write_eof()
    with anyio.fail_after(60):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("size", [1, 65_536, 3_000_001])
async def test_what_arrives_is_what_was_sent(open_account: Any, size: int) -> None:
    """The record has size, digest and exact bytes of uploads of any size."""
    audio = os.urandom(size)
    async with open_account() as me:
        await me.extract(audio)
        (record,) = me.vendor.submissions
        assert (record.size, record.sha256) == (size, hashlib.sha256(audio).hexdigest())
        assert await anyio.Path(record.upload.audio).read_bytes() == audio


async def test_bytes_that_look_like_the_boundary_are_audio(open_account: Any) -> None:
    """Line breaks and dashes in the audio do not end it."""
    audio = b"\r\n--edge\r\n--edg\r\n\r\n--"[:-12] * 1000
    audio = audio.replace(b"--edge", b"--edgy")
    async with open_account() as me:
        assert b" 200 OK" in await post_raw(me, HEAD + audio + TAIL)
        assert me.vendor.submissions[0].size == len(audio)


@pytest.mark.parametrize("name", ["song.wav", "Прив «x» é.flac", "a b;c=d.mp3", "音楽.wav"])
async def test_the_file_name_is_kept(open_account: Any, name: str) -> None:
    """A name with spaces, semicolons or letters of any script arrives as it was."""
    async with open_account() as me:
        await me.submit(name=name)
        assert me.vendor.submissions[0].file_name == name


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (HEAD + b"sound", 10_000),
        (HEAD + b"sound" + TAIL[:-6], 10_000),
        (HEAD + b"sound", None),
        (HEAD + bytes(3 << 20), None),
        (HEAD + b"sound" + TAIL[:-6], None),
        (b"nonsense", None),
    ],
)
async def test_an_upload_without_its_end_is_not_accepted(
    open_account: Any, body: bytes, length: int | None
) -> None:
    """No closing boundary, no conversion; and nothing is left on disk."""
    async with open_account() as me:
        answer = await post_raw(me, body, length=length)
        assert length is not None or b" 400 " in answer
        assert not me.vendor.submissions
        await me.submit()
        folder = me.vendor.submissions[0].upload.audio.parent
        assert len([path async for path in anyio.Path(folder).glob("upload-*")]) == 1


async def test_the_vendor_stays_well_after_a_broken_upload(open_account: Any) -> None:
    """A client that disconnects in the middle of the body does not affect others."""
    async with open_account() as me:
        await post_raw(me, HEAD + b"sound" * 1000, length=10_000_000)
        assert (await me.submit()).status == 200


async def test_memory_stays_flat(open_account: Any) -> None:
    """Uploading 128 MiB takes a few MiB of memory on both ends together."""
    block = bytes(1 << 20)

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield block

    async with open_account() as me:
        form = aiohttp.FormData()
        form.add_field("audio_file", blocks(), filename="long.wav")
        tracemalloc.start()
        try:
            assert (await me.api("POST", "/Extraction", data=form)).status == 200
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert me.vendor.submissions[0].size == 128 << 20
    assert peak < 24 << 20


async def test_how_the_audio_was_cut_up_does_not_matter(open_account: Any) -> None:
    """The same audio has the same fingerprint, and so the same pseudo-audio, piece by piece."""
    audio = os.urandom(10_000)

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(audio), 100):
            yield audio[begin : begin + 100]
            await asyncio.sleep(0)

    async with open_account() as me:
        form = aiohttp.FormData()
        form.add_field("audio_file", pieces(), filename="song.wav")
        await me.api("POST", "/Extraction", data=form)
        await me.submit(audio)
        in_pieces, whole = me.vendor.submissions
    assert in_pieces.upload.fingerprint == whole.upload.fingerprint


async def test_audio_can_be_thrown_away(open_account: Any) -> None:
    """For benchmarks uploads are counted and not kept."""
    async with open_account(keep_audio=False) as me:
        await me.extract(bytes(1 << 21))
        record = me.vendor.submissions[0]
    assert (record.size, record.sha256, record.upload.audio) == (1 << 21, None, None)


async def test_an_audio_url_on_loopback_is_downloaded(open_account: Any, song: Path) -> None:
    """The emulator downloads the audio; if that fails, the conversion fails."""

    async def serve(_: web.Request) -> web.FileResponse:
        return web.FileResponse(song)

    application = web.Application()
    application.router.add_get("/song.flac", serve)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with open_account(separate=True) as me:
            found = await me.extract(None, audio_url=f"{url}/song.flac", stems='["bass"]')
            missing = await me.extract(None, audio_url=f"{url}/nothing.flac")
            record = me.vendor.submissions[0]
    finally:
        await runner.cleanup()
    assert (found["status"], found["conversion_duration"]) == ("COMPLETED", 6.0)
    assert record.sha256 == hashlib.sha256(await anyio.Path(song).read_bytes()).hexdigest()
    assert (missing["status"], missing["status_msg"]) == ("ERROR", "audio_url answered 404")


async def test_an_audio_url_elsewhere_is_a_tone(open_account: Any) -> None:
    """Nothing is downloaded from the internet: another host's audio is replaced by a tone."""
    async with open_account(separate=True) as me:
        for name in ("a", "b", "a"):
            await me.extract(None, audio_url=f"https://example.org/{name}.mp3", stems='["bass"]')
        first, other, again = [record.sha256 for record in me.vendor.submissions]
    assert first == again != other
