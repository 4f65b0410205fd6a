"""Processes on one journal share the slots of their account, and outlive each other."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import pytest
import sqlalchemy as sa
from factories.accounts import open_process, run_together
from factories.watching import PATIENCE, until
from sqlalchemy.ext.asyncio import AsyncConnection

from musicgpt_async._rules.rate_budget import Spacing
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.journal import Journal

pytestmark = pytest.mark.anyio


async def test_four_processes_take_ten_slots_together(place: str) -> None:
    """Sixteen jobs of four processes: none refused, none twice, about as fast as one process."""
    seconds = {}
    for count in (1, 4):
        async with (
            Emulator(seconds=2.0, separate=False, stem_bytes=4096) as vendor,
            AsyncExitStack() as stack,
        ):
            processes = [
                await stack.enter_async_context(
                    open_process(
                        vendor, place, [f"{count}-{n}-{i}.mp3" for i in range(16 // count)]
                    )
                )
                for n in range(count)
            ]
            await run_together(*processes)
            names = [each.file_name for each in vendor.submissions]
            assert len(names) == len(set(names)) == 16
            assert not vendor.throttled["parallel"]
            assert not any(error for each in processes for error in each.tracks.values())
            seconds[count] = max(each.seconds for each in processes)
    print(f"one process {seconds[1]:.2f} s, four {seconds[4]:.2f} s")  # noqa: T201
    assert seconds[4] < 2.5 * seconds[1]


@pytest.mark.parametrize("moment", ["slot taken", "sent", "answered"])
async def test_a_killed_process_costs_no_refused_submit(moment: str, place: str) -> None:
    """The slot of a track that was sent stays taken until its job is over; another one is free."""
    fault = {
        "slot taken": [Fault("submit", "stall_read", at=0.1)],
        "sent": [Fault("submit", "stall_answer")],
        "answered": [],
    }
    size = 24 << 20 if moment == "slot taken" else 20_000
    account = {"parallel": 1, "lease": 1.0}
    async with (
        Emulator(seconds=2.0, separate=False, parallel=1, faults=fault[moment]) as vendor,
        open_process(vendor, place, ["killed.mp3"], size=size, **account) as killed,
        open_process(vendor, place, ["survivor.mp3"], resume=True, **account) as survivor,
    ):
        killed.begin()
        if moment == "slot taken":
            await until(lambda: any("Extraction" in each.path for each in vendor.requests))
        elif moment == "sent":
            await until(lambda: vendor.submissions)
        else:
            await until(lambda: vendor.polls)
        killed.running.kill()
        await killed.running.wait()
        await run_together(survivor)
        names = [each.file_name for each in vendor.submissions]
    assert not vendor.throttled["parallel"]
    assert survivor.tracks["survivor.mp3"] is None
    assert names == ["survivor.mp3"] if moment == "slot taken" else ["killed.mp3", "survivor.mp3"]


async def until_in_queue(place: str, pid: int) -> None:
    """Wait until a process is in its account's queue for slots."""

    async def read(connection: AsyncConnection) -> str:
        return str(await connection.scalar(sa.text("SELECT slots FROM musicgpt_accounts")))

    async with Journal(place) as journal:
        with anyio.fail_after(PATIENCE):
            while f":{pid}:" not in await journal._write(read):
                await anyio.sleep(0.05)


async def test_a_process_that_is_killed_in_the_queue_keeps_no_slot_from_others(place: str) -> None:
    """A process that dies before it has a slot leaves nothing, and others take the next one."""
    account = {"parallel": 1}
    async with (
        Emulator(seconds=3.0, separate=False, parallel=1) as vendor,
        open_process(vendor, place, ["first.mp3", "second.mp3"], **account) as survivor,
        open_process(vendor, place, ["killed.mp3"], **account) as killed,
    ):
        survivor.begin()
        await until(lambda: vendor.submissions)
        killed.begin()
        await until_in_queue(place, killed.running.pid)
        killed.running.kill()
        await killed.running.wait()
        with anyio.fail_after(PATIENCE):
            await survivor.finish()
        names = [each.file_name for each in vendor.submissions]
    assert names == ["first.mp3", "second.mp3"]
    assert survivor.tracks == {"first.mp3": None, "second.mp3": None}
    assert not vendor.throttled["parallel"]


async def test_four_processes_keep_to_one_poll_budget_and_use_it(place: str) -> None:
    """Under pressure no window has more polls than the budget, and most of the budget is used."""
    spacing, seconds = Spacing.of(120), 8.0
    async with (
        Emulator(seconds=seconds, separate=False, stem_bytes=4096, parallel=16) as vendor,
        AsyncExitStack() as stack,
    ):
        account = {"parallel": 16, "polls_per_minute": 120}
        processes = [
            await stack.enter_async_context(
                open_process(vendor, place, [f"{n}-{i}.mp3" for i in range(4)], **account)
            )
            for n in range(4)
        ]
        await run_together(*processes)
        polls = [each.at for each in vendor.requests if "byId" in each.path]
    assert not any(error for each in processes for error in each.tracks.values())
    for first, start in enumerate(polls):
        for last, end in enumerate(polls[first:], first):
            window = end - start + 1.0  # a second for what delays a granted poll
            assert last - first + 1 <= (window + spacing.burst) / spacing.interval + 1
    under_pressure = [at for at in polls if at <= polls[0] + seconds]
    assert len(under_pressure) >= 0.85 * seconds / spacing.interval
