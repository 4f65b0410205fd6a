"""Deliveries: a session's part of the webhooks that its receiver gets.

A delivery is a hint: its job is polled at once, and only the response to that poll changes the job.
If a delivery names a task id that is not saved yet, it is acknowledged once the id is durable,
because an acknowledged delivery is not repeated.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import anyio

from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.jobs import Jobs
from musicgpt_async._engine.store import JobStore
from musicgpt_async._engine.supervision import Supervisor
from musicgpt_async._engine.wakeup import Wakeup
from musicgpt_async._io.delivery_queue import Consumer, Delivery, public_part
from musicgpt_async._io.forwarding import DELIVERY
from musicgpt_async._rules import payloads
from musicgpt_async._rules.lifecycle import Effect, Trigger
from musicgpt_async._rules.payloads import Conversion
from musicgpt_async.errors import JournalError
from musicgpt_async.events import EventBus, WebhookReceived
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobState
from musicgpt_async.webhooks import WebhookReceiver

_log = logging.getLogger(__name__)

MAX_FORWARDING = 256  # deliveries that are being saved for other processes
_OVER = frozenset({JobState.COMPLETED, JobState.FAILED})


class Deliveries:
    """Subscribes jobs to their webhooks and dispatches deliveries; does nothing without a receiver.

    Args:
        receiver: Gets the webhooks.
        jobs: The only writer of records.
        store: Makes records durable.
        event_bus: Where events go.
        supervisor: Starts children.
    """

    def __init__(
        self,
        receiver: WebhookReceiver | None,
        *,
        jobs: Jobs,
        store: JobStore,
        event_bus: EventBus,
        supervisor: Supervisor,
    ) -> None:
        self._receiver = receiver
        self._jobs = jobs
        self._store = store
        self._event_bus = event_bus
        self._supervisor = supervisor
        self._consumer = None if receiver is None else Consumer(receiver._queue)
        self._subscribed: dict[str, Job] = {}  # by the public part of their tokens
        self._unread: set[str] = set()  # public parts for which older deliveries may be kept
        self._collecting = Wakeup()
        self._forwarding = 0  # deliveries that are being saved for other processes
        self._secret: bytes | None = None
        if receiver is not None and self._consumer is not None and store.journal is not None:
            self._secret = store.journal._secret.encode()
            receiver._learn_secret(self._secret)
            self._consumer.forward()
        self._hints: dict[str, Conversion] = {}  # by job

    def is_subscribed(self, job: Job) -> bool:
        """Return whether a webhook may come for a job."""
        return self._consumer is not None and job.record.token is not None

    def subscribe(self, job: Job) -> str | None:
        """Receive a job's webhooks from now on; return the URL to give to MusicGPT.

        Raises:
            ConfigurationError: Another session of this process receives them.
        """
        if self._receiver is None or self._consumer is None or not self._store.may_write(job):
            return None
        token = job.record.token or self._receiver._token_for(job.id, self._secret)
        public = public_part(token)
        if public not in self._subscribed:
            self._consumer.subscribe(token)
            self._subscribed[public] = job
            if job.record.token is not None:  # it is resumed, so a delivery may have arrived before
                self._unread.add(public)
            self._collecting.set()
            self._jobs.update(job, save=False, token=token)
        return self._receiver._url_for(token)

    def report_silence(self, *, now: float) -> None:
        """Log once that MusicGPT's deliveries do not reach the receiver.

        Args:
            now: Monotonic seconds.
        """
        receiver = self._receiver
        if receiver is not None and receiver._queue.reliability.has_fallen_silent(now=now):
            _log.warning(
                "Jobs finish but their webhooks do not arrive at %s; the session polls instead. "
                "Check the URL with `musicgpt-async doctor --webhook %s`.",
                receiver.public_url,
                receiver.public_url,
            )

    def hint(self, job: Job) -> Conversion | None:
        """Return what a delivery said that named a job's own task."""
        hint = self._hints.get(job.id)
        return hint if hint and hint.task_id == job.record.task_id else None

    def conversion_id(self, job: Job, task_id: str) -> str | None:
        """Return the conversion that a delivery named with a task."""
        hint = self._hints.get(job.id)
        return hint.conversion_id if hint and hint.task_id == task_id else None

    def on_change(self, job: Job, effects: Effect) -> None:
        """Unsubscribe a job that has ended."""
        if Effect.END in effects and job.record.token is not None:
            self._hints.pop(job.id, None)
            public = public_part(job.record.token)
            if self._subscribed.get(public) is job and self._consumer is not None:
                del self._subscribed[public]
                self._consumer.unsubscribe(job.record.token, is_over=job.record.state in _OVER)

    async def run(self) -> None:
        """Dispatch deliveries until the session ends."""
        while self._consumer is not None:
            self._start_dispatch(await self._consumer.get())

    def _start_dispatch(self, delivery: Delivery) -> None:
        self._supervisor.spawn(
            self._dispatch, delivery, on_failure=partial(self._on_failure, delivery)
        )

    async def collect(self) -> None:
        """Collect the deliveries that other processes have received, until the session ends."""
        journal = self._store.journal
        assert journal is not None  # noqa: S101 - this part runs with a journal alone
        while True:
            while not self._subscribed:
                await self._collecting.wait()
            with journal._notifications.listen(self._on_notification):
                await self._collect_while_subscribed(journal)

    async def _collect_while_subscribed(self, journal: Journal) -> None:
        last: int | None = None
        while self._subscribed:
            try:
                if last is None:
                    last = await journal._forwarding.find_last()
                    self._unread.update(self._subscribed)
                last = await self._collect_after(journal, last)
            except JournalError as error:
                _log.debug("Webhooks of other processes could not be read: %s", error)
            limit = anyio.current_time() + journal._notifications.wait_limit
            await self._collecting.wait(until=limit)

    async def _collect_after(self, journal: Journal, last: int) -> int:
        unread = set(self._unread)
        found = await journal._forwarding.read_for(unread) if unread else []
        newer = await journal._forwarding.read_after(last)
        self._unread -= unread
        for _, public, payload in [*found, *newer]:
            if public in self._subscribed:
                self._start_dispatch(Delivery(public, payload, 0))
        if newer:
            last = newer[-1][0]
            self._collecting.set()  # there may be more
        return last

    def _on_notification(self, text: str) -> None:
        kind, _, public = text.partition(" ")
        if not kind or (kind == DELIVERY and public in self._subscribed):
            self._collecting.set()

    def close(self) -> None:
        """Close; deliveries that are not dispatched yet stay for the next subscriber."""
        if self._consumer is not None:
            self._consumer.close()

    async def _dispatch(self, delivery: Delivery) -> None:
        job = self._subscribed.get(public_part(delivery.token))
        if job is not None:
            await self._take_hint(job, delivery)
        else:
            await self._forward(delivery)
        delivery.acknowledge()

    async def _forward(self, delivery: Delivery) -> None:
        """Save a delivery for the process that works on its job, and wake that process."""
        if self._store.journal is None:
            return
        if self._forwarding >= MAX_FORWARDING:
            raise JournalError("Too many webhooks wait to be written to the journal.")
        self._forwarding += 1
        try:
            public = public_part(delivery.token)
            await self._store.journal._forwarding.forward(public, delivery.payload)
        finally:
            self._forwarding -= 1

    async def _take_hint(self, job: Job, delivery: Delivery) -> None:
        hint = payloads.parse_delivery(delivery.payload, requested=job.record.stems)
        facts: dict[str, Any] = {}
        if hint.task_id and job.record.task_id in (None, hint.task_id):
            self._hints[job.id] = hint
            facts = {"candidate_task_id": hint.task_id}
        if self._event_bus:
            self._event_bus.publish(job.make_event(WebhookReceived))
        self._jobs.apply(job, Trigger.WEBHOOK_RECEIVED, **facts)
        if facts and job.record.task_id is None:
            await self._store.save_now_or_later(job)

    def _on_failure(self, delivery: Delivery, error: Exception) -> None:
        # No traceback and no message: both may hold what was delivered.
        _log.error("A webhook was not processed: %s.", type(error).__name__)
        if isinstance(error, JournalError):
            delivery.reject()  # so that it is repeated, and its task is not lost
        else:
            delivery.acknowledge()
