"""What the user gets when the journal's database is away: the last rows of ``table.py``."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from factories.accounts import open_process
from factories.postgres_fixtures import POSTGRES
from factories.sessions import TRACK, connected
from factories.tcp_proxy import Proxy
from factories.watching import until
from table import OUTAGES, SPARED, TARGET, Outage
from test_fault_table import digests, served_by

from musicgpt_async import JobState, JournalError
from musicgpt_async.emulator import Emulator
from musicgpt_async.journal import Journal

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("postgres_url", POSTGRES[-1:], indirect=True),
]

WITHIN = [each for each in OUTAGES if each.error is None and not each.is_killed]
KILLED = [each for each in OUTAGES if each.is_killed]
SECONDS = 3.0  # of a conversion


def name_of(case: Outage) -> str:
    """Return a test's name for a case."""
    return case.what


async def be_away(proxy: Proxy, vendor: Emulator) -> None:
    """Take the database away for a while, in which nothing is submitted or polled."""
    proxy.cut(refuse=True)
    await anyio.sleep(0.3)  # what was granted before may still be on its way
    before = len(vendor.submissions), vendor.polls
    await anyio.sleep(1.2)
    assert (len(vendor.submissions), vendor.polls) == before
    proxy.restore()


@pytest.mark.parametrize("case", WITHIN, ids=name_of)
async def test_a_job_waits_for_its_database(case: Outage, proxy: Proxy, tmp_path: Path) -> None:
    """One row: while the database is away nothing is sent or asked, and then the jobs continue."""
    async with Emulator(seconds=SECONDS, separate=False, faults=case.faults) as vendor:
        async with connected(vendor, proxy.url) as session, anyio.create_task_group() as tasks:
            job = None
            if case is WITHIN[0]:
                tasks.start_soon(be_away, proxy, vendor)
                await anyio.sleep(0.1)
            job = session.submit(TRACK, stems=[TARGET, SPARED])
            tasks.start_soon(job.download, tmp_path / "stems")
            if case is not WITHIN[0]:
                await until(lambda: case.begins(vendor))
                await be_away(proxy, vendor)
        assert len(vendor.submissions) == case.submissions
        assert digests(tmp_path / "stems") == await served_by(vendor, "wav")
        async with Journal(proxy.url) as journal:
            (record,) = [each async for each in journal.records()]
        assert record.state is JobState.COMPLETED


@pytest.mark.parametrize("case", KILLED, ids=name_of)
async def test_another_process_continues_what_was_killed_in_an_outage(
    case: Outage, proxy: Proxy, tmp_path: Path
) -> None:
    """One row: a process that dies while the database is away leaves nothing to pay for again."""
    async with (
        Emulator(seconds=SECONDS, separate=False, faults=case.faults) as vendor,
        open_process(vendor, proxy.url, ["song.mp3"]) as killed,
    ):
        killed.begin()
        await until(lambda: case.begins(vendor))
        proxy.cut(refuse=True)
        await anyio.sleep(SECONDS / 2)  # the response comes, and cannot be saved
        killed.running.kill()
        await killed.running.wait()
        proxy.restore()
        async with connected(vendor, proxy.url) as session:
            (job,) = await session.resume()
            await job.download(tmp_path / "stems")
        assert len(vendor.submissions) == case.submissions
        named = {name.partition(" - ")[2] for name in digests(tmp_path / "stems")}
        served = await served_by(vendor, "wav")
        assert named == {name.partition(" - ")[2] for name in served}


async def test_a_session_does_not_start_without_its_database(proxy: Proxy) -> None:
    """One row: the start fails with what the database said, and nothing is sent without it."""
    (case,) = (each for each in OUTAGES if each.error is not None)
    async with Emulator(separate=False) as vendor:
        proxy.cut(refuse=True)
        with pytest.raises(JournalError, match="cannot be used"):
            await connected(vendor, proxy.url).start()
        assert len(vendor.submissions) == case.submissions
