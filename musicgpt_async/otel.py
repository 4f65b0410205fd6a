"""OpenTelemetry for a session: a span for each job, and metrics (extra ``otel``).

::

    async with MusicGPTSession() as session:
        instrument(session)

It only reads the session's events, so the session does not depend on it.

======================= ================ ==========================================================
span                    parent           from, to
======================= ================ ==========================================================
``musicgpt.job``        the current one  submit, to the end of the job or of the session
``musicgpt.upload``     the job          first byte, to the response; one for each slot acquired
``musicgpt.wait``       the job          accepted, to finished
``musicgpt.download``   the job          first byte, to the last file; may end after the job's span
======================= ================ ==========================================================

======================== ==== =====================================================================
metric                   unit attributes
======================== ==== =====================================================================
``musicgpt.jobs``        1    ``musicgpt.outcome``: completed, failed, unknown, timed_out, detached
``musicgpt.slots.used``  1
``musicgpt.slots.limit`` 1
``musicgpt.polls``       1    ``musicgpt.answered``: whether the poll succeeded
``musicgpt.throttled``   1    ``musicgpt.call``: submit, poll; counts 429s, and 503s to submits
``musicgpt.bytes``       By   ``musicgpt.direction``: sent, received
``musicgpt.credits``     1    ``musicgpt.kind``: estimated, charged
======================== ==== =====================================================================
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Protocol

import attrs

from musicgpt_async.errors import (
    DeadlineError,
    JobDetachedError,
    MusicGPTError,
    SubmissionUnknownError,
)
from musicgpt_async.events import (
    Accepted,
    Completed,
    Downloaded,
    Downloading,
    Event,
    Failed,
    Polled,
    Queued,
    Throttled,
    Uploading,
    WebhookReceived,
)

try:
    from opentelemetry import metrics, trace
except ImportError as _error:  # pragma: no cover - the tests' environment has it
    raise ImportError(
        'OpenTelemetry is not installed: pip install "musicgpt-async[otel]"', name=_error.name
    ) from _error

SCOPE = "musicgpt_async"
# Ended jobs that are remembered as parents of the spans of their downloads.
MAX_ENDED_JOBS = 1024

# Strong references: a task without one may be garbage-collected while it waits.
_exporters: set[asyncio.Task[None]] = set()


class InstrumentedSession(Protocol):
    """The part of a session that telemetry reads."""

    @property
    def slots(self) -> tuple[int, int]:
        """Number of slots in use, and their limit."""

    def events(self) -> AsyncIterator[Event]:
        """Return the events of all jobs from now on."""


def instrument(
    session: InstrumentedSession,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> asyncio.Task[None]:
    """Export the events of a session to OpenTelemetry from now on.

    The spans of jobs are children of the span that is current at this call, or roots if there is
    none.

    Args:
        session: An open session.
        tracer_provider: The tracer provider; by default the global one.
        meter_provider: The meter provider; by default the global one.

    Returns:
        The exporter task. It ends after the session is closed and every event is exported; await it
        before you shut a provider down. Cancelling it only stops the export.
    """
    telemetry = _Telemetry(
        trace.get_tracer(SCOPE, tracer_provider=tracer_provider),
        metrics.get_meter(SCOPE, meter_provider=meter_provider),
    )
    task = asyncio.create_task(_export(session, session.events(), telemetry), name="musicgpt otel")
    _exporters.add(task)
    task.add_done_callback(_exporters.discard)
    return task


async def _export(
    session: InstrumentedSession, events: AsyncIterator[Event], telemetry: _Telemetry
) -> None:
    try:
        async for event in events:
            telemetry.count_slots(*session.slots)
            telemetry.handle(event)
    finally:
        telemetry.close()


@attrs.define
class _JobSpan:
    """The open span of a job."""

    span: trace.Span
    phase: trace.Span | None = None
    is_waiting: bool = False
    sent: int = 0


@attrs.define
class _DownloadSpan:
    """The open span of a download."""

    span: trace.Span
    received: dict[tuple[str, str], int] = attrs.field(factory=dict)


class _Telemetry:
    """Converter of events to spans and metrics."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._jobs: dict[str, _JobSpan] = {}
        self._ended: OrderedDict[str, trace.Span] = OrderedDict()
        self._downloads: dict[str, _DownloadSpan] = {}
        self._used = self._limit = 0
        self._outcomes = meter.create_counter("musicgpt.jobs", "1", "Jobs that have ended")
        self._slots_used = meter.create_up_down_counter(
            "musicgpt.slots.used", "1", "Unfinished jobs at MusicGPT"
        )
        self._slots_limit = meter.create_up_down_counter(
            "musicgpt.slots.limit", "1", "Maximum number of unfinished jobs, as far as is known"
        )
        self._polls = meter.create_counter("musicgpt.polls", "1", "Polls of job status")
        self._throttled = meter.create_counter("musicgpt.throttled", "1", "Throttled calls")
        self._bytes = meter.create_counter("musicgpt.bytes", "By", "Audio sent and received")
        self._credits = meter.create_counter("musicgpt.credits", "1", "Credits charged by MusicGPT")

    def count_slots(self, used: int, limit: int) -> None:
        """Record the number of slots in use, and their limit."""
        if used != self._used:
            self._slots_used.add(used - self._used)
        if limit != self._limit:
            self._slots_limit.add(limit - self._limit)
        self._used, self._limit = used, limit

    def handle(self, event: Event) -> None:
        """Record an event."""
        match event:
            case Queued():
                self._on_queued(event)
            case Uploading():
                self._on_uploading(event)
            case Accepted():
                self._on_accepted(event)
            case Polled() | WebhookReceived():
                self._on_waiting(event)
            case Throttled():
                self._throttled.add(1, {"musicgpt.call": event.call})
            case Completed():
                self._on_completed(event)
            case Failed():
                self._on_failed(event)
            case Downloading():
                self._on_downloading(event)
            case Downloaded():
                self._end_download(event)

    def close(self) -> None:
        """End all open spans, since no event will end them."""
        self.count_slots(0, 0)
        for download in self._downloads.values():
            download.span.end()
        for job in self._jobs.values():
            if job.phase is not None:
                job.phase.end()
            job.span.end()

    def _on_queued(self, event: Queued) -> None:
        job = self._job(event)
        self._end_phase(job, event)
        job.sent = 0

    def _on_uploading(self, event: Uploading) -> None:
        job = self._job(event)
        if job.phase is None:
            job.phase = self._start("musicgpt.upload", event, below=job.span)
        # `sent` decreases when an attempt starts over.
        new_bytes = event.sent - job.sent if event.sent >= job.sent else event.sent
        job.sent = event.sent
        if event.is_waiting_for_slot:
            job.phase.add_event("waiting for slot", timestamp=_nanoseconds(event))
        self._bytes.add(new_bytes, {"musicgpt.direction": "sent"})

    def _on_accepted(self, event: Accepted) -> None:
        job = self._job(event)
        self._begin_wait(job, event)
        if event.eta is not None:
            job.span.set_attribute("musicgpt.eta", event.eta)
        if event.credit_estimate is not None:
            self._credits.add(event.credit_estimate, {"musicgpt.kind": "estimated"})

    def _on_waiting(self, event: Polled | WebhookReceived) -> None:
        if isinstance(event, Polled):
            self._polls.add(1, {"musicgpt.answered": bool(event.status)})
        if event.job_id in self._ended:
            return  # the poll was in flight when the job ended
        job = self._job(event)
        if isinstance(event, WebhookReceived):
            job.span.add_event("webhook", timestamp=_nanoseconds(event))
        elif not job.is_waiting:  # it was attached, or resumed from a journal
            self._begin_wait(job, event)

    def _on_completed(self, event: Completed) -> None:
        job = self._job(event)
        cost = event.extraction.cost
        if cost is not None:
            job.span.set_attribute("musicgpt.cost", cost)
        if cost is not None and job.is_waiting:  # else it was charged in an earlier process
            self._credits.add(cost, {"musicgpt.kind": "charged"})
        self._end(job, event, "completed")

    def _on_failed(self, event: Failed) -> None:
        if event.job_id in self._jobs:
            self._end(self._jobs[event.job_id], event, _outcome(event.error), event.error)
        else:
            self._end_download(event, event.error)

    def _on_downloading(self, event: Downloading) -> None:
        received = self._download(event).received
        file = (event.stem, event.format)
        before = received.get(file, 0)
        received[file] = event.received
        if event.received > before:
            self._bytes.add(event.received - before, {"musicgpt.direction": "received"})

    def _job(self, event: Event) -> _JobSpan:
        """Return the span of a job; its first event starts it."""
        if event.job_id not in self._jobs:
            self._jobs[event.job_id] = _JobSpan(self._start("musicgpt.job", event))
        return self._jobs[event.job_id]

    def _download(self, event: Event) -> _DownloadSpan:
        if event.job_id not in self._downloads:
            below = self._ended.get(event.job_id)
            span = self._start("musicgpt.download", event, below=below)
            self._downloads[event.job_id] = _DownloadSpan(span)
        return self._downloads[event.job_id]

    def _start(self, name: str, event: Event, *, below: trace.Span | None = None) -> trace.Span:
        return self._tracer.start_span(
            name,
            context=None if below is None else trace.set_span_in_context(below),
            attributes={"musicgpt.job.id": event.job_id, "musicgpt.title": event.title},
            start_time=_nanoseconds(event),
        )

    def _end(
        self, job: _JobSpan, event: Event, outcome: str, error: MusicGPTError | None = None
    ) -> None:
        del self._jobs[event.job_id]
        self._end_phase(job, event, error)
        job.span.set_attribute("musicgpt.outcome", outcome)
        _end_span(job.span, event, error)
        self._outcomes.add(1, {"musicgpt.outcome": outcome})
        self._ended[event.job_id] = job.span
        if len(self._ended) > MAX_ENDED_JOBS:
            self._ended.popitem(last=False)

    def _begin_wait(self, job: _JobSpan, event: Event) -> None:
        self._end_phase(job, event)
        job.phase, job.is_waiting = self._start("musicgpt.wait", event, below=job.span), True
        job.span.set_attribute("musicgpt.task.id", event.task_id or "")

    def _end_phase(self, job: _JobSpan, event: Event, error: MusicGPTError | None = None) -> None:
        phase, job.phase = job.phase, None
        if phase is not None:
            _end_span(phase, event, error)

    def _end_download(self, event: Event, error: MusicGPTError | None = None) -> None:
        download = self._download(event)
        del self._downloads[event.job_id]
        _end_span(download.span, event, error)


def _end_span(span: trace.Span, event: Event, error: MusicGPTError | None) -> None:
    if error is not None and not isinstance(error, JobDetachedError):  # that was asked for
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(trace.Status(trace.StatusCode.ERROR, error.message))
    span.end(end_time=_nanoseconds(event))


def _outcome(error: MusicGPTError) -> str:
    match error:
        case SubmissionUnknownError():
            return "unknown"
        case DeadlineError():
            return "timed_out"
        case JobDetachedError():
            return "detached"
        case _:
            return "failed"


def _nanoseconds(event: Event) -> int:
    return int(event.at * 1e9)
