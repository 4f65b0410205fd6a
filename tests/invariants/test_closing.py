"""Leaving a session: every call that waits in a user's task ends, with words that are true."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import anyio
import pytest

from musicgpt_async import (
    ConfigurationError,
    JobState,
    Limits,
    MusicGPTError,
    MusicGPTSession,
    SessionClosedError,
    SubmissionUnknownError,
)
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.testing import accelerated_loop

pytestmark = pytest.mark.anyio

AUDIO = b"ID3" + bytes(3000)
AT_ONCE = 5.0  # seconds; far more than it takes, and nothing here ends by itself


async def closed_while(session: MusicGPTSession, call: Awaitable[Any]) -> MusicGPTError:
    """Close a session while a call waits in another task; return what the call raised."""
    task = asyncio.ensure_future(call)
    try:
        await anyio.sleep(0.05)
        assert not task.done()
        await session.aclose(drain=False)
        await asyncio.wait([task], timeout=AT_ONCE)
        assert task.done(), "the call waits on though the session is closed"
        error = task.exception()
        assert isinstance(error, MusicGPTError), error
        return error
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_download_that_waits_for_fresh_links_ends(
    connect: Any, tmp_path: Path, until: Any
) -> None:
    """A download that waits for fresh links ends with an error when the session is closed."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        session = await connect(vendor).start()
        job = session.submit(("song.mp3", AUDIO))
        await job
        vendor.script(
            Fault("file", "status", status=403, times=None),
            Fault("byId", "stall_answer", times=None),
        )

        async def download() -> None:
            await job.download(tmp_path)

        task = asyncio.ensure_future(download())
        await until(lambda: vendor.faults.fired("stall_answer"))
        error = await closed_while(session, asyncio.shield(task))
        assert isinstance(error, SessionClosedError)
        assert "not open" not in str(error)  # it was open: what happened is that it was closed


async def test_a_download_under_way_ends(connect: Any, tmp_path: Path, until: Any) -> None:
    """A download from a silent host ends with an error when the session is closed."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        session = await connect(vendor).start()
        job = session.submit(("song.mp3", AUDIO))
        await job
        vendor.script(Fault("file", "stall", times=None))
        task = asyncio.ensure_future(job.download(tmp_path))
        await until(lambda: vendor.faults.fired("stall"))
        error = await closed_while(session, asyncio.shield(task))
        assert isinstance(error, SessionClosedError)


async def test_a_download_that_waits_for_its_turn_ends(
    connect: Any, tmp_path: Path, until: Any
) -> None:
    """One download at a time, and that one is stuck: those behind it end with the session too."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        session = await connect(vendor, downloads=1).start()
        jobs = [session.submit((f"{number}.mp3", AUDIO)) for number in range(3)]
        for job in jobs:
            await job
        vendor.script(Fault("file", "stall", times=None))
        tasks = [asyncio.ensure_future(job.download(tmp_path)) for job in jobs]
        await until(lambda: vendor.faults.fired("stall"))
        await closed_while(session, asyncio.shield(tasks[2]))
        await asyncio.wait(tasks, timeout=AT_ONCE)
        assert all(task.done() for task in tasks)
        assert all(isinstance(task.exception(), SessionClosedError) for task in tasks)


async def test_a_bind_that_waits_for_the_vendor_ends(
    connect: Any, make_track: Any, tmp_path: Path
) -> None:
    """bind() asks a silent vendor when the session is closed: it says so."""
    path = tmp_path / "journal.db"
    lost = Fault("submit", "drop_before_answer")
    async with Emulator(seconds=0.05, separate=False, listing=False, faults=[lost]) as vendor:
        session = await connect(vendor, journal=path).start()
        job = session.submit(make_track())
        with pytest.raises(SubmissionUnknownError):
            await job
        vendor.script(Fault("byId", "stall_answer", times=None))
        bind = session.bind(job.id, vendor.submissions[0].task_id)
        assert isinstance(await closed_while(session, bind), SessionClosedError)


