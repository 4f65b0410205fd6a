"""Cancellation out of user code fails that job, poll or batch, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from musicgpt_async import (
    ExtractionJob,
    Journal,
    JournalError,
    Limits,
    MusicGPTError,
    MusicGPTSession,
    Outcome,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

AUDIO = b"ID3" + bytes(3000)
STEMS = ["bass"]


@pytest.fixture
async def vendor() -> AsyncIterator[Emulator]:
    """The vendor, quick and without real separation."""
    async with Emulator(seconds=0.05, separate=False, stem_bytes=4096) as emulator:
        yield emulator


async def cancelled_task() -> None:
    """Wait for a task that was cancelled elsewhere."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


async def cancelled_at_first() -> AsyncIterator[bytes]:
    """A source that awaits a cancelled task before its first block."""
    await cancelled_task()
    yield b""


async def cancelled_midway() -> AsyncIterator[bytes]:
    """A source that awaits a cancelled task after a block."""
    yield AUDIO
    await cancelled_task()


class CancelledIterable:
    """A source that cannot even be begun."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise asyncio.CancelledError


SOURCES = {
    "before the first block": cancelled_at_first,
    "after a block": cancelled_midway,
    "in __aiter__": CancelledIterable,
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
async def test_a_source_that_is_cancelled_fails_its_job_alone(
    source: Any, vendor: Emulator, connect: Any
) -> None:
    """With one slot: its job ends in an error, the jobs behind it run, and draining ends."""
    async with connect(vendor, limits=Limits(parallel=1, polls_per_minute=6000)) as session:
        bad = session.submit(("bad.mp3", source()))
        good = [session.submit((f"{number}.mp3", AUDIO)) for number in range(3)]
        for job in good:
            assert await job
        with pytest.raises(MusicGPTError):
            await bad
    assert [each.file_name for each in vendor.submissions] == ["0.mp3", "1.mp3", "2.mp3"]


def cancelled_list() -> Iterator[Any]:
    """Two tracks, and then the list is cancelled."""
    yield "0.mp3", AUDIO
    yield "1.mp3", AUDIO
    raise asyncio.CancelledError


async def cancelled_stream() -> AsyncIterator[Any]:
    """The same, asynchronously."""
    yield "0.mp3", AUDIO
    yield "1.mp3", AUDIO
    await cancelled_task()


@pytest.mark.parametrize("sources", [cancelled_list, cancelled_stream])
async def test_an_iterable_that_is_cancelled_fails_its_batch_alone(
    sources: Any, vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """Two outcomes and then an error, never an end as if all were done; the session works on."""
    outcomes: list[Outcome] = []
    async with connect(vendor) as session:
        try:
            async for outcome in session.extract_many(sources(), tmp_path, stems=STEMS):
                outcomes.append(outcome)  # noqa: PERF401 - what came before the error is wanted too
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - which one is the design's
            assert [each.ok for each in outcomes] == [True] * 2
        else:
            pytest.fail("the loop ended as if all were done")
        assert await session.submit(("after.mp3", AUDIO))


def hooked(hook: Any, moment: str, method: str, path: str) -> aiohttp.ClientSession:
    """Return a client session of the caller's whose first request of a kind meets a hook."""
    trace, met = aiohttp.TraceConfig(), list[Any]()

    async def meet(_: Any, __: Any, params: Any) -> None:
        if not met and params.method == method and path in str(params.url):
            met.append(params)
            await hook()

    getattr(trace, moment).append(meet)
    return aiohttp.ClientSession(trace_configs=[trace])


async def broken() -> None:
    """Fail as a hook with a mistake does."""
    raise ZeroDivisionError


REQUESTS = {
    "submit": ("POST", "/Extraction"),
    "poll": ("GET", "/byId"),
    "file": ("GET", "/files/"),
}


