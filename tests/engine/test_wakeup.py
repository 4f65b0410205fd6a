"""The wake-up by which the session's tasks sleep, on each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

from musicgpt_async._engine.wakeup import Wakeup

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rings() -> AsyncIterator[tuple[Wakeup, list[float]]]:
    """A wake-up, and the times at which a waiter was woken by it."""
    wakeup = Wakeup()
    heard: list[float] = []

    async def listen() -> None:
        while True:
            await wakeup.wait()
            heard.append(asyncio.get_running_loop().time())

    sleeper = asyncio.create_task(listen())
    await asyncio.sleep(0)
    yield wakeup, heard
    sleeper.cancel()


async def settle() -> None:
    """Let every woken task run, including expired timers."""
    for _ in range(5):
        await anyio.sleep(0.002)


async def test_two_rings_before_the_first_is_heard_are_one(
    rings: tuple[Wakeup, list[float]],
) -> None:
    """A sleeper that is rung for twice wakes once, and sleeps on."""
    wakeup, heard = rings
    wakeup.set()
    wakeup.set()
    await settle()
    assert len(heard) == 1


async def test_a_ring_while_nobody_sleeps_is_kept() -> None:
    """A waiter that starts after the wake-up was set returns at once."""
    wakeup = Wakeup()
    wakeup.set()
    with anyio.fail_after(5):
        await wakeup.wait()


async def test_the_earliest_alarm_counts(rings: tuple[Wakeup, list[float]]) -> None:
    """An alarm for a moment that has passed rings at once, whatever was set before or after."""
    wakeup, heard = rings
    now = asyncio.get_running_loop().time()
    wakeup.set_at(now + 3600)
    wakeup.set_at(now - 1)
    wakeup.set_at(None)
    wakeup.set_at(now - 0.5)
    await settle()
    assert len(heard) == 1


async def test_a_later_alarm_does_not_put_an_earlier_one_off(
    rings: tuple[Wakeup, list[float]],
) -> None:
    """The sleeper wakes at the first of two moments."""
    wakeup, heard = rings
    loop = asyncio.get_running_loop()
    early = loop.time() + 0.02
    wakeup.set_at(early)
    wakeup.set_at(loop.time() + 3600)
    with anyio.fail_after(10):
        while not heard:
            await anyio.sleep(0.005)
    assert heard[0] >= early - 0.002  # uvloop's clock counts full milliseconds


async def test_an_alarm_ends_with_the_sleep_it_was_set_for() -> None:
    """Who was woken by a ring is not woken again by the alarm of that sleep."""
    wakeup = Wakeup()
    soon = asyncio.get_running_loop().time() + 0.02
    wakeup.set()
    await wakeup.wait(until=soon)
    with anyio.move_on_after(0.1) as sleep:
        await wakeup.wait()
    assert sleep.cancelled_caught
