"""Deliveries: a session's share of the webhooks that its receiver gets.

A delivery is a hint: it has its job polled at once, and only the answer of that poll counts. One
that names a task which nothing else has named is acknowledged when the task is durable, because an
acknowledged delivery is not repeated.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.jobs import Jobs
from musicgpt_async._engine.store import JobStore
from musicgpt_async._engine.supervision import Supervisor
from musicgpt_async._io.delivery_queue import Consumer, Delivery
from musicgpt_async._rules import payloads
from musicgpt_async._rules.lifecycle import Effect, Trigger
from musicgpt_async._rules.payloads import Conversion
from musicgpt_async.errors import JournalError
from musicgpt_async.events import EventBus, WebhookReceived
from musicgpt_async.webhooks import WebhookReceiver

_log = logging.getLogger(__name__)


class Deliveries:
    """Subscribes jobs to their webhooks and dispatches what arrives; idle without a receiver.

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
        self._subscribed: dict[str, Job] = {}  # by token
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
        token = job.record.token or self._receiver._token_for(job.id)
        if token not in self._subscribed:
            self._consumer.subscribe(token)
            self._subscribed[token] = job
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
        """Receive nothing more for a job that has ended."""
        if Effect.END in effects and job.record.token is not None:
            self._hints.pop(job.id, None)
            if self._subscribed.get(job.record.token) is job and self._consumer is not None:
                del self._subscribed[job.record.token]
                self._consumer.unsubscribe(job.record.token)

    async def run(self) -> None:
        """Dispatch deliveries until the session ends."""
        while self._consumer is not None:
            delivery = await self._consumer.get()
            self._supervisor.spawn(
                self._dispatch, delivery, on_failure=partial(self._on_failure, delivery)
            )

    def close(self) -> None:
        """Leave what has not been dispatched to whoever subscribes next."""
        if self._consumer is not None:
            self._consumer.close()

    async def _dispatch(self, delivery: Delivery) -> None:
        job = self._subscribed.get(delivery.token)
        if job is not None:
            await self._take_hint(job, delivery)
        delivery.acknowledge()

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
