"""`eco_mode` is sent, distinguished by the journal, and kept over a restart."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from musicgpt_async import BatchItem, InvalidOptionError, Journal, Limits, MusicGPTSession
from musicgpt_async._rules.fingerprint import compute_fingerprint
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.events import Throttled

pytestmark = pytest.mark.anyio


@pytest.fixture
def track(tmp_path: Path) -> Path:
    """A track on disk."""
    path = tmp_path / "song.mp3"
    path.write_bytes(b"ID3" + b"\x00" * 2000)
    return path


def emulated(**settings: Any) -> Emulator:
    """The second generation, quick."""
    return Emulator(generation=2, seconds=0.0, separate=False, stem_bytes=4096, **settings)


async def test_eco_mode_is_sent_for_a_job_a_batch_and_an_item(track: Path, tmp_path: Path) -> None:
    """It is false by default; an item of a batch goes before the batch."""
    async with (
        emulated() as vendor,
        MusicGPTSession(vendor.api_key, base_url=vendor.base_url, limits=Limits.PRO) as session,
    ):
        await session.submit(track)
        assert "eco_mode" not in vendor.submissions[-1].fields
        await session.submit(track, eco_mode=True)
        await session.extract(track, tmp_path / "a", eco_mode=True, format="mp3")
        tracks = [BatchItem(source=track, options={"eco_mode": False}), ("b.mp3", b"b" * 2000)]
        out = session.extract_many(tracks, tmp_path / "b", eco_mode=True, format="mp3")
        assert all([outcome.ok async for outcome in out])
        sent = {each.file_name: each.eco_mode for each in vendor.submissions[3:]}
        assert [each.eco_mode for each in vendor.submissions[:3]] == [False, True, True]
        assert sent == {"song.mp3": False, "b.mp3": True}


@pytest.mark.parametrize("value", ["false", 1, None, []])
async def test_eco_mode_is_true_or_false(value: Any) -> None:
    """A word such as "false" would be taken for true; it is refused before anything is sent."""
    async with (
        emulated() as vendor,
        MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as session,
    ):
        with pytest.raises(InvalidOptionError, match="eco_mode"):
            session.submit(("a.mp3", b"a"), eco_mode=value)
        assert not vendor.submissions


def test_eco_mode_is_part_of_the_fingerprint() -> None:
    """With it a track is another piece of work; without it journals of before stay true."""
    plain = compute_fingerprint("/a", "1", stems=(), preprocessing=())
    assert compute_fingerprint("/a", "1", stems=(), preprocessing=(), eco_mode=False) == plain
    assert compute_fingerprint("/a", "1", stems=(), preprocessing=(), eco_mode=True) != plain


async def test_eco_mode_is_kept_over_a_restart(track: Path, tmp_path: Path) -> None:
    """What was never sent is submitted by the next process with the option that it had."""
    journal = tmp_path / "journal.sqlite"
    async with emulated(faults=[Fault("submit", "status", status=503, times=None)]) as vendor:
        session = MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, journal=journal, limits=Limits.PRO
        )
        await session.start()
        session.submit(track, eco_mode=True)
        events = session.events()
        async for event in events:
            if isinstance(event, Throttled):
                break
        await session.aclose(drain=False)
    async with emulated() as vendor:
        async with MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, journal=journal
        ) as session:
            assert len(await session.resume()) == 1
        assert [each.eco_mode for each in vendor.submissions] == [True]


async def test_a_journal_from_before_eco_mode_is_used_as_it_is(track: Path, tmp_path: Path) -> None:
    """The column is added to a journal of the version before, and old rows read as false."""
    path = tmp_path / "journal.sqlite"
    async with emulated() as vendor:

        async def submit() -> int:
            async with MusicGPTSession(
                vendor.api_key, base_url=vendor.base_url, journal=path
            ) as session:
                await session.submit(track)
            return len(vendor.submissions)

        assert await submit() == 1
        with sqlite3.connect(path) as database:
            database.execute("ALTER TABLE musicgpt_jobs DROP COLUMN eco_mode")
            database.execute("UPDATE musicgpt_journal SET version = 3")
        database.close()
        assert await submit() == 1
    async with Journal(path) as journal:
        assert [record.eco_mode async for record in journal.records()] == [False]