@pytest.mark.parametrize("moment", ["on_request_start", "on_request_end"])
@pytest.mark.parametrize("hook", [cancelled_task, broken])
@pytest.mark.parametrize("struck", REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_trace_hook_that_fails_fails_its_call_alone(
    struck: tuple[str, str],
    hook: Any,
    moment: str,
    vendor: Emulator,
    connect: Any,
    tmp_path: Path,
) -> None:
    """A trace hook that is cancelled or fails once affects one track only.

    That track is complete too, or ends with an error; none is paid for twice.
    """
    async with (
        hooked(hook, moment, *struck) as http,
        connect(vendor, http=http, limits=Limits(parallel=1, polls_per_minute=6000)) as session,
    ):
        many = session.extract_many(
            [(f"{number}.mp3", AUDIO) for number in range(4)], tmp_path, stems=STEMS
        )
        outcomes = [each async for each in many]
    assert len(outcomes) == 4
    assert sum(each.ok for each in outcomes) >= 3
    names = [each.file_name for each in vendor.submissions]
    assert len(names) == len(set(names))


async def test_a_callback_that_is_cancelled_hurts_nobody(vendor: Emulator, connect: Any) -> None:
    """Callbacks that raise CancelledError go to the loop's handler; all jobs are completed."""
    told: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))

    def callback(_: ExtractionJob) -> None:
        raise asyncio.CancelledError

    try:
        async with connect(vendor, limits=Limits(parallel=1, polls_per_minute=6000)) as session:
            jobs = [session.submit((f"{number}.mp3", AUDIO)) for number in range(3)]
            for job in jobs:
                job.add_done_callback(callback)
            for job in jobs:
                assert await job
    finally:
        loop.set_exception_handler(None)
    assert len(told) == 3


async def start_watched(session: MusicGPTSession) -> list[asyncio.Task[Any]]:
    """Start a session and return the tasks that it works with, in a fixed order."""
    before = asyncio.all_tasks()
    await session.start()
    await anyio.sleep(0.02)
    return sorted(asyncio.all_tasks() - before, key=lambda task: task.get_name())


async def ends_of_jobs(session: MusicGPTSession) -> list[MusicGPTError]:
    """Submit tracks and wait for them; return the errors."""
    errors = []
    for name in ("a.mp3", "b.mp3", "c.mp3"):
        try:
            await session.submit((name, AUDIO + name.encode()))
        except MusicGPTError as error:
            errors.append(error)
    return errors


async def test_a_part_that_is_cancelled_ends_the_session_with_an_error(
    vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """If one of the session's own tasks is cancelled, its jobs end with an error, and closing ends.

    A session that cannot continue is closed, and says why. Each of its tasks is tested.
    """
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(asyncio.sleep(0))]
    number = 0
    while number < len(tasks):
        session = connect(
            vendor,
            journal=tmp_path / f"{number}.db",
            limits=Limits(parallel=2, polls_per_minute=6000),
        )
        tasks = await start_watched(session)
        if number >= len(tasks):
            break
        tasks[number].cancel()
        await anyio.sleep(0.05)
        errors = await ends_of_jobs(session)
        assert not errors or "async with" not in str(errors[0])  # it was started well enough
        with suppress(MusicGPTError):
            await session.aclose()
        assert not {task for task in tasks if not task.done()}
        number += 1


@pytest.mark.parametrize("times", [2, 200])
async def test_cancelling_again_and_again_does_not_cut_the_end_of_a_session(
    times: int, vendor: Emulator, connect: Any, tmp_path: Path, until: Any
) -> None:
    """The task that closes a session is cancelled in each turn of the loop: it is closed."""
    path = tmp_path / "journal.db"
    session = await connect(vendor, journal=path).start()
    vendor.script(Fault("job", "never_finishes", times=3))
    jobs = [session.submit((f"{number}.mp3", AUDIO + bytes([number]))) for number in range(3)]
    for job in jobs:
        await job.accepted()
    closing = asyncio.ensure_future(session.aclose(drain=False))
    for _ in range(times):
        await asyncio.sleep(0)
        closing.cancel()
    await asyncio.wait([closing])
    await until(lambda: all(job.done() for job in jobs))
    session = await connect(vendor, journal=path).start()
    assert len(await session.resume()) == 3  # its leases were given back
    assert len(vendor.submissions) == 3


async def test_a_cancelled_write_of_the_journal_is_an_error(
    hold_journal: Any, tmp_path: Path
) -> None:
    """All tasks that a program did not start itself are cancelled: who waits gets an error."""
    path = tmp_path / "journal.db"
    async with Journal(path) as journal, hold_journal(path):
        renewing = asyncio.ensure_future(journal._renew())
        await anyio.sleep(0.2)  # it waits for the lock
        for task in asyncio.all_tasks():
            if "_drain" in repr(task.get_coro()):
                task.cancel()
        with pytest.raises(JournalError, match="cancelled"):
            await renewing
