"""retrieve(): any job by its id, in any session and process, after any restart."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from factories.sessions import SOUND, connected

from musicgpt_async import (
    ExtractionFailedError,
    InvalidOptionError,
    JobDetachedError,
    JobNotFoundError,
    JobState,
    MusicGPTSession,
    NotFoundError,
    SubmissionUnknownError,
)
from musicgpt_async._engine import jobs as engine_jobs
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

TRACK = ("song.mp3", SOUND)
STEMS = ["bass"]


def file_requests(vendor: Emulator) -> int:
    """Return how often a stem's file was asked for."""
    return sum("bass" in request.path for request in vendor.requests)


async def test_all_is_there_after_a_restart(vendor: Emulator, tmp_path: Path) -> None:
    """Fetch all, restart, fetch again: the same ids, stems and files; nothing is asked twice."""
    journal = tmp_path / "journal.db"
    async with connected(vendor, journal) as session:
        jobs = [session.submit((f"{n}.mp3", SOUND + bytes([n])), stems=STEMS) for n in range(3)]
        files = [await job.download(tmp_path / job.id) for job in jobs]
    before = len(vendor.requests)
    async with connected(vendor, journal) as session:
        found = [await session.retrieve(job.id) for job in jobs]
        assert [(each.id, each.state, each.title) for each in found] == [
            (job.id, JobState.COMPLETED, job.title) for job in jobs
        ]
        assert [(await each).stems for each in found] == [job.result().stems for job in jobs]
        assert [await each.download(tmp_path / each.id) for each in found] == files
    assert len(vendor.requests) == before


async def test_a_file_is_downloaded_once_for_all_who_retrieve(
    vendor: Emulator, tmp_path: Path
) -> None:
    """Downloads at once of handles that were retrieved one by one fetch one file."""
    journal = tmp_path / "journal.db"
    async with connected(vendor, journal) as session:
        job = session.submit(TRACK, stems=STEMS)
        await job
    async with connected(vendor, journal) as session:

        async def fetch() -> Path:
            handle = await session.retrieve(job.id)
            return (await handle.download(tmp_path))["bass"]

        first = await asyncio.gather(*[fetch() for _ in range(4)])
        requests = file_requests(vendor)
        gc.collect()
        assert {await fetch(), *first} == {tmp_path / "song - bass.wav"}
    assert requests == file_requests(vendor) > 0


async def test_any_session_on_the_journal_retrieves_any_job(tmp_path: Path) -> None:
    """A session follows the other's job: its state, its end, and its failure alike."""
    async with AsyncExitStack() as stack:
        vendor = await stack.enter_async_context(Emulator(seconds=1, separate=False))
        vendor.script(Fault("job", "fails", message="not music", after=1))
        owner, other = [
            await stack.enter_async_context(connected(vendor, tmp_path / "journal.db"))
            for _ in range(2)
        ]
        jobs = [owner.submit((f"{n}.mp3", SOUND + bytes([n]))) for n in range(2)]
        tasks = [(await job.accepted()).task_id for job in jobs]
        while True:  # the acceptance is saved when there is time
            found = [await other.retrieve(job.id) for job in jobs]
            if [each.task_id for each in found] == tasks:
                break
            await anyio.sleep(0.05)
        assert [each.state for each in found] == [JobState.PROCESSING] * 2
        assert (await found[0]).stems == (await jobs[0]).stems
        with pytest.raises(ExtractionFailedError, match="not music"):
            await found[1]
        assert found[0] is await other.retrieve(jobs[0].id)
    assert len(vendor.submissions) == 2


@pytest.mark.parametrize("resumes", [False, True])
async def test_a_job_without_an_owner_is_resumed(resumes: bool, tmp_path: Path) -> None:
    """After a restart a retrieved handle ends by itself, also if resume() follows it."""
    journal = tmp_path / "journal.db"
    async with Emulator(seconds=0.5, separate=False) as vendor:
        session = await connected(vendor, journal).start()
        job = session.submit(TRACK, stems=STEMS)
        await job.accepted()
        await session.aclose(drain=False)
        async with connected(vendor, journal) as session:
            handle = await session.retrieve(job.id)
            if resumes:
                await session.resume()
            with anyio.fail_after(30):
                assert (await handle).task_id == job.task_id
            assert await session.retrieve(job.id) is handle
        assert len(vendor.submissions) == 1


