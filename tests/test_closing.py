"""What a closed session saves, and how it is resumed."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from factories.sessions import connected

from musicgpt_async import JobState, Journal
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

TRACK = b"ID3" + bytes(16 << 20)  # more than the sockets' buffers hold


@pytest.fixture
def track(tmp_path: Path) -> Path:
    """A track on disk, which can be read a second time."""
    path = tmp_path / "song.mp3"
    path.write_bytes(TRACK)
    return path


async def test_an_upload_under_way_when_a_session_is_left_is_submitted_by_the_next(
    vendor: Emulator, track: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of an upload loses nothing: resume() submits the track, once."""
    vendor.script(Fault("submit", "stall_read", at=100))
    session = await connected(vendor, tmp_path / "journal").start()
    job = session.submit(track)
    while not vendor.faults.fired("stall_read"):
        await anyio.sleep(0.005)
    assert job.state is JobState.UPLOADING
    await session.aclose(drain=False)
    async with connected(vendor, tmp_path / "journal") as session:
        (again,) = await session.resume()
        assert await again
    assert len(vendor.submissions) == 1


async def test_a_job_that_was_cancelled_is_not_resumed(
    vendor: Emulator, track: Path, tmp_path: Path
) -> None:
    """cancel() is the user's word: what was not sent then is not sent by resume() either."""
    async with connected(vendor, tmp_path / "journal") as session:
        vendor.script(Fault("submit", "status", status=429, retry_after=60))
        job = session.submit(track)
        while not job._job.record.fingerprint or job.state is not JobState.QUEUED:
            await anyio.sleep(0.005)
        job.cancel()
    async with connected(vendor, tmp_path / "journal") as session:
        assert await session.resume() == []
    assert not vendor.submissions


async def test_a_download_of_some_stems_is_complete(
    vendor: Emulator, track: Path, tmp_path: Path
) -> None:
    """A job of which only some stems were wanted is done when those are there."""
    async with connected(vendor, tmp_path / "journal") as session:
        job = session.submit(track, stems=["bass", "drums"])
        await job.download(tmp_path / "stems", stems=["bass"])
    async with Journal(tmp_path / "journal") as journal:
        assert await journal._claim() == []
