from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from musicgpt_async.emulator import Fault

pytestmark = pytest.mark.anyio


async def test_a_file_has_every_header_that_resuming_takes(open_account: Any) -> None:
    """Files have Length, ETag, Last-Modified and Accept-Ranges, on another host, without a key."""
    async with open_account(stem_bytes=10_000) as me:
        url = await me.link()
        assert url.startswith(f"{me.vendor.files_url}/files/")
        assert me.vendor.files_url != me.vendor.url
        reply = await me.call("GET", url)
        head = await me.call("HEAD", url)
        assert me.vendor.leaked_keys == []
    assert (reply.status, len(reply.body), reply.headers["Content-Length"]) == (
        200,
        10_000,
        "10000",
    )
    assert reply.headers["Accept-Ranges"] == "bytes"
    assert reply.headers["Content-Type"] == "audio/wav"
    assert reply.headers["ETag"].startswith('"')
    assert "Last-Modified" in reply.headers
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "10000")


async def test_ranges(open_account: Any) -> None:
    """A range gets 206 with Content-Range, its end may be open, and one outside gets 416."""
    async with open_account(stem_bytes=10_000) as me:
        url = await me.link()
        whole = (await me.call("GET", url)).body
        for asked, part, told in (
            ("bytes=100-199", whole[100:200], "bytes 100-199/10000"),
            ("bytes=9000-", whole[9000:], "bytes 9000-9999/10000"),
            ("bytes=9000-99999", whole[9000:], "bytes 9000-9999/10000"),
            ("bytes=-10", whole[-10:], "bytes 9990-9999/10000"),
        ):
            reply = await me.call("GET", url, headers={"Range": asked})
            assert (reply.status, reply.body) == (206, part)
            assert reply.headers["Content-Range"] == told
        beyond = await me.call("GET", url, headers={"Range": "bytes=10000-"})
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, "bytes */10000")


async def test_if_range_is_heeded(open_account: Any) -> None:
    """A range is served if the ETag or date matches the file, otherwise the complete file."""
    async with open_account(stem_bytes=10_000) as me:
        url = await me.link()
        headers = (await me.call("GET", url)).headers
        for condition, status in (
            (headers["ETag"], 206),
            ('"another"', 200),
            (f"W/{headers['ETag']}", 200),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 200),
        ):
            asked = {"Range": "bytes=5000-", "If-Range": condition}
            reply = await me.call("GET", url, headers=asked)
            assert (reply.status, len(reply.body)) == (status, 5000 if status == 206 else 10_000)


async def test_a_key_at_the_file_host_is_noted(open_account: Any) -> None:
    """A request that bears an Authorization header or the key is served and remembered."""
    async with open_account() as me:
        url = await me.link()
        assert (await me.call("GET", url, headers={"Authorization": "anything"})).status == 200
        assert (await me.call("GET", f"{url}&key={me.vendor.api_key}")).status == 200
        assert [path.split("/")[-1] for path in me.vendor.leaked_keys] == ["drums.wav"] * 2


async def test_a_link_must_be_right_and_its_file_be_there(open_account: Any) -> None:
    """A wrong signature gets 403 and an unknown conversion 404, both in the words of S3."""
    async with open_account() as me:
        url = await me.link()
        altered = await me.call("GET", url[:-1] + ("0" if url[-1] != "0" else "1"))
        unknown = await me.call("GET", url.replace("/files/", "/files/nowhere-"))
        other = await me.call("GET", url.replace("drums.wav", "bass.wav"))
    assert (altered.status, unknown.status, other.status) == (403, 404, 403)
    assert b"<Code>AccessDenied</Code>" in altered.body
    assert b"<Code>NoSuchKey</Code>" in unknown.body


@pytest.mark.parametrize("suffix", ["", "_wav"])
@pytest.mark.parametrize("size", [None, 2048, 1_500_000])
async def test_pseudo_audio_has_the_size_asked_for_and_is_valid(
    open_account: Any, suffix: str, size: int | None, tmp_path: Any
) -> None:
    """Without separation stems are files that decode, of exactly the size that is set."""
    import soundfile  # noqa: PLC0415  only this test needs it

    async with open_account(stem_bytes=size) as me:
        reply = await me.call("GET", await me.link(suffix))
    file = anyio.Path(tmp_path / "stem")
    await file.write_bytes(reply.body)
    info = soundfile.info(str(file))
    assert len(reply.body) == (65_536 if size is None else size)
    assert info.format in ({"WAV"} if suffix else {"MP3", "MPEG"})
    assert info.frames > 0


async def test_pseudo_audio_depends_on_audio_stem_and_nothing_else(open_account: Any) -> None:
    """The same song gives the same stems, another one or another stem other bytes."""
    async with open_account() as me:
        seen = []
        for audio in (b"one", b"two", b"one"):
            conversion = await me.extract(audio, stems='["bass", "drums"]')
            for field in ("audio_url", "audio_url_wav"):
                links = json.loads(conversion[field])
                seen.append([(await me.call("GET", links[stem])).body for stem in links])
    one_mp3, one_wav, two_mp3, two_wav, again_mp3, again_wav = seen
    assert (one_mp3, one_wav) == (again_mp3, again_wav)
    assert len({*one_mp3, *one_wav, *two_mp3, *two_wav}) == 8


async def test_an_expired_link_is_replaced_by_the_next_poll(open_account: Any) -> None:
    """Expired links stay expired, and byId returns fresh ones."""
    async with open_account(faults=[Fault("file", "expired")]) as me:
        task = (await me.submit()).json["task_id"]
        old = json.loads((await me.finished(task))["audio_url"])["drums"]
        assert [(await me.call("GET", old)).status for _ in range(2)] == [403, 403]
        fresh = json.loads((await me.finished(task))["audio_url"])["drums"]
        assert fresh != old
        assert (await me.call("GET", fresh)).status == 200
