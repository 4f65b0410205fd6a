"""Sessions with journals of their own on one database share what limits their account."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from factories.watching import until

from musicgpt_async import CreditLimitError, ExtractionJob, Limits, MusicGPTSession
from musicgpt_async.emulator import Emulator
from musicgpt_async.journal import Journal

pytestmark = pytest.mark.anyio

Open = Callable[..., Any]


def submit(session: MusicGPTSession, name: str) -> ExtractionJob:
    """Submit a track that is different for each name."""
    return session.submit((f"{name}.mp3", b"ID3" + name.encode().ljust(20_000)), label=name)


@pytest.fixture
async def open_session(place: str) -> AsyncIterator[Open]:
    """Open a session as another process would: with a journal object of its own."""
    opened = []

    async def open_one(vendor: Emulator, **options: Any) -> MusicGPTSession:
        options.setdefault("limits", Limits(parallel=2, polls_per_minute=500))
        journal = Journal(place, lease=2.0)
        session = MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, journal=journal, **options
        )
        opened.append(session)
        return await session.start()

    yield open_one
    for session in opened:
        await session.aclose(drain=False)


async def test_a_session_with_many_jobs_lets_others_have_their_turn(open_session: Open) -> None:
    """A single job of another session does not wait for the end of a long queue."""
    async with Emulator(seconds=0.3, separate=False, parallel=2) as vendor:
        busy, other = await open_session(vendor), await open_session(vendor)
        many = [submit(busy, f"many {each}") for each in range(10)]
        await until(lambda: len(vendor.submissions) == 2)
        await submit(other, "single")
        await asyncio.gather(*many)
        names = [each.file_name for each in vendor.submissions]
    assert not vendor.throttled["parallel"]
    assert names.index("single.mp3") < 7


async def test_a_session_that_leaves_the_queue_keeps_no_slot_from_others(
    open_session: Open,
) -> None:
    """What waited for a slot and was detached, or left with its session, holds none."""
    limits = Limits(parallel=1, polls_per_minute=500)
    async with Emulator(seconds=1.5, separate=False, parallel=1) as vendor:
        busy = await open_session(vendor, limits=limits)
        other = await open_session(vendor, limits=limits)
        first, last = submit(busy, "first"), submit(busy, "last")
        await until(lambda: vendor.submissions)
        waiting, _ = submit(other, "detached"), submit(other, "left")
        await until(lambda: vendor.polls)
        waiting.cancel()
        await other.aclose(drain=False)
        await asyncio.gather(first, last)
        names = [each.file_name for each in vendor.submissions]
    assert names == ["first.mp3", "last.mp3"]
    assert not vendor.throttled["parallel"]


async def test_one_refusal_teaches_all_sessions(open_session: Open) -> None:
    """Of sessions that know nothing of the account one meets its limit, and the others heed it."""
    async with Emulator(seconds=0.5, separate=False, parallel=3) as vendor:
        sessions = [
            await open_session(vendor, limits=Limits(polls_per_minute=500)) for _ in range(3)
        ]
        jobs = [submit(each, f"{n} {i}") for n, each in enumerate(sessions) for i in range(4)]
        await asyncio.gather(*jobs)
    assert len(vendor.submissions) == 12
    assert vendor.throttled["parallel"] <= 5  # alone each of them meets it several times


async def test_max_credits_counts_what_all_sessions_spend(open_session: Open) -> None:
    """Two sessions stop at one limit, and a third that starts afterwards spends nothing."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        sessions = [await open_session(vendor, max_credits=0.08) for _ in range(2)]
        jobs = [submit(each, f"{n} {i}") for n, each in enumerate(sessions) for i in range(4)]
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        spent = [each.credit_estimate for each in vendor.submissions]
        assert 0.08 <= sum(spent) < 0.08 + max(spent)
        for session in sessions:
            await session.aclose()
        late = await open_session(vendor, max_credits=0.08)
        with pytest.raises(CreditLimitError):
            await submit(late, "late")
        assert len(vendor.submissions) == len(spent)
        assert late.credits_estimated == pytest.approx(sum(spent))
    refused = [each for each in outcomes if isinstance(each, CreditLimitError)]
    assert len(refused) == 8 - len(spent)


async def test_slots_speak_for_the_account(open_session: Open) -> None:
    """A session that asked for a slot knows of those that others have."""
    async with Emulator(seconds=1.0, separate=False, parallel=2) as vendor:
        one, two = await open_session(vendor), await open_session(vendor)
        first = submit(one, "first")
        await first.accepted()
        second = submit(two, "second")
        await second.accepted()
        assert two.slots == (2, 2)
        await asyncio.gather(first, second)


@pytest.mark.parametrize("name", ["the same", "another"])
async def test_what_a_session_has_left_holds_its_slot_while_it_may_run(
    open_session: Open, name: str
) -> None:
    """A job that nothing follows frees its slot after its estimate for any other job."""
    limits = Limits(parallel=1, polls_per_minute=500)
    async with Emulator(seconds=0.5, separate=False, parallel=1) as vendor:
        first = await open_session(vendor, limits=limits)
        await submit(first, "the same").accepted()
        await first.aclose(drain=False)
        second = await open_session(vendor, limits=limits)
        with anyio.fail_after(150):
            await submit(second, name)
    assert len(vendor.submissions) == len({"the same", name})
    assert not vendor.throttled["parallel"]
