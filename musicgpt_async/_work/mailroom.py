"""Webhooks on their way to jobs: a letterbox for each, and what its deliveries hint at."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import anyio

from musicgpt_async._rules import payloads
from musicgpt_async._rules.payloads import Conversion
from musicgpt_async.events import Feed, Woken
from musicgpt_async.job import ExtractionJob
from musicgpt_async.webhooks import WebhookReceiver

_log = logging.getLogger(__name__)


class Mailroom:
    """Opens letterboxes and remembers hints; without a receiver it does nothing.

    A delivery is a hint and wakes the job; only byId's answer counts.

    Args:
        receiver: The door.
        wake: Called with a job that a delivery came for.
        keep: Writes down a job whose task a delivery has brought in.
        feed: Where events go.
    """

    def __init__(
        self,
        receiver: WebhookReceiver | None,
        *,
        wake: Callable[[ExtractionJob], None],
        keep: Callable[[ExtractionJob], Awaitable[None]],
        feed: Feed,
    ) -> None:
        self._receiver = receiver
        self._wake = wake
        self._keep = keep
        self._feed = feed
        self._hints: dict[str, Conversion] = {}
        self._news: dict[str, anyio.Event] = {}

    def expects(self, job: ExtractionJob) -> bool:
        """Return whether a webhook may come for a job."""
        return self._receiver is not None and job.record.token is not None

    def open(self, job: ExtractionJob) -> str | None:
        """Open a job's letterbox before it is submitted; return the URL to give to the vendor."""
        if self._receiver is None:
            return None
        if job.id not in self._news:
            token = job.record.token or self._receiver.token_for(job.id)
            job.note(token=token)
            self._news[job.id] = anyio.Event()
            take, keep = partial(self._take, job), partial(self._kept, job)
            self._receiver.inbox.open(token, take, keep)
        return self._receiver.url_for(job.record.token or "")

    def close(self, job: ExtractionJob) -> None:
        """Close a job's letterbox; harmless when it has none."""
        self._hints.pop(job.id, None)
        news = self._news.pop(job.id, None)
        if news is not None and self._receiver is not None:
            news.set()
            self._receiver.inbox.close(job.record.token or "")

    def report_silence(self, *, now: float) -> None:
        """Say once that the receiver does not hear the vendor.

        Args:
            now: Monotonic seconds.
        """
        receiver = self._receiver
        if receiver is not None and receiver.inbox.reliability.has_fallen_silent(now=now):
            _log.warning(
                "Jobs finish but their webhooks do not arrive at %s; the session polls instead. "
                "Check the URL with `musicgpt-async doctor --webhook %s`.",
                receiver.public_url,
                receiver.public_url,
            )

    def hint(self, job: ExtractionJob) -> Conversion | None:
        """Return what deliveries that named a job's own task have said."""
        hint = self._hints.get(job.id)
        return hint if hint and hint.task_id == job.task_id else None

    def keep(self, job: ExtractionJob, hint: Conversion) -> None:
        """Keep a hint that :meth:`named_task` returned and that turned out to be true."""
        self._hints[job.id] = hint

    async def named_task(self, job: ExtractionJob) -> Conversion | None:
        """Wait for a delivery that names a task; ``None`` once the letterbox is closed."""
        while (news := self._news.get(job.id)) is not None:
            if (hint := self._hints.pop(job.id, None)) is not None:
                return hint
            await news.wait()
            if job.id in self._news:
                self._news[job.id] = anyio.Event()
        return None

    def _take(self, job: ExtractionJob, payload: Mapping[str, Any]) -> None:
        delivery = payloads.read_delivery(payload, requested=job.stems)
        if delivery.task_id and delivery.task_id == (job.task_id or delivery.task_id):
            self._hints[job.id] = delivery
            job.note(hinted_task=delivery.task_id)
            self._news[job.id].set()
        if self._feed:
            self._feed.publish(job.event(Woken))
        self._wake(job)

    async def _kept(self, job: ExtractionJob) -> None:
        # What is acknowledged does not come again: a task that nothing else has told is on disk by
        # then, though only byId's answer will make it the job's.
        if job.task_id is None and job.record.hinted_task is not None:
            await self._keep(job)
