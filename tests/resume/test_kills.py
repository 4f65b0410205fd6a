"""Wherever a process is killed, each track is paid for and fetched once."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import anyio
import pytest
from factories.moments import MOMENTS, Moment
from factories.runs import (
    HANG,
    STEMS,
    asked,
    process,
    read,
    reference,
    there,
    track,
    until_leases_expire,
)
from factories.sessions import connected
from factories.watching import until

from musicgpt_async import (
    JobState,
)
from musicgpt_async.emulator import Emulator

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("again", ["resume", "the same batch"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
async def test_the_jobs_of_a_killed_process_are_resumed(
    moment: Moment, again: str, tmp_path: Path
) -> None:
    """Killed at any point: one submission, complete stems, and no other files."""
    song, stems = track(tmp_path, size=moment.size), tmp_path / "stems"
    async with Emulator(seconds=moment.seconds, separate=False, faults=moment.faults) as vendor:
        async with process(vendor, tmp_path, song) as killed:
            await until(lambda: moment.has_come(vendor, tmp_path))
            killed.kill()
        vendor.faults.clear()
        await until_leases_expire(tmp_path / "journal.db")
        fetched = asked(vendor, "bass.wav")
        async with connected(vendor, tmp_path / "journal.db") as session:
            if again == "resume":
                await session.resume()
            else:
                outcomes = [each async for each in session.extract_many([song], stems, stems=STEMS)]
                assert [each.error for each in outcomes] == [None]
        if moment.name in ("half downloaded", "done"):
            # A kill may come between the file's name and the journal's line about it.
            assert asked(vendor, "bass.wav") - fetched <= 1
        assert len(vendor.submissions) == 1
        assert there(stems) == await reference(vendor, tmp_path / "reference", song)
    [record] = await read(tmp_path / "journal.db")
    assert record.state is JobState.COMPLETED
    assert len(record.files) == len(STEMS)


@pytest.mark.skipif(sys.platform != "linux", reason="deaths are seen in Linux's /proc")
async def test_a_process_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    """Its lease lasts for hours, but a restart resumes a dead process's jobs at once."""
    song, another = track(tmp_path), track(tmp_path, "another.mp3")
    async with Emulator(seconds=1.0, separate=False) as vendor:
        async with process(vendor, tmp_path, song, another, lease=36_000.0) as killed:
            await until(lambda: asked(vendor, "byId") >= 1)
            killed.kill()
            await killed.wait()
        async with connected(vendor, tmp_path / "journal.db") as session:
            jobs = await session.resume()
            assert sorted(job.title for job in jobs) == ["another", "song"]
            with anyio.fail_after(HANG):
                await asyncio.gather(*jobs)
        assert len(vendor.submissions) == 2
