"""Other processes continue the jobs of processes that die, once and without being asked."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import attrs
import pytest
from factories.journals import let_pass
from factories.moments import MOMENTS, Moment
from factories.postgres_fixtures import POSTGRES, make_place_fixture
from factories.runs import (
    HANG,
    STEMS,
    accepted_by,
    asked,
    lost,
    process,
    reference,
    there,
    track,
)
from factories.sessions import connected
from factories.watching import until

from musicgpt_async import JobState
from musicgpt_async._rules.accounts import compute_account
from musicgpt_async._rules.records import is_unfinished
from musicgpt_async.emulator import Emulator
from musicgpt_async.errors import JobDetachedError
from musicgpt_async.journal import ClaimLostError, Journal
from musicgpt_async.models import JobRecord

pytestmark = pytest.mark.anyio

LEASE = 1.5  # seconds; a process looks for jobs of dead ones three times as often


place = make_place_fixture(POSTGRES[-1:])


async def record_of(place: str) -> JobRecord:
    """Return the only job of a journal."""
    async with Journal(place) as journal:
        [record] = [each async for each in journal.records()]
        return record


def in_order(record: JobRecord) -> JobRecord:
    """Return a record with its files in the order of their stems."""
    return attrs.evolve(record, files=tuple(sorted(record.files, key=lambda each: each.stem)))


@pytest.mark.parametrize("moment", MOMENTS[:-1], ids=lambda moment: moment.name)
async def test_a_killed_process_is_replaced(moment: Moment, tmp_path: Path, place: str) -> None:
    """Killed at any point: another process submits, polls or downloads what is left, once."""
    song, stems = track(tmp_path, size=moment.size), tmp_path / "stems"
    async with Emulator(seconds=moment.seconds, separate=False, faults=moment.faults) as vendor:
        async with connected(vendor, Journal(place, lease=LEASE)):
            async with process(vendor, tmp_path, song, journal=place, lease=LEASE) as killed:
                await until(lambda: moment.has_come(vendor, tmp_path))
                killed.kill()
            vendor.faults.clear()
            killed_at = time.monotonic()
            while is_unfinished(record := await record_of(place)):
                await anyio.sleep(0.05)
            assert time.monotonic() - killed_at < 20.0
        assert len(vendor.submissions) == 1
        assert there(stems) == await reference(vendor, tmp_path / "reference", song)
    assert record.state is JobState.COMPLETED


async def test_another_machine_only_watches(tmp_path: Path, place: str) -> None:
    """A process of another site polls a dead one's job; one of its own site downloads the stems."""
    if "://" not in place:
        pytest.skip("a file is used by one machine alone")
    song, stems = track(tmp_path), tmp_path / "stems"
    async with Emulator(seconds=1.5, separate=False) as vendor:
        far = Journal(place, lease=LEASE, site="far away")
        async with connected(vendor, far) as other:
            async with process(vendor, tmp_path, song, journal=place, lease=LEASE) as killed:
                await until(lambda: asked(vendor, "byId") >= 1)
                killed.kill()
            with anyio.fail_after(HANG):
                while (await record_of(place)).state is not JobState.COMPLETED:
                    await anyio.sleep(0.05)
            assert not stems.exists()
            assert [each.state for each in await other.resume()] == [JobState.COMPLETED]
            assert await other.resume() == []
        async with connected(vendor, Journal(place, lease=LEASE)):
            await until(lambda: len([*stems.glob("*.wav")]) == len(STEMS))
        assert len(vendor.submissions) == 1


async def test_a_queued_track_is_not_sent_from_another_machine(tmp_path: Path, place: str) -> None:
    """What needs a file stays in the journal until a process of its site comes, or resumes it."""
    if "://" not in place:
        pytest.skip("a file is used by one machine alone")
    record = attrs.evolve(lost(), state=JobState.QUEUED, sent_at=None)
    async with Emulator(seconds=600.0, separate=False) as vendor:
        account = compute_account(vendor.api_key, vendor.base_url)
        async with Journal(place, site="here") as here, Journal(place, site="far") as far:
            await here._add_or_get(record, account=account)
            await let_pass(far, 1000.0)
            assert await far._adopt(account) == []
            assert await far._claim_one(record.id) is None
            assert await far._claim() == []
            async with Journal(place, site="here") as heir:
                assert await heir._adopt("another account") == []
                await let_pass(heir, 1000.0)
                ((adopted, claim),) = await heir._adopt(account)
                assert (adopted, claim.is_here) == (record, True)


