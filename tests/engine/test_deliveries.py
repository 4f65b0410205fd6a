"""The dispatcher between the webhook queue and the jobs of a session."""

from __future__ import annotations

from typing import Any

import aiohttp
import anyio
import pytest
from factories.endpoints import PUBLIC_URL
from factories.journals import job as make_record

from musicgpt_async._engine.deliveries import Deliveries
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.jobs import Jobs
from musicgpt_async._engine.store import JobStore
from musicgpt_async._engine.supervision import Supervisor
from musicgpt_async._rules.lifecycle import Effect
from musicgpt_async.events import EventBus
from musicgpt_async.webhooks import WebhookReceiver

pytestmark = pytest.mark.anyio


class _FailingObserver:
    """Fails at each change of one job."""

    def __init__(self, failing: str) -> None:
        self._failing = failing
        self.seen: list[str] = []

    def on_change(self, job: Job, _: Effect) -> None:
        """Note a change, or fail."""
        if job.id == self._failing:
            raise LookupError(job.record.token, job.record.candidate_task_id)
        self.seen.append(job.id)


async def test_a_job_that_raises_does_not_break_the_endpoint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its delivery is acknowledged, the log shows no token, and the next job gets its own."""
    receiver, observer = WebhookReceiver(PUBLIC_URL), _FailingObserver("bad")
    store, event_bus = JobStore(None, account=""), EventBus()
    runtime: Any = None  # nothing is asked of a handle here
    jobs = Jobs(store, event_bus, runtime)
    jobs.observe(observer)
    async with (
        receiver.serve(port=0) as root,
        aiohttp.ClientSession() as client,
        anyio.create_task_group() as group,
    ):
        supervisor = Supervisor(group)
        deliveries = Deliveries(
            receiver, jobs=jobs, store=store, event_bus=event_bus, supervisor=supervisor
        )
        group.start_soon(deliveries.run)
        tokens = {}
        for name in ("bad", "good"):
            url = deliveries.subscribe(jobs.create(make_record(name), None, name, None))
            tokens[name] = str(url).rpartition("/")[2]
        for name in ("bad", "good"):
            async with client.post(f"{root}/{tokens[name]}", json={"task_id": "private"}) as reply:
                assert reply.status == 200
        group.cancel_scope.cancel()
    assert observer.seen == ["good"]
    assert "LookupError" in caplog.text
    assert tokens["bad"] not in caplog.text
    assert "private" not in caplog.text
