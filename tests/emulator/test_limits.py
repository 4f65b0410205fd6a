from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from musicgpt_async.emulator import Fault
from musicgpt_async.emulator.clock import Clock
from musicgpt_async.emulator.vendor import Refusal, Upload, Vendor

pytestmark = pytest.mark.anyio


class HandClock(Clock):
    """A clock that the test advances."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def now(self) -> float:
        """What the hand says."""
        return self.time


def make_vendor(**settings: Any) -> Vendor:
    """Return a vendor without sockets, with small limits."""
    defaults: dict[str, Any] = {
        "clock": HandClock(),
        "api_key": "key",
        "forbidden_keys": frozenset(),
        "parallel": 2,
        "polls_per_minute": 3,
        "credits": 100.0,
        "seconds": lambda _: 1.0,
        "eta": lambda _: 1,
    }
    return Vendor(**{**defaults, **settings})


def minutes(number: float) -> Upload:
    """An upload of so many minutes of audio."""
    return Upload(
        fields={}, stems=("drums",), preprocessing=(), webhook_url=None, duration=60 * number
    )


def test_polls_are_counted_in_a_sliding_minute() -> None:
    """A poll is admitted as soon as fewer than the limit are within the last 60 seconds."""
    vendor = make_vendor()
    clock = vendor.clock
    assert isinstance(clock, HandClock)
    for clock.time in (0, 10, 20):
        vendor.admit_poll()
    for clock.time in (30, 59.9):
        with pytest.raises(Refusal) as refused:
            vendor.admit_poll()
        assert refused.value.status == 429
    clock.time = 60
    vendor.admit_poll()
    with pytest.raises(Refusal) as refused:
        vendor.admit_poll()
    assert refused.value.retry_after == 10
    assert vendor.throttled == {"polls": 3}


def test_credit_is_set_aside_for_what_runs_and_charged_at_the_end() -> None:
    """A submit is refused when what is left, less the estimates of what runs, is too little."""
    vendor = make_vendor(credits=3.5)
    first = vendor.accept(minutes(1))
    second = vendor.accept(minutes(1))
    assert first.credit_estimate == 1.5
    vendor.fail(second, "failed")
    assert vendor.credits == 3.5
    third = vendor.accept(minutes(1))
    vendor.complete(first, duration=60)
    assert vendor.credits == 2
    with pytest.raises(Refusal) as refused:
        vendor.accept(minutes(1))
    assert refused.value.status == 402
    vendor.fail(third, "failed")
    assert vendor.accept(minutes(1)).number == 3


async def test_past_the_parallel_limit_a_submit_gets_429(open_account: Any) -> None:
    """Unfinished conversions count even if their response was lost; finished ones free a slot."""
    faults = [Fault("job", "never_finishes", times=2), Fault("submit", "drop_before_answer")]
    async with open_account(parallel=3, faults=faults) as me:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await me.submit()
        assert (await me.submit()).status == 200
        await me.extract()
        assert me.vendor.unfinished == 2
        me.vendor.script(Fault("job", "never_finishes"))
        assert (await me.submit()).status == 200
        refused = await me.submit()
        assert (refused.status, refused.json["success"]) == (429, False)
        assert "Retry-After" not in refused.headers
        assert me.vendor.throttled == {"parallel": 1}
        assert (me.vendor.unfinished, me.vendor.most_unfinished) == (3, 3)


@pytest.mark.parametrize("retry_after", [False, True])
async def test_beyond_the_poll_limit_byid_gets_429(open_account: Any, retry_after: bool) -> None:
    """The fourth poll of a minute is refused if three are allowed; Retry-After is optional."""
    async with open_account(polls_per_minute=3, retry_after=retry_after) as me:
        task = (await me.submit()).json["task_id"]
        assert [(await me.by_id(task)).status for _ in range(3)] == [200, 200, 200]
        refused = await me.by_id(task)
        assert refused.status == 429
        assert ("Retry-After" in refused.headers) is retry_after
        assert (me.vendor.polls, me.vendor.throttled) == (4, {"polls": 1})


async def test_too_little_credit_gets_402(open_account: Any) -> None:
    """A submit that would cost more than the balance is refused and leaves no file behind."""
    async with open_account(credits=0.001) as me:
        assert (await me.submit()).status == 402
        assert not me.vendor.submissions


async def test_a_faster_clock_has_the_same_eta(open_account: Any) -> None:
    """With `speed`, an emulated hour passes at once, and the eta is in emulated seconds."""
    async with open_account(seconds=3600, speed=1_000_000) as me:
        reply = await me.submit()
        assert reply.json["eta"] == 3600
        await me.finished(reply.json["task_id"])
        record = me.vendor.submissions[0]
        assert record.finished - record.created >= 3600
