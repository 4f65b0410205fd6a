"""The shared queue between the endpoints that receive webhooks and the sessions that wait for them.

Endpoints put deliveries on it, from any thread and event loop. Each session has a
consumer, which subscribes to the tokens of its jobs and takes its own deliveries, in its own loop.
An endpoint acknowledges a delivery when its consumer has dealt with it. The queue is bounded: an
endpoint that finds it full says so, and the delivery is repeated later.

A delivery for an own token without a subscription (its job has ended, or is resumed after a
restart) is kept for the next subscriber, the newest ones up to a bound, and acknowledged.

A token is ``<public part>.<secret part>``. A subscription is found by the public part; then the
whole token is compared in constant time, so that nothing can be learnt by measuring refusals.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from enum import Enum
from typing import Any

import attrs

from musicgpt_async._rules.receiver_reliability import ReceiverReliability
from musicgpt_async.errors import ConfigurationError

MAX_BUFFERED_DELIVERIES = 256
MAX_BUFFERED_BYTES = 2 * 1024 * 1024
MAX_CLOSED_TOKENS = 4096
MAX_QUEUED_BYTES = 16 * 1024 * 1024  # of deliveries that consumers have yet to take
ACKNOWLEDGE_TIMEOUT = 30.0  # seconds that an endpoint waits for a consumer

Payload = Mapping[str, Any]


class Receipt(Enum):
    """What an endpoint answers to a delivery."""

    ACKNOWLEDGED = "acknowledged"
    """It was dealt with, or is kept for the next subscriber."""
    UNKNOWN_TOKEN = "unknown token"  # noqa: S105 - a description
    """No job has this token."""
    REPEAT = "repeat"
    """It could not be dealt with now: send it again."""


@attrs.define(eq=False)
class Delivery:
    """One webhook on its way to a session.

    Attributes:
        token: The token in its URL.
        payload: Its JSON object.
        size: Bytes of it on the wire.
    """

    token: str = attrs.field(repr=False)
    payload: Payload = attrs.field(repr=False)
    size: int
    _outcome: Future[bool] = attrs.field(factory=Future, repr=False)

    def acknowledge(self) -> None:
        """Have the endpoint acknowledge it; harmless once that is decided."""
        self._decide(is_done=True)

    def reject(self) -> None:
        """Have the endpoint ask for it again."""
        self._decide(is_done=False)

    async def wait_decided(self, seconds: float) -> bool:
        """Wait, in any loop, until its consumer has dealt with it; return whether it could.

        Args:
            seconds: After which it counts as not dealt with.
        """
        if self._outcome.done():
            return self._outcome.result()
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(self._outcome)
        except TimeoutError:
            return False

    def _decide(self, *, is_done: bool) -> None:
        with suppress(InvalidStateError):  # the endpoint has given up waiting
            self._outcome.set_result(is_done)


class DeliveryQueue:
    """Deliveries on their way from endpoints to sessions; safe to use from any thread.

    Args:
        is_own_token: Returns whether a token that was never subscribed to here is an own one.
        acknowledge_timeout: Seconds that an endpoint waits for a consumer.

    Attributes:
        reliability: How far deliveries can be relied on; the sessions' schedules teach it.
    """

    def __init__(
        self,
        is_own_token: Callable[[str], bool] = lambda _token: False,
        *,
        acknowledge_timeout: float = ACKNOWLEDGE_TIMEOUT,
    ) -> None:
        self.reliability: ReceiverReliability = ReceiverReliability()
        self._is_own_token = is_own_token
        self._acknowledge_timeout = acknowledge_timeout
        self._lock = threading.RLock()
        self._subscriptions: dict[str, tuple[str, Consumer]] = {}  # by the public part
        self._closed: dict[str, str] = {}
        self._forwarders: list[Consumer] = []
        self._buffer: deque[Delivery] = deque()
        self._buffered_bytes = 0
        self._queued_bytes = 0

    def __len__(self) -> int:
        """Return how many tokens are subscribed to."""
        return len(self._subscriptions)

    def accepts(self, token: str) -> bool:
        """Return whether a delivery for this token is taken: it is, or was, a job's own."""
        public = public_part(token)
        with self._lock:
            subscription, closed = self._subscriptions.get(public), self._closed.get(public)
        if subscription is not None:
            return _is_same(subscription[0], token)
        if closed is not None:
            return _is_same(closed, token)
        return self._is_own_token(token)

    async def put(self, token: str, payload: Payload, *, size: int = 0) -> Receipt:
        """Hand a delivery to the session that waits for it, and wait until it is dealt with.

        Args:
            token: The token in its URL.
            payload: Its JSON object.
            size: Bytes of it on the wire; bounds what is queued and kept.
        """
        if not self.accepts(token):
            return Receipt.UNKNOWN_TOKEN
        delivery = Delivery(token, payload, size)
        with self._lock:
            consumer = self._consumer_of(token)
            if consumer is None:
                self.reliability.arrived_late(token, now=time.monotonic())
                self._keep(delivery)
                return Receipt.ACKNOWLEDGED
            if self._queued_bytes + size > MAX_QUEUED_BYTES:
                return Receipt.REPEAT
            self._queued_bytes += size
            consumer.push(delivery)
        is_dealt_with = await delivery.wait_decided(self._acknowledge_timeout)
        return Receipt.ACKNOWLEDGED if is_dealt_with else Receipt.REPEAT

    def _consumer_of(self, token: str) -> Consumer | None:
        """Return who takes a delivery: its subscriber, or who can forward it to another process."""
        public = public_part(token)
        if public in self._subscriptions:
            return self._subscriptions[public][1]
        is_here = public in self._closed  # its job has ended here, or is resumed here
        return None if is_here or not self._forwarders else self._forwarders[-1]

    def add_forwarder(self, consumer: Consumer) -> None:
        """Have a consumer take the deliveries for jobs that no session of this process has had."""
        with self._lock:
            self._forwarders.append(consumer)

    def remove_forwarder(self, consumer: Consumer) -> None:
        """Have a consumer take its own deliveries alone."""
        with self._lock:
            if consumer in self._forwarders:
                self._forwarders.remove(consumer)

    def subscribe(self, token: str, consumer: Consumer) -> None:
        """Hand the deliveries for a token to a consumer, those that were kept included.

        Raises:
            ConfigurationError: Another consumer has them.
        """
        public = public_part(token)
        with self._lock:
            if public in self._subscriptions:
                raise ConfigurationError(
                    "This job is followed in this process already; "
                    "close the session that follows it before another resumes it."
                )
            self._closed.pop(public, None)
            self._subscriptions[public] = token, consumer
            for delivery in [each for each in self._buffer if _is_same(each.token, token)]:
                self._buffer.remove(delivery)
                self._buffered_bytes -= delivery.size
                self._queued_bytes += delivery.size
                consumer.push(delivery)

    def unsubscribe(self, token: str, *, is_over: bool = True) -> None:
        """Keep what comes for a token from now on; harmless if it is not subscribed to.

        Args:
            token: The token.
            is_over: Whether its job has ended for good; if another process may continue it, what
                arrives is forwarded instead.
        """
        public = public_part(token)
        with self._lock:
            was_subscribed = self._subscriptions.pop(public, None) is not None
            if not was_subscribed or (self._forwarders and not is_over):
                return
            self._closed[public] = token
            if len(self._closed) > MAX_CLOSED_TOKENS:
                del self._closed[next(iter(self._closed))]

    def on_taken(self, delivery: Delivery) -> None:
        """Count a delivery out that a consumer has taken."""
        with self._lock:
            self._queued_bytes -= delivery.size

    def put_back(self, delivery: Delivery) -> None:
        """Keep a delivery that a closed consumer has not dealt with."""
        with self._lock:
            self._queued_bytes -= delivery.size
            self._keep(delivery)
        delivery.acknowledge()

    def _keep(self, delivery: Delivery) -> None:
        self._buffer.append(delivery)
        self._buffered_bytes += delivery.size
        while (
            len(self._buffer) > MAX_BUFFERED_DELIVERIES or self._buffered_bytes > MAX_BUFFERED_BYTES
        ):
            self._buffered_bytes -= self._buffer.popleft().size