async def test_a_handle_looked_up_in_a_locked_journal_ends(
    connect: Any, make_track: Any, hold_journal: Any, tmp_path: Path
) -> None:
    """retrieve() either answers though the journal is locked, or ends with the session."""
    path = tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False) as vendor:
        async with connect(vendor, journal=path) as session:
            job = session.submit(make_track())
            await job
        session = await connect(vendor, journal=path).start()
        async with hold_journal(path):
            task = asyncio.ensure_future(session.retrieve(job.id))
            await asyncio.wait([task], timeout=0.5)
            if task.done():
                assert (await task).id == job.id
                return
            closing = asyncio.ensure_future(session.aclose(drain=False))
            await asyncio.wait([task], timeout=AT_ONCE)
        await closing
        assert isinstance(task.exception(), SessionClosedError)


@pytest.mark.parametrize("drain", [False, True])
async def test_streams_of_events_end(drain: bool, connect: Any) -> None:
    """Of the session, of a job that runs and of one that has ended: each ends with the session."""
    async with Emulator(seconds=0.3, separate=False) as vendor:
        session = await connect(vendor, limits=Limits(parallel=1, polls_per_minute=6000)).start()
        done = session.submit(("done.mp3", AUDIO))
        await done
        running, queued = session.submit(("a.mp3", AUDIO)), session.submit(("b.mp3", AUDIO))

        async def read(stream: AsyncIterator[Any]) -> None:
            async for _ in stream:
                pass

        streams = [session.events(), *(job.events() for job in (done, running, queued))]
        tasks = [asyncio.ensure_future(read(stream)) for stream in streams]
        await anyio.sleep(0.05)
        await session.aclose(drain=drain)
        await asyncio.wait(tasks, timeout=AT_ONCE)
        assert all(task.done() and not task.exception() for task in tasks)
        assert done.state is JobState.COMPLETED


async def test_waiters_of_a_queued_job_are_told_that_nothing_was_sent(connect: Any) -> None:
    """accepted() and await of a queued job end when the session is closed; nothing was paid."""
    async with Emulator(seconds=60, separate=False) as vendor:
        session = await connect(vendor, limits=Limits(parallel=1, polls_per_minute=6000)).start()
        await session.submit(("first.mp3", AUDIO)).accepted()
        queued = session.submit(("queued.mp3", AUDIO))
        error = await closed_while(session, queued.accepted())
        assert "not submitted" in str(error)
        with pytest.raises(type(error), match="not submitted"):
            await queued
        assert len(vendor.submissions) == 1


async def test_extract_ends(connect: Any, tmp_path: Path) -> None:
    """extract() of a running job ends when the session is closed; the error says it continues."""
    async with Emulator(seconds=60, separate=False) as vendor:
        session = await connect(vendor).start()
        call = asyncio.ensure_future(session.extract(("song.mp3", AUDIO), tmp_path))
        while not vendor.submissions:
            await anyio.sleep(0.01)
        await anyio.sleep(0.1)
        error = await closed_while(session, asyncio.shield(call))
        assert vendor.submissions[0].task_id in str(error)


async def test_closing_with_a_locked_journal_can_be_cut_short(
    connect: Any, make_track: Any, hold_journal: Any, tmp_path: Path
) -> None:
    """With the journal locked elsewhere, a timeout around aclose() is respected."""
    path = tmp_path / "journal.db"
    async with Emulator(seconds=60, separate=False) as vendor:
        session = await connect(vendor, journal=path).start()
        await session.submit(make_track()).accepted()
        await anyio.sleep(0.1)

        async def close() -> None:
            with anyio.move_on_after(0.5):
                await session.aclose(drain=False)

        async with hold_journal(path):
            closing = asyncio.ensure_future(close())
            await asyncio.wait([closing], timeout=7.0)  # without the cut it takes ten and more
            in_time = closing.done()
        await asyncio.wait([closing])
        assert in_time


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": accelerated_loop(10)})], ids=["hasty"]
)
@pytest.mark.hang(600.0)
async def test_closing_with_a_locked_journal_has_one_bound(
    connect: Any, make_track: Any, hold_journal: Any, tmp_path: Path
) -> None:
    """With the journal locked elsewhere, aclose() ends within a minute."""
    path = tmp_path / "journal.db"
    async with Emulator(seconds=3600, separate=False, parallel=None) as vendor:
        session = await connect(vendor, journal=path).start()
        for number in range(5):
            await session.submit(make_track(f"{number}.mp3")).accepted()
        await anyio.sleep(2)
        async with hold_journal(path):
            closing = asyncio.ensure_future(session.aclose(drain=False))
            await asyncio.wait([closing], timeout=60)
            in_time = closing.done()
        await asyncio.wait([closing])
        assert in_time