async def test_a_follower_continues_when_the_owner_leaves(tmp_path: Path) -> None:
    """The job of a session that is closed is polled by the one that followed it."""
    journal = tmp_path / "journal.db"
    async with (
        Emulator(seconds=1.5, separate=False) as vendor,
        connected(vendor, journal) as other,
    ):
        owner = await connected(vendor, journal).start()
        job = owner.submit(TRACK)
        await job.accepted()
        handle = await other.retrieve(job.id)
        await owner.aclose(drain=False)
        with anyio.fail_after(30):
            assert (await handle).task_id == job.task_id
    assert len(vendor.submissions) == 1


async def test_a_cancelled_job_is_followed_again(vendor: Emulator, tmp_path: Path) -> None:
    """A job that MusicGPT continues can be retrieved; one that was never sent has ended."""
    async with connected(vendor, tmp_path / "journal.db") as session:
        job = session.submit(TRACK)
        await job.accepted()
        job.cancel()
        assert (await (await session.retrieve(job.id))).task_id == job.task_id
        unsent = session.submit(("other.mp3", SOUND))
        unsent.cancel()
        with pytest.raises(JobDetachedError, match="not submitted"):
            await (await session.retrieve(unsent.id))


async def test_failures_are_remembered(vendor: Emulator, tmp_path: Path) -> None:
    """A failed and an unknown job end as they did, in another session, and are not sent again."""
    vendor.script(Fault("job", "fails", message="not music"))
    journal = tmp_path / "journal.db"
    async with connected(vendor, journal) as session:
        failed = session.submit(TRACK)
        with pytest.raises(ExtractionFailedError):
            await failed
        vendor.script(Fault("submit", "drop_before_answer"))
        unknown = session.submit(("other.mp3", SOUND))
        with pytest.raises(SubmissionUnknownError):
            await unknown
    async with connected(vendor, journal) as session:
        with pytest.raises(ExtractionFailedError, match="not music") as caught:
            await (await session.retrieve(failed.id))
        assert caught.value.task_id == failed.task_id
        with pytest.raises(SubmissionUnknownError, match="bind"):
            await (await session.retrieve(unknown.id))
    assert len(vendor.submissions) == 2


async def test_without_a_journal_the_latest_are_remembered(
    session: MusicGPTSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live and finished jobs of the session are found; memory for finished ones is bounded."""
    monkeypatch.setattr(engine_jobs, "MAX_ENDED", 2)
    ids = []
    for _ in range(3):
        job = session.submit(TRACK)
        assert await session.retrieve(job.id) is job
        await job
        ids.append(job.id)
    del job
    gc.collect()
    with pytest.raises(JobNotFoundError, match="journal="):
        await session.retrieve(ids[0])
    assert [(await session.retrieve(each)).id for each in ids[1:]] == ids[1:]


@pytest.mark.parametrize("with_journal", [False, True])
@pytest.mark.parametrize("job_id", ["nobody", "", "a\0b", "\ud800", "x" * 10_000])
async def test_an_unknown_id_is_not_found(
    with_journal: bool, job_id: str, vendor: Emulator, tmp_path: Path
) -> None:
    """The error is a LookupError, none of MusicGPT's, which is not asked."""
    async with connected(vendor, tmp_path / "journal.db" if with_journal else None) as session:
        with pytest.raises(JobNotFoundError) as caught:
            await session.retrieve(job_id)
        assert isinstance(caught.value, LookupError)
        assert not isinstance(caught.value, NotFoundError)
        with pytest.raises(InvalidOptionError):
            await session.retrieve(7)  # type: ignore[arg-type]
    assert not vendor.requests


async def test_a_tasks_name_is_no_jobs_id(vendor: Emulator, tmp_path: Path) -> None:
    """MusicGPT's names are attach()'s."""
    async with connected(vendor, tmp_path / "journal.db") as session:
        extraction = await session.submit(TRACK)
        with pytest.raises(JobNotFoundError):
            await session.retrieve(extraction.task_id)


async def test_a_followed_job_ends_with_the_session(tmp_path: Path) -> None:
    """Closing the session detaches a retrieved handle at once; its owner continues."""
    journal = tmp_path / "journal.db"
    async with Emulator(seconds=60, separate=False) as vendor:
        owner, other = [await connected(vendor, journal).start() for _ in range(2)]
        job = owner.submit(TRACK)
        await job.accepted()
        handle = await other.retrieve(job.id)
        with anyio.fail_after(5):
            await other.aclose(drain=False)
            with pytest.raises(JobDetachedError):
                await handle
        assert not job.done()
        await owner.aclose(drain=False)