class Consumer:
    """One session's end of the queue, used in the session's loop alone.

    Args:
        queue: The shared queue.
    """

    def __init__(self, queue: DeliveryQueue) -> None:
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._deliveries: deque[Delivery] = deque()
        self._arrived = asyncio.Event()

    def subscribe(self, token: str) -> None:
        """Take the deliveries for a token.

        Raises:
            ConfigurationError: Another consumer takes them.
        """
        self._queue.subscribe(token, self)

    def unsubscribe(self, token: str, *, is_over: bool = True) -> None:
        """Take no more deliveries for a token: see `DeliveryQueue.unsubscribe`."""
        self._queue.unsubscribe(token, is_over=is_over)

    def push(self, delivery: Delivery) -> None:
        """Add a delivery, in any thread; for the queue, which holds its lock."""
        self._deliveries.append(delivery)
        with suppress(RuntimeError):  # the loop is closed, so it is not taken any more
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self) -> Delivery:
        """Wait for the next delivery."""
        while not self._deliveries:
            self._arrived.clear()
            await self._arrived.wait()
        delivery = self._deliveries.popleft()
        self._queue.on_taken(delivery)
        return delivery

    def forward(self) -> None:
        """Take the deliveries for other processes, too."""
        self._queue.add_forwarder(self)

    def close(self) -> None:
        """Give back what was not taken."""
        self._queue.remove_forwarder(self)
        while self._deliveries:
            self._queue.put_back(self._deliveries.popleft())


def public_part(token: str) -> str:
    """Return the part of a token that is no secret."""
    return token.partition(".")[0]


def _is_same(ours: str, theirs: str) -> bool:
    return hmac.compare_digest(ours.encode(), theirs.encode(errors="replace"))
