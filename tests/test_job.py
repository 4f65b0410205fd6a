"""The handle: many waiters, one outcome, fresh exceptions."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import anyio
import pytest
from factories.sessions import TRACK

from musicgpt_async import (
    DeadlineError,
    ExtractionFailedError,
    ExtractionJob,
    InvalidOptionError,
    JobDetachedError,
    JobState,
    MusicGPTSession,
    NotFinishedError,
    events,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = [pytest.mark.anyio, pytest.mark.accelerated(20)]


async def test_a_cancelled_waiter_affects_no_other(session: MusicGPTSession) -> None:
    """Cancelling one of many waiters, or a timeout around one, leaves the job and the others."""
    job = session.submit(TRACK)
    waiters = [asyncio.ensure_future(job.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(job, timeout=0)
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] is results[2] is await job


async def test_a_job_ends_without_a_waiter(session: MusicGPTSession) -> None:
    """`while not job.done()` ends: the job moves by itself."""
    job = session.submit(TRACK)
    while not job.done():
        await asyncio.sleep(0.01)
    assert job.result().task_id == job.task_id


async def test_each_raise_is_a_fresh_exception(vendor: Emulator, session: MusicGPTSession) -> None:
    """Two awaits of a failed job raise equal errors that are not the same object."""
    vendor.script(Fault("job", "fails"))
    job = session.submit(TRACK)
    raised = []
    for _ in range(2):
        with pytest.raises(ExtractionFailedError) as caught:
            await job
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert str(raised[0]) == str(raised[1])
    assert raised[0].job is raised[1].job is job
    assert isinstance(job.exception(), ExtractionFailedError)


async def test_a_wait_that_runs_out_leaves_the_job_going(
    vendor: Emulator, session: MusicGPTSession
) -> None:
    """`wait(timeout=)` raises a DeadlineError that bears the handle; the handle still completes."""
    job = session.submit(TRACK)
    with pytest.raises(DeadlineError, match="it continues") as caught:
        await job.wait(timeout=0)
    assert caught.value.job is job
    assert not job.done()
    assert await caught.value.job


async def test_result_before_the_end_is_an_error(session: MusicGPTSession) -> None:
    """result() and exception() of a job that runs say that it runs."""
    job = session.submit(TRACK)
    with pytest.raises(NotFinishedError, match="await the job"):
        job.result()
    with pytest.raises(asyncio.InvalidStateError):
        job.exception()
    await job
    assert job.exception() is None


async def test_accepted_returns_musicgpts_response(
    vendor: Emulator, session: MusicGPTSession
) -> None:
    """accepted() returns with the task_id, the eta and the estimate, before the end."""
    vendor.script(Fault("job", "never_finishes"))
    job = session.submit(TRACK)
    acceptance = await job.accepted()
    assert acceptance.task_id == job.task_id == vendor.submissions[0].task_id
    assert acceptance.conversion_id == job.conversion_id
    assert job.credit_estimate == acceptance.credit_estimate is not None
    assert job.state is JobState.PROCESSING


async def test_done_callbacks_are_called_once_each(session: MusicGPTSession) -> None:
    """A callback gets the handle, added before the end or after it; one taken back gets none."""
    job, called = session.submit(TRACK), list[ExtractionJob]()

    def taken_back(_: ExtractionJob) -> None:
        raise AssertionError

    job.add_done_callback(called.append)
    job.add_done_callback(taken_back)
    assert job.remove_done_callback(taken_back) == 1
    await job
    await asyncio.sleep(0)
    assert called == [job]
    job.add_done_callback(called.append)
    await asyncio.sleep(0)
    assert called == [job, job]


async def test_a_queued_job_that_is_cancelled_is_never_sent(
    vendor: Emulator, session: MusicGPTSession
) -> None:
    """cancel() before the submit costs nothing: the track is not sent."""
    job = session.submit(TRACK)
    assert job.cancel()
    assert not job.cancel()
    with pytest.raises(JobDetachedError, match="not submitted"):
        await job
    await session.submit(TRACK)
    assert len(vendor.submissions) == 1


async def test_a_running_job_that_is_cancelled_gives_its_slot_back(
    vendor: Emulator, session: MusicGPTSession
) -> None:
    """cancel() of an accepted job detaches it; the error has the ids to resume it by."""
    vendor.script(Fault("job", "never_finishes"))
    job = session.submit(TRACK)
    await job.accepted()
    job.cancel()
    error = job.exception()
    assert isinstance(error, JobDetachedError)
    assert error.task_id == job.task_id
    assert session.slots[0] == 0


async def test_an_upload_that_is_cancelled_is_not_a_submission(vendor: Emulator) -> None:
    """cancel() during an upload closes the connection before the body is complete."""
    vendor.script(Fault("submit", "stall_read", at=1000))
    async with MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as session:
        job = session.submit(("long.mp3", bytes(32 << 20)))
        while job.state is not JobState.UPLOADING:
            await asyncio.sleep(0.01)
        job.cancel()
        assert session.slots[0] == 0
    assert not vendor.submissions


async def test_a_jobs_events_start_at_its_state_and_end_with_it(
    session: MusicGPTSession,
) -> None:
    """events() ends by itself, also for a reader that comes after the end."""
    job = session.submit(TRACK)
    kinds = [type(event) async for event in job.events()]
    assert kinds[0] is events.Queued
    assert kinds[-1] is events.Completed
    assert [type(event) async for event in job.events()] == [events.Completed]


async def test_a_stream_that_is_read_after_the_download_ends_too(
    session: MusicGPTSession, tmp_path: Path
) -> None:
    """events() of a downloaded job reports that at once, and ends."""
    job = session.submit(TRACK, stems=["bass"])
    await job.download(tmp_path)
    assert [type(event) async for event in job.events()] == [events.Downloaded]


@pytest.mark.parametrize("when", [events.Accepted, events.Completed])
async def test_a_stream_ends_with_a_download_that_is_broken_off(
    vendor: Emulator, session: MusicGPTSession, when: type[events.Event], tmp_path: Path
) -> None:
    """events() of a job whose only download was cancelled end all the same."""
    vendor.script(Fault("file", "stall_answer", times=None))
    job = session.submit(TRACK, stems=["bass"])
    download = asyncio.create_task(job.download(tmp_path))
    kinds: list[type[events.Event]] = []

    async def break_off() -> None:
        while when not in kinds or (job.done() and not list(tmp_path.iterdir())):
            await anyio.sleep(0.01)
        download.cancel()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(break_off)
            async for event in job.events():
                kinds.append(type(event))  # noqa: PERF401 - it is looked at meanwhile
    assert kinds[-1] is events.Completed


async def test_unknown_formats_and_stems_are_refused(
    session: MusicGPTSession, tmp_path: Path
) -> None:
    """download() names the formats there are, and the stems that the job has."""
    job = session.submit(TRACK, stems=["bass"])
    with pytest.raises(InvalidOptionError, match="wav, mp3, both"):
        await job.download(tmp_path, format="flac")  # type: ignore[call-overload] # the point
    with pytest.raises(InvalidOptionError, match="it has: bass"):
        await job.download(tmp_path, stems=["drums"])


async def test_an_error_survives_pickling_without_its_handle(
    vendor: Emulator, session: MusicGPTSession
) -> None:
    """An error can cross processes: its data goes along, the handle stays."""
    vendor.script(Fault("job", "fails", message="No sound"))
    job = session.submit(TRACK)
    with pytest.raises(ExtractionFailedError) as caught:
        await job
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (str(copy), copy.vendor_message, copy.job) == (str(caught.value), "No sound", None)
