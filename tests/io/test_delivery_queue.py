"""The queue between the endpoints that receive webhooks and the sessions that wait for them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import pytest
from factories.endpoints import Listener, listen
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._io.delivery_queue import (
    MAX_BUFFERED_BYTES,
    MAX_BUFFERED_DELIVERIES,
    MAX_CLOSED_TOKENS,
    MAX_QUEUED_BYTES,
    Consumer,
    DeliveryQueue,
    Receipt,
)
from musicgpt_async.errors import ConfigurationError

pytestmark = pytest.mark.anyio

TOKEN = "job1.s3cret"


async def test_a_delivery_reaches_the_consumer_that_waits_for_it() -> None:
    """A payload goes to the subscriber of its token and to no other."""
    queue, mine, others = DeliveryQueue(), list[Any](), list[Any]()
    listen(queue, TOKEN, mine)
    listen(queue, "job2.other", others)
    assert await queue.put(TOKEN, {"task_id": "t"}) is Receipt.ACKNOWLEDGED
    assert (mine, others) == ([{"task_id": "t"}], [])
    assert len(queue) == 2


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "job1",
        "job1.",
        "job1.s3cre",
        "job1.s3crets",
        ".s3cret",
        "job2.s3cret",
        "job1.\ud800",
    ],
)
async def test_a_wrong_token_is_refused(token: str) -> None:
    """Neither a piece of a token nor anything around it finds a subscription."""
    queue, mine = DeliveryQueue(), list[Any]()
    listen(queue, TOKEN, mine)
    assert not queue.accepts(token)
    assert await queue.put(token, {}) is Receipt.UNKNOWN_TOKEN
    assert mine == []


async def test_a_late_delivery_is_acknowledged_and_kept_for_the_next_subscriber() -> None:
    """What comes after a job is over is taken, and delivered if the job is followed again."""
    queue, first, second = DeliveryQueue(), list[Any](), list[Any]()
    listen(queue, TOKEN, first)
    queue.unsubscribe(TOKEN)
    for number in (1, 2):
        assert await queue.put(TOKEN, {"n": number}) is Receipt.ACKNOWLEDGED
    assert await queue.put("job1.wrong", {}) is Receipt.UNKNOWN_TOKEN
    listen(queue, TOKEN, second)
    assert (first, second) == ([], [{"n": 1}, {"n": 2}])


async def test_an_early_delivery_is_kept_only_for_a_token_of_ours() -> None:
    """Before a subscription, deliveries are kept if the token proves itself."""
    queue, got = DeliveryQueue(is_own_token=lambda token: token == TOKEN), list[Any]()
    assert await queue.put("job2.forged", {}) is Receipt.UNKNOWN_TOKEN
    assert await queue.put(TOKEN, {"early": True}) is Receipt.ACKNOWLEDGED
    listen(queue, TOKEN, got)
    assert got == [{"early": True}]


async def test_what_is_kept_is_bounded_in_number_and_size() -> None:
    """The oldest kept deliveries give way, by count and by bytes."""
    queue = DeliveryQueue(is_own_token=bool)
    for number in range(MAX_BUFFERED_DELIVERIES + 1):
        await queue.put(f"job{number}.x", {})
    assert kept(queue, "job0.x") == []
    assert kept(queue, "job1.x") == [{}]
    for name in ("big1.x", "big2.x", "big3.x"):
        await queue.put(name, {}, size=MAX_BUFFERED_BYTES // 2)
    assert kept(queue, "big1.x") == []
    assert kept(queue, "big3.x") == [{}]


def kept(queue: DeliveryQueue, token: str) -> list[Any]:
    """Return what a queue had kept for a token."""
    got: list[Any] = []
    listen(queue, token, got)
    queue.unsubscribe(token)
    return got


def test_the_memory_of_closed_tokens_is_bounded() -> None:
    """Of tokens that were unsubscribed, the latest few thousand are remembered."""
    queue = DeliveryQueue()
    for number in range(MAX_CLOSED_TOKENS + 1):
        listen(queue, f"job{number}.x", [])
        queue.unsubscribe(f"job{number}.x")
    assert not queue.accepts("job0.x")
    assert queue.accepts("job1.x")
    assert len(queue) == 0


async def test_two_consumers_of_one_token_are_refused() -> None:
    """Unsubscribing twice is harmless; two followers of one job are a mistake that is named."""
    queue, got = DeliveryQueue(), list[Any]()
    queue.unsubscribe(TOKEN)
    listen(queue, TOKEN, got)
    with pytest.raises(ConfigurationError, match="followed in this process already") as caught:
        listen(queue, TOKEN, [])
    assert TOKEN not in str(caught.value)
    await queue.put(TOKEN, {})
    assert got == [{}]


async def test_a_full_queue_asks_for_the_delivery_again() -> None:
    """What consumers have yet to take is bounded; an endpoint that finds it full says so."""
    queue = DeliveryQueue()
    Consumer(queue).subscribe(TOKEN)
    with anyio.move_on_after(0.05):
        await queue.put(TOKEN, {}, size=MAX_QUEUED_BYTES)
    assert await queue.put(TOKEN, {}, size=1) is Receipt.REPEAT


async def test_a_consumer_that_never_decides_is_not_waited_for_forever() -> None:
    """An endpoint waits for a consumer within a bound, and asks for the delivery again."""
    queue = DeliveryQueue(acknowledge_timeout=0.05)
    consumer = Consumer(queue)
    consumer.subscribe(TOKEN)
    assert await queue.put(TOKEN, {}) is Receipt.REPEAT
    (await consumer.get()).acknowledge()  # too late, and harmless


async def test_an_endpoint_may_run_in_another_thread_and_loop() -> None:
    """A delivery put in another thread's loop wakes its consumer, and is acknowledged there."""
    queue, receipts = DeliveryQueue(), list[Receipt]()
    consumer = Consumer(queue)
    consumer.subscribe(TOKEN)
    endpoint = threading.Thread(
        target=lambda: receipts.append(asyncio.run(queue.put(TOKEN, {"n": 1})))
    )
    endpoint.start()
    delivery = await consumer.get()
    assert delivery.payload == {"n": 1}
    delivery.acknowledge()
    await anyio.to_thread.run_sync(endpoint.join)
    assert receipts == [Receipt.ACKNOWLEDGED]


async def test_a_closed_consumer_leaves_its_deliveries_to_the_next() -> None:
    """Deliveries that a closed session has not consumed are kept for the next subscriber."""
    queue, got = DeliveryQueue(), list[Any]()
    consumer = Consumer(queue)
    consumer.subscribe(TOKEN)
    put = asyncio.create_task(queue.put(TOKEN, {"n": 1}))
    await asyncio.sleep(0)
    consumer.unsubscribe(TOKEN)
    consumer.close()
    assert await put is Receipt.ACKNOWLEDGED
    listen(queue, TOKEN, got)
    assert got == [{"n": 1}]


async def test_nothing_shows_a_token() -> None:
    """The repr of a queue and of a delivery holds no token."""
    queue = DeliveryQueue(is_own_token=bool)
    await queue.put("job2.s3cret", {"task_id": "private"})
    shown = f"{queue!r} {queue._buffer!r} {Listener(queue, [])!r}"
    assert "s3cret" not in shown
    assert "private" not in shown


@given(st.text(), st.text())
def test_any_text_may_come_as_a_token(ours: str, theirs: str) -> None:
    """Any text may arrive as a token, but only the exact token is accepted."""
    queue = DeliveryQueue()
    listen(queue, ours, [])
    assert queue.accepts(theirs) is (ours == theirs)
