"""Files of each format, with both formats, MP3 only, or a WAV that appears late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories.sessions import free_port

from musicgpt_async import DownloadError, Limits, MusicGPTSession, WebhookReceiver
from musicgpt_async.emulator import SHAPES, Emulator, Fault, WebhookDelivery

pytestmark = pytest.mark.anyio

TRACK = ("song.mp3", b"ID3" + b"\x00" * 2000)
STEMS = ["drums", "bass"]


def emulated(**settings: Any) -> Emulator:
    """Run a fast emulator."""
    return Emulator(seconds=0.0, separate=False, stem_bytes=4096, **settings)


def opened(vendor: Emulator, **settings: Any) -> MusicGPTSession:
    """A session with it."""
    return MusicGPTSession(vendor.api_key, base_url=vendor.base_url, limits=Limits.PRO, **settings)


@pytest.mark.parametrize(("generation", "ending"), [(1, ".wav"), (2, ".mp3")])
async def test_the_default_takes_wav_where_there_is_one_else_mp3(
    generation: Any, ending: str, tmp_path: Path
) -> None:
    """`extract` and `extract_many` bring every stem, and the path says in which format."""
    async with emulated(generation=generation) as vendor, opened(vendor) as session:
        files = await session.extract(TRACK, tmp_path / "one", stems=STEMS)
        (outcome,) = [x async for x in session.extract_many([TRACK], tmp_path / "many")]
    assert {stem: path.suffix for stem, path in files.items()} == dict.fromkeys(STEMS, ending)
    assert outcome.ok
    assert {path.suffix for path in outcome.files.values()} == {ending}  # type: ignore[union-attr]
    assert all(path.is_file() for path in files.values())


async def test_both_takes_whatever_there_is(tmp_path: Path) -> None:
    """Without WAVs the result is the MP3s, in the shape of two formats."""
    async with emulated(generation=2) as vendor, opened(vendor) as session:
        job = session.submit(TRACK, stems=STEMS)
        files = await job.download(tmp_path, format="both")
    assert {stem: list(paths) for stem, paths in files.items()} == {stem: ["mp3"] for stem in STEMS}


async def test_wav_is_strict_and_says_what_to_ask_for(tmp_path: Path) -> None:
    """Without WAVs the download fails, and no partial result remains."""
    async with emulated(generation=2) as vendor, opened(vendor) as session:
        job = session.submit(TRACK, stems=STEMS)
        with pytest.raises(DownloadError, match=r'no WAV of .*format="best"'):
            await job.download(tmp_path, format="wav")
        assert list(tmp_path.iterdir()) == []
        assert (await job.download(tmp_path))["bass"].suffix == ".mp3"
        assert len(vendor.submissions) == 1


async def test_a_wav_that_comes_after_completion_is_asked_for_once_more(tmp_path: Path) -> None:
    """The status has the WAV from its second response on, and the WAV is downloaded."""

    def shape(submission: Any) -> Any:
        return SHAPES["mp3_only" if submission.polls < 2 else "json"]

    async with emulated(shape=shape) as vendor, opened(vendor) as session:
        files = await session.extract(TRACK, tmp_path, stems=STEMS)
        assert vendor.submissions[0].polls == 2
    assert {path.suffix for path in files.values()} == {".wav"}


@pytest.mark.parametrize(
    ("in_poll", "in_webhook", "ending"),
    [(True, True, ".wav"), (True, False, ".wav"), (False, True, ".wav"), (False, False, ".mp3")],
)
async def test_a_wav_may_be_in_the_webhook_in_byid_in_both_or_in_none(
    in_poll: bool, in_webhook: bool, ending: str, tmp_path: Path
) -> None:
    """The WAV is downloaded wherever it is linked, otherwise the MP3."""
    port = free_port()
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/hook")
    delivery = WebhookDelivery(moment="before_answer", wav=in_webhook)
    shape = SHAPES["json" if in_poll else "mp3_only"]
    async with (
        receiver.serve("127.0.0.1", port),
        emulated(shape=shape, webhooks=delivery) as vendor,
        opened(vendor, webhooks=receiver) as session,
    ):
        files = await session.extract(TRACK, tmp_path, stems=STEMS)
        assert [attempt.is_taken for attempt in vendor.deliveries] == [True]
    assert {path.suffix for path in files.values()} == {ending}


async def test_mp3s_are_downloaded_if_the_poll_for_a_wav_fails(tmp_path: Path) -> None:
    """If polling again fails, the available files are downloaded."""
    vendor = emulated(generation=2)
    async with vendor, opened(vendor) as session:
        job = session.submit(TRACK, stems=STEMS)
        await job
        vendor.script(Fault("byId", "status", status=500, times=None))
        files = await job.download(tmp_path)
    assert {path.suffix for path in files.values()} == {".mp3"}


async def test_a_job_resumed_in_another_format_is_paid_for_once(tmp_path: Path) -> None:
    """An explicit format goes before the one that the journal remembers."""
    journal, out = tmp_path / "journal.sqlite", tmp_path / "stems"
    refused = Fault(
        "file", "status", status=410, times=None, when=lambda at: (at.file or "").endswith(".wav")
    )
    async with emulated(faults=[refused]) as vendor:
        async with opened(vendor, journal=journal) as session:
            with pytest.raises(DownloadError):
                await session.extract(TRACK, out, stems=STEMS, format="wav")
        async with opened(vendor, journal=journal) as session:
            assert len(await session.resume(format="mp3")) == 1
        assert {path.suffix for path in out.iterdir()} == {".mp3"}
        async with opened(vendor, journal=journal) as session:
            assert await session.resume() == []
        assert len(vendor.submissions) == 1