async def test_a_cut_short_leaving_loses_nothing(
    connect: Any, make_track: Any, hold_journal: Any, paid: Any, tmp_path: Path
) -> None:
    """After an aclose() that was cut short, the next session knows the job and pays nothing."""
    path, song = tmp_path / "journal.db", make_track()
    async with Emulator(seconds=1.0, separate=False) as vendor:
        session = await connect(vendor, journal=path).start()
        await session.submit(song).accepted()
        await anyio.sleep(0.1)
        with anyio.move_on_after(0.01):
            await session.aclose(drain=False)
        async with connect(vendor, journal=path) as session:
            assert (await session.submit(song)).task_id == vendor.submissions[0].task_id
        assert paid(vendor) == {"song.mp3": 1}


async def test_start_beside_start_is_refused(connect: Any) -> None:
    """Of two tasks that start a session one is refused; the session works and can be closed."""
    before = asyncio.all_tasks()
    async with Emulator(seconds=0.05, separate=False) as vendor:
        session = connect(vendor)
        found = await asyncio.gather(session.start(), session.start(), return_exceptions=True)
        assert [type(each) for each in found].count(ConfigurationError) == 1
        assert await session.submit(("song.mp3", AUDIO))
        await session.aclose()
        with pytest.raises(SessionClosedError):
            session.submit(("song.mp3", AUDIO))
        hosts = {task for task in asyncio.all_tasks() - before if "session" in task.get_name()}
        assert not hosts


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
async def test_closing_beside_start_is_safe(
    turns: int, connect: Any, make_track: Any, tmp_path: Path
) -> None:
    """aclose() while start() opens the journal: the session is closed afterwards."""
    before = asyncio.all_tasks()
    async with Emulator(seconds=0.05, separate=False) as vendor:
        session = connect(vendor, journal=tmp_path / "journal.db")
        starting = asyncio.ensure_future(session.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        await session.aclose(drain=False)
        await asyncio.wait([starting], timeout=AT_ONCE)
        assert starting.done()
        assert starting.exception() is None or isinstance(starting.exception(), MusicGPTError)
        with pytest.raises(SessionClosedError):
            session.submit(make_track())
        hosts = {task for task in asyncio.all_tasks() - before if "session" in task.get_name()}
        assert not hosts


async def test_closing_beside_closing_is_safe(connect: Any) -> None:
    """Two tasks close one session, the second without draining: both return."""
    async with Emulator(seconds=60, separate=False) as vendor:
        session = await connect(vendor).start()
        job = session.submit(("song.mp3", AUDIO))
        await job.accepted()
        draining = asyncio.ensure_future(session.aclose())
        await anyio.sleep(0.05)
        assert not draining.done()
        await session.aclose(drain=False)
        await asyncio.wait([draining], timeout=AT_ONCE)
        assert draining.done()
        assert job.done()
        await session.aclose()


async def test_a_drain_is_ended_by_cancelling_it(connect: Any) -> None:
    """A timeout around a draining aclose() closes the session and detaches running jobs."""
    async with Emulator(seconds=60, separate=False) as vendor:
        session = await connect(vendor).start()
        job = session.submit(("song.mp3", AUDIO))
        await job.accepted()
        with anyio.move_on_after(0.1):
            await session.aclose()
        assert job.done()
        with pytest.raises(SessionClosedError):
            session.submit(("song.mp3", AUDIO))


# A process of its own: what waits for itself cannot be ended by a test in the same loop.
INSIDE = """
import aiohttp, anyio, asyncio, sys
from musicgpt_async import ConfigurationError, MusicGPTSession

AUDIO = b"ID3" + bytes(3000)

async def main(key, base_url, folder, how):
    trace = aiohttp.TraceConfig()

    async def on_chunk_sent(*_):
        if how == "task of a hook":
            await drain_in_a_task()

    trace.on_request_chunk_sent.append(on_chunk_sent)
    http = aiohttp.ClientSession(trace_configs=[trace])
    session = await MusicGPTSession(key, base_url=base_url, http=http).start()

    async def drain_in_a_task():
        try:
            await asyncio.create_task(session.aclose())
        except ConfigurationError:
            print("refused")
            await session.aclose(drain=False)

    async def tracks():
        yield "a.mp3", AUDIO
        await session.aclose(drain=False)

    async def stream():
        yield AUDIO
        if how == "stream":
            await session.aclose(drain=False)
        if how == "task of a stream":
            await drain_in_a_task()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.aclose)
        yield AUDIO

    try:
        if "hook" in how:
            await session.submit(("a.mp3", AUDIO))
        elif how == "iterable":
            async for _ in session.extract_many(tracks(), folder):
                pass
        else:
            await session.submit(("a.mp3", stream()))
    except Exception as error:
        print(type(error).__name__)
    await session.aclose(drain=False)
    await http.close()
    print("closed")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.hang(60.0)
@pytest.mark.parametrize("how", ["iterable", "stream", "child of a stream"])
async def test_a_session_is_closed_by_code_that_runs_inside_it(how: str, tmp_path: Path) -> None:
    """aclose() in a batch's iterable or in a stream: the session is closed, and nothing hangs."""
    assert b"closed" in await close_inside(how, tmp_path)


async def close_inside(how: str, tmp_path: Path) -> bytes:
    """Return what the process printed."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        arguments = (vendor.api_key, vendor.base_url, str(tmp_path), how)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", INSIDE, *arguments, stdout=asyncio.subprocess.PIPE
        )
        output = b""
        try:
            with anyio.move_on_after(30.0):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return output


@pytest.mark.hang(60.0)
@pytest.mark.parametrize("how", ["task of a stream", "task of a hook"])
async def test_a_task_that_the_session_may_wait_for_cannot_drain_it(
    how: str, tmp_path: Path
) -> None:
    """aclose() in a task that a stream or hook awaits is refused; with drain=False it closes."""
    output = await close_inside(how, tmp_path)
    assert b"refused" in output
    assert b"closed" in output


async def test_a_task_of_a_callback_may_drain(connect: Any) -> None:
    """aclose() in a task that a done callback starts waits for the jobs that still run."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        session = await connect(vendor).start()
        closing: list[asyncio.Task[None]] = []
        first = session.submit(("first.mp3", AUDIO))
        await first.accepted()
        second = session.submit(("second.mp3", AUDIO + b"2"))
        first.add_done_callback(lambda _: closing.append(asyncio.ensure_future(session.aclose())))
        await first
        await anyio.sleep(0.01)
        await closing[0]
        assert second.state is JobState.COMPLETED


async def test_a_start_that_is_cancelled_at_any_turn_leaves_nothing(connect: Any) -> None:
    """start() is cancelled in each of its first turns of the loop: no task is left."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        before = asyncio.all_tasks()
        for turns in range(12):
            session = connect(vendor)
            starting = asyncio.ensure_future(session.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            if not starting.cancelled():
                await session.aclose(drain=False)
            await anyio.sleep(0.05)
            assert not asyncio.all_tasks() - before


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": accelerated_loop(400)})], ids=["accelerated"]
)
@pytest.mark.hang(1800.0)
async def test_a_download_that_needs_a_poll_ends_though_polls_are_throttled(
    connect: Any, tmp_path: Path
) -> None:
    """Its links have run out and byId answers 429 for ever: the download ends in an error."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        session = await connect(vendor).start()
        job = session.submit(("song.mp3", AUDIO))
        await job
        vendor.script(
            Fault("file", "status", status=403, times=None),
            Fault("byId", "status", status=429, times=None, early=True),
        )
        with pytest.raises(MusicGPTError):
            await job.download(tmp_path)
