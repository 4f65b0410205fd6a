"""The end of waiting for a job: a last poll, and MusicGPT's own message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from musicgpt_async import (
    DeadlineError,
    ExtractionFailedError,
    JobState,
    Limits,
    MusicGPTError,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

TRACK = ("song.mp3", b"ID3" + bytes(3000))


async def test_a_job_is_polled_once_more_before_its_deadline_ends_it(connect: Any) -> None:
    """A job that has finished between two polls is completed at its deadline, not timed out."""
    async with (
        Emulator(seconds=0.7, eta=3600, separate=False) as vendor,
        connect(vendor, deadline=1.2, limits=Limits.FREE) as session,
    ):
        job = session.submit(TRACK)
        assert (await job).task_id == vendor.submissions[0].task_id


async def test_a_job_with_webhooks_is_polled_before_its_deadline_ends_it(
    connect: Any, open_receiver: Any
) -> None:
    """If its webhook was lost and no poll was due, the job is polled before it times out."""
    vendor = Emulator(seconds=0.3, separate=False, webhooks="lost")
    async with (
        vendor,
        open_receiver() as receiver,
        connect(vendor, deadline=1.2, webhooks=receiver, limits=Limits.FREE) as session,
    ):
        job = session.submit(TRACK)
        assert (await job).task_id == vendor.submissions[0].task_id


async def test_the_last_poll_has_an_end(connect: Any) -> None:
    """A vendor that never answers the last poll holds no job past its deadline for long."""
    faults = [Fault("byId", "stall_answer", times=None)]
    async with (
        Emulator(seconds=0.1, separate=False, faults=faults) as vendor,
        connect(vendor, deadline=0.5, request_timeout=1.0) as session,
    ):
        job = session.submit(TRACK)
        with pytest.raises(DeadlineError):
            await job
        assert job.state is JobState.TIMED_OUT


async def test_a_last_poll_that_says_failed_is_the_failure(connect: Any) -> None:
    """A job that failed between two polls ends in the vendor's verdict, not in a deadline."""
    faults = [Fault("job", "fails", message="Unreadable audio")]
    async with (
        Emulator(seconds=0.7, eta=3600, separate=False, faults=faults) as vendor,
        connect(vendor, deadline=1.2, limits=Limits.FREE) as session,
    ):
        with pytest.raises(ExtractionFailedError, match="Unreadable audio"):
            await session.submit(TRACK)


@pytest.mark.parametrize("named", [False, True], ids=["without a task_id", "with its task_id"])
async def test_a_no_with_a_failed_conversion_is_that_failure(named: bool, connect: Any) -> None:
    """`success: false` beside a FAILED conversion ends the job in the vendor's words."""
    async with (
        Emulator(seconds=60, eta=1, separate=False) as vendor,
        connect(vendor) as session,
    ):
        job = session.submit(TRACK)
        accepted = await job.accepted()
        conversion = {"status": "FAILED", "status_msg": "Unreadable audio"}
        if named:
            conversion["task_id"] = accepted.task_id
        answer = {"success": False, "message": "failed", "conversion": conversion}
        body = json.dumps(answer).encode()
        vendor.script(Fault("byId", "wrong_json", body=body, times=None))
        with pytest.raises(ExtractionFailedError, match="Unreadable audio"):
            await job


async def test_a_no_without_a_conversion_is_no_failed_job(connect: Any) -> None:
    """ById's `success: false` alone is a failed poll, and a failed poll is never a failed job."""
    async with Emulator(seconds=0.3, separate=False) as vendor:
        vendor.script(Fault("byId", "not_success", times=2))
        async with connect(vendor) as session:
            assert await session.submit(TRACK)


async def test_a_follower_has_its_own_deadline(
    connect: Any, make_track: Any, tmp_path: Path
) -> None:
    """Following a job of another process that never ends, a deadline still counts."""
    song, path = make_track(), tmp_path / "journal.db"
    faults = [Fault("job", "never_finishes")]
    async with Emulator(seconds=0.1, separate=False, faults=faults) as vendor:
        owner = await connect(vendor, journal=path, deadline=None).start()
        await owner.submit(song).accepted()
        follower = await connect(vendor, journal=path, deadline=1.0).start()
        job = follower.submit(song)
        with pytest.raises(DeadlineError) as caught:
            await job
        assert caught.value.task_id == vendor.submissions[0].task_id
        assert len(vendor.submissions) == 1


async def test_a_follower_ends_though_the_owner_gets_no_response(
    connect: Any, make_track: Any, tmp_path: Path, read_records: Any
) -> None:
    """A track that another process has delivered, and waits for, is overdue by our own deadline."""
    song, path = make_track(), tmp_path / "journal.db"
    faults = [Fault("submit", "stall_answer", times=None)]
    async with Emulator(seconds=0.1, separate=False, faults=faults) as vendor:
        owner = await connect(vendor, journal=path, deadline=None).start()
        owner.submit(song)
        await read_records(path, once=lambda record: record.sent_at)
        follower = await connect(vendor, journal=path, deadline=1.0).start()
        job = follower.submit(song)
        with pytest.raises(DeadlineError, match="Another process has not finished"):
            await job
        assert sum(each.method == "POST" for each in vendor.requests) == 1
        await follower.aclose(drain=False)
        await owner.aclose(drain=False)


async def test_a_followers_deadline_counts_from_acceptance(
    connect: Any, make_track: Any, tmp_path: Path, read_records: Any
) -> None:
    """A job that waits for its slot in another process is not overdue: its time has not begun."""
    song, path = make_track(), tmp_path / "journal.db"
    async with (
        Emulator(seconds=1.5, eta=1, separate=False, parallel=1) as vendor,
        connect(vendor, journal=path, deadline=2.2) as follower,
        connect(vendor, journal=path) as owner,
    ):
        await owner.submit(make_track("first.mp3")).accepted()
        waiting = owner.submit(song)  # refused with 429: it waits for the first one's end
        await read_records(path, once=lambda record: record.size)
        job = follower.submit(song)
        assert (await job).task_id == (await waiting).task_id
    assert len(vendor.submissions) == 2


async def test_a_lost_answers_wait_has_an_end(
    connect: Any, open_receiver: Any, make_track: Any, tmp_path: Path
) -> None:
    """With journal, webhooks and no listing, a lost answer is unknown at the deadline."""
    vendor = Emulator(
        seconds=0.1,
        separate=False,
        webhooks="lost",
        listing=False,
        faults=[Fault("submit", "drop_before_answer")],
    )
    async with vendor, open_receiver() as receiver:
        options = {"journal": tmp_path / "journal.db", "deadline": 1.0}
        async with connect(vendor, webhooks=receiver, **options) as session:
            job = session.submit(make_track())
            with pytest.raises(MusicGPTError, match="not sent again by itself"):
                await job
    assert len(vendor.submissions) == 1


async def test_a_deadline_is_an_end_though_the_journal_is_locked(
    connect: Any, make_track: Any, hold_journal: Any, tmp_path: Path
) -> None:
    """A journal that takes nothing grants no poll, and an accepted job ends by its deadline."""
    path = tmp_path / "journal.db"
    faults = [Fault("job", "never_finishes")]
    async with Emulator(seconds=0.1, separate=False, faults=faults) as vendor:
        session = await connect(vendor, journal=path, deadline=1.0).start()
        job = session.submit(make_track())
        await job.accepted()
        async with hold_journal(path):
            with pytest.raises(DeadlineError), anyio.fail_after(30.0):
                await job
