"""Limits that are not configured: the session learns what the account allows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from factories.sessions import SOUND

from musicgpt_async import Limits, MusicGPTSession, events
from musicgpt_async.emulator import Emulator, Submission

# Half an emulated hour takes two seconds.
pytestmark = [pytest.mark.anyio, pytest.mark.accelerated(900), pytest.mark.long]


def about(seconds: float) -> Callable[[Submission], float]:
    """Return conversion times around a number of seconds, the same in every run."""
    rng = random.Random(4)
    return lambda _: seconds * rng.lognormvariate(0, 0.15)


async def test_the_free_plan_is_learned_and_kept_busy() -> None:
    """100 tracks without limits: every slot is busy, no poll and hardly any submit is refused."""
    vendor = Emulator(
        parallel=2,
        polls_per_minute=20,
        seconds=about(90),
        eta=90,
        separate=False,
        stem_bytes=2048,
    )
    loop = asyncio.get_running_loop()
    async with vendor, MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as session:
        began = loop.time()
        jobs = [session.submit((f"{n}.mp3", SOUND)) for n in range(100)]
        await asyncio.gather(*jobs)
        took = loop.time() - began
    working = sum(each.seconds for each in vendor.submissions)
    assert len(vendor.submissions) == 100
    assert vendor.throttled["polls"] == 0
    assert vendor.throttled["parallel"] <= 10
    assert working / (2 * took) > 0.9


async def test_a_larger_plan_is_found_out() -> None:
    """With ten slots and nothing said, the session grows to ten and stays within them."""
    vendor = Emulator(parallel=10, seconds=about(60), eta=60, separate=False, stem_bytes=2048)
    async with vendor, MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as session:
        jobs = [session.submit((f"{n}.mp3", SOUND)) for n in range(120)]
        await asyncio.gather(*jobs)
        assert session.slots[0] == 0
    assert vendor.most_unfinished == 10
    assert len(vendor.submissions) == 120
    assert vendor.throttled["parallel"] <= 24


async def test_another_process_on_the_same_account_is_lived_with() -> None:
    """Two sessions that both believe in ten slots share them: all done, nothing sent twice."""
    vendor = Emulator(parallel=10, seconds=30, eta=30, separate=False, stem_bytes=2048)
    limits = Limits(parallel=10, polls_per_minute=200)
    slowed: Counter[str] = Counter()

    async def work(name: str) -> None:
        options: dict[str, Any] = {"base_url": vendor.base_url, "limits": limits}
        async with MusicGPTSession(vendor.api_key, **options) as session:
            stream = session.events()
            for n in range(40):
                session.submit((f"{name}{n}.mp3", SOUND))
        slowed.update([event.call async for event in stream if isinstance(event, events.Throttled)])

    async with vendor:
        await asyncio.gather(work("a"), work("b"))
    assert vendor.most_unfinished <= 10
    names = [each.upload.file_name for each in vendor.submissions]
    assert len(names) == len(set(names)) == 80
    assert slowed["submit"] == vendor.throttled["parallel"] > 0


async def test_jobs_that_run_already_hold_their_slots() -> None:
    """An attached job counts as unfinished: a submit waits for it instead of meeting a 429."""
    vendor = Emulator(parallel=1, seconds=30, eta=30, separate=False, stem_bytes=2048)
    limits = Limits(parallel=1, polls_per_minute=200)
    async with vendor:
        async with MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as before:
            task_id = (await before.submit(("a.mp3", SOUND)).accepted()).task_id
            await before.aclose(drain=False)
        async with MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, limits=limits
        ) as session:
            attached = session.attach(task_id)
            assert session.slots == (1, 1)
            await session.submit(("b.mp3", SOUND))
            assert attached.done()
    assert vendor.throttled["parallel"] == 0