async def test_what_an_adopter_leaves_is_adopted_again(place: str) -> None:
    """A process that leaves gives the jobs of dead ones to others; its own wait for `resume`."""
    record = lost(task_id="task", state=JobState.PROCESSING)
    journals = [Journal(place) for _ in range(3)]
    async with journals[0] as dead, journals[1] as first, journals[2] as second:
        await dead._add_or_get(record, account="account")
        await let_pass(first, 1000.0)
        ((_, claim),) = await first._adopt("account")
        await claim.save(record, release=True)
        ((_, claim),) = await second._adopt("account")
        claim.forget_former_owner()
        await claim.save(record, release=True)
        assert await first._adopt("account") == []
        assert len(await first._claim_all("account")) == 1


@contextmanager
def between_writes(place: str) -> Iterator[None]:
    """Let no process be stopped while it writes: it would keep a journal's file locked."""
    if "://" in place:
        yield
        return
    with closing(sqlite3.connect(place, timeout=HANG, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield


async def test_a_process_that_comes_back_writes_nothing(tmp_path: Path, place: str) -> None:
    """Stopped for longer than its lease, a process finds its job taken and leaves it alone."""
    song = track(tmp_path)
    async with Emulator(seconds=2.0, separate=False) as vendor:
        async with process(vendor, tmp_path, song, journal=place, lease=LEASE) as stopped:
            await until(lambda: asked(vendor, "byId") >= 1)
            with between_writes(place):
                stopped.send_signal(signal.SIGSTOP)
            async with connected(vendor, Journal(place, lease=LEASE)):
                with anyio.fail_after(HANG):
                    while is_unfinished(record := await record_of(place)):
                        await anyio.sleep(0.05)
                stopped.send_signal(signal.SIGCONT)
                out = await stopped.read()
            assert JobDetachedError.__name__.encode() in out or b'"error": null' in out
        assert in_order(await record_of(place)) == in_order(record)
        assert len(vendor.submissions) == 1


async def test_a_task_that_a_former_owner_learns_is_handed_over(place: str) -> None:
    """The response that comes to a process whose job was taken names the task to the successor."""
    async with Emulator(seconds=0.5, separate=False, listing=True) as vendor:
        account = compute_account(vendor.api_key, vendor.base_url)
        record = lost(sent_at=time.time(), created_at=time.time())
        async with Journal(place) as former, connected(vendor, Journal(place, lease=LEASE)) as heir:
            await former._add_or_get(record, account=account)
            claim = former._make_claim(record.id)
            assert claim is not None
            await let_pass(former, 1000.0)
            await until(lambda: "1 jobs" in repr(heir))
            task_id = await accepted_by(vendor)
            learned = attrs.evolve(record, task_id=task_id, state=JobState.PROCESSING)
            with pytest.raises(ClaimLostError):
                await claim.save(learned)
            await former._hand_over(learned)
            (job,) = await heir.resume()
            with anyio.fail_after(HANG):
                assert (await job).task_id == task_id


async def test_leaving_does_not_wait_for_an_adopted_job(place: str) -> None:
    """A session that drains leaves the job of a dead process to the next one."""
    async with Emulator(seconds=600.0, separate=False) as vendor:
        account = compute_account(vendor.api_key, vendor.base_url)
        record = lost(task_id=await accepted_by(vendor), state=JobState.PROCESSING)
        async with Journal(place) as dead:
            await dead._add_or_get(record, account=account)
            await let_pass(dead, 1000.0)
            with anyio.fail_after(HANG):
                async with connected(vendor, Journal(place, lease=LEASE)) as session:
                    await until(lambda: "1 jobs" in repr(session))
        async with Journal(place) as heir:
            ((adopted, _),) = await heir._adopt(account)
            assert adopted.id == record.id
