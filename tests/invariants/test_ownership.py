"""One mover: of all sessions on a journal one moves a job, the others follow it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from musicgpt_async import ExtractionFailedError, ExtractionJob, JobState, Journal, MusicGPTSession
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.models import JobRecord
from musicgpt_async.testing import accelerated_loop

pytestmark = pytest.mark.anyio

STEMS = ["bass", "drums"]


WAYS = ["polling", "one receiver"]


@pytest.fixture(params=[False, True], ids=WAYS)
async def two_sessions(
    request: pytest.FixtureRequest, tmp_path: Path, connect: Any, open_receiver: Any
) -> Any:
    """Two open sessions on one Journal object, with one shared receiver or without any."""
    async with AsyncExitStack() as stack:
        vendor = await stack.enter_async_context(
            Emulator(seconds=1.0, separate=False, stem_bytes=4096)
        )
        receiver = None
        if request.param:
            receiver = await stack.enter_async_context(open_receiver())
        journal = Journal(tmp_path / "journal.db")
        sessions = [connect(vendor, journal=journal, webhooks=receiver) for _ in range(2)]
        for session in sessions:
            await session.start()
        yield vendor, *sessions


Two = tuple[Emulator, MusicGPTSession, MusicGPTSession]


def is_completed(record: JobRecord) -> bool:
    """Return whether a job's end is written down."""
    return record.state is JobState.COMPLETED


async def followed(job: ExtractionJob) -> None:
    """Wait until a second handle has met the first one's record, as far as can be seen."""
    with anyio.move_on_after(0.7):
        while job.task_id is None:
            await anyio.sleep(0.01)


async def test_the_same_track_in_two_sessions_is_paid_for_once(
    two_sessions: Two, make_track: Any, ends: Any, paid: Any, tmp_path: Path, read_records: Any
) -> None:
    """Submitted in both at once, and once more afterwards: one payment, the same end thrice."""
    vendor, first, second = two_sessions
    song = make_track()
    one, two = first.submit(song, stems=STEMS), second.submit(song, stems=STEMS)
    found = await ends(one, two)
    found += await ends(second.submit(song, stems=STEMS))
    assert paid(vendor) == {"song.mp3": 1}
    assert found == [vendor.submissions[0].task_id] * 3
    [record] = await read_records(tmp_path / "journal.db", once=is_completed)
    assert (record.state, record.task_id) == (JobState.COMPLETED, found[0])


async def test_a_running_job_is_not_written_over(
    two_sessions: Two, make_track: Any, ends: Any, paid: Any, tmp_path: Path, read_records: Any
) -> None:
    """What a second session does with a running job's track leaves the first one's record alone."""
    vendor, first, second = two_sessions
    vendor.script(Fault("job", "never_finishes"))
    song = make_track()
    one = first.submit(song, stems=STEMS)
    await one.accepted()
    two = second.submit(song, stems=STEMS)
    await followed(two)
    await anyio.sleep(0.2)
    [record] = await read_records(tmp_path / "journal.db", once=lambda record: record.task_id)
    assert (record.state, record.task_id) == (JobState.PROCESSING, one.task_id)
    assert not one.done()
    assert not two.done()
    assert paid(vendor) == {"song.mp3": 1}


async def test_a_failure_is_the_end_of_both(
    two_sessions: Two, make_track: Any, ends: Any, paid: Any
) -> None:
    """The vendor's verdict on the owner's job is the follower's too, which submits nothing."""
    vendor, first, second = two_sessions
    vendor.script(Fault("job", "fails", times=None))
    song = make_track()
    one = first.submit(song, stems=STEMS)
    await one.accepted()
    two = second.submit(song, stems=STEMS)
    assert await ends(one, two) == [ExtractionFailedError.__name__] * 2
    assert paid(vendor) == {"song.mp3": 1}


async def test_a_follower_that_closes_leaves_the_owner_at_work(
    two_sessions: Two, make_track: Any, ends: Any, paid: Any, tmp_path: Path, read_records: Any
) -> None:
    """A second session that is closed while it follows changes nothing for the first one."""
    vendor, first, second = two_sessions
    song = make_track()
    one = first.submit(song, stems=STEMS)
    await one.accepted()
    await followed(second.submit(song, stems=STEMS))
    await second.aclose(drain=False)
    assert await ends(one) == [vendor.submissions[0].task_id]
    await first.aclose()
    [record] = await read_records(tmp_path / "journal.db")
    assert record.state is JobState.COMPLETED
    assert paid(vendor) == {"song.mp3": 1}


async def test_a_follower_takes_over_from_an_owner_that_closes(
    two_sessions: Two, make_track: Any, ends: Any, paid: Any, tmp_path: Path, read_records: Any
) -> None:
    """The owner's session is closed without draining: the follower brings the job to its end."""
    vendor, first, second = two_sessions
    song = make_track()
    one = first.submit(song, stems=STEMS)
    await one.accepted()
    two = second.submit(song, stems=STEMS)
    await followed(two)
    await first.aclose(drain=False)
    assert await ends(two) == [vendor.submissions[0].task_id]
    await second.aclose()
    [record] = await read_records(tmp_path / "journal.db")
    assert record.state is JobState.COMPLETED
    assert paid(vendor) == {"song.mp3": 1}


async def test_resuming_takes_nothing_from_a_live_session(
    two_sessions: Two, make_track: Any, ends: Any, paid: Any
) -> None:
    """resume() in a second session leaves the first one's running jobs to it."""
    vendor, first, second = two_sessions
    one = first.submit(make_track(), stems=STEMS)
    await one.accepted()
    assert await second.resume() == []
    assert await ends(one) == [vendor.submissions[0].task_id]
    assert paid(vendor) == {"song.mp3": 1}


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": accelerated_loop(5)})], ids=["accelerated"]
)
@pytest.mark.hang(120.0)
async def test_a_session_that_leaves_ends_no_waits_of_the_next(
    connect: Any, make_track: Any, hold_journal: Any, tmp_path: Path
) -> None:
    """One session leaves while the next one begins on the same journal, which waits as ever."""
    path = tmp_path / "journal.db"
    journal = Journal(path)
    async with Emulator(seconds=60, separate=False) as vendor:
        first = await connect(vendor, journal=journal).start()
        await first.submit(make_track()).accepted()
        async with hold_journal(path):
            leaving = asyncio.create_task(first.aclose(drain=False))
            await anyio.sleep(1.0)
            second = await connect(vendor, journal=journal).start()
        await leaving
        await anyio.sleep(11.0)  # the time that leaving may take is over
        async with hold_journal(path):
            job = second.submit(make_track("other.mp3"))
            await anyio.sleep(8.0)  # SQLite itself waits for a second
        assert await job.accepted()
