"""Processes on one journal share the slots of their account, and outlive each other."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from factories.accounts import open_process, run_together
from factories.watching import until

from musicgpt_async.emulator import Emulator, Fault

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
