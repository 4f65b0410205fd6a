"""Telemetry, exported by OpenTelemetry's own SDK to memory."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from aiohttp import web
from factories.sessions import TRACK, connected
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from musicgpt_async import MusicGPTError, WebhookReceiver, events
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.otel import instrument

pytestmark = [pytest.mark.anyio, pytest.mark.accelerated(20)]


@attrs.frozen
class Told:
    """The spans and metrics that were exported."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    _spans: InMemorySpanExporter
    _metrics: InMemoryMetricReader

    @property
    def providers(self) -> dict[str, Any]:
        """Arguments of instrument()."""
        return {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Return the spans that have ended, the first to end first."""
        return [span for span in self._spans.get_finished_spans() if name in ("", span.name)]

    def number(self, name: str, **attributes: Any) -> float:
        """Return a metric's value, summed over all attributes that are not given."""
        wanted = {f"musicgpt.{key}": each for key, each in attributes.items()}
        data = self._metrics.get_metrics_data()
        return sum(
            point.value
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"musicgpt.{name}"
            for point in metric.data.data_points
            if wanted.items() <= dict(point.attributes).items()
        )


@pytest.fixture
def told() -> Iterator[Told]:
    """Providers of this test's own, with exporters in memory."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider(metric_readers=[reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    yield Told(tracers, meters, spans, reader)
    tracers.shutdown()
    meters.shutdown()


async def test_a_job_is_a_span_with_its_phases_below(
    vendor: Emulator, told: Told, tmp_path: Path
) -> None:
    """Upload, wait and download are children of the job's span, in order and within its time."""
    async with connected(vendor) as session:
        telling = instrument(session, **told.providers)
        job = session.submit(TRACK, stems=["vocals", "bass"])
        await job.download(tmp_path)
    await telling
    (whole,) = told.spans("musicgpt.job")
    children = [span for span in told.spans() if span is not whole]
    assert [span.name for span in children] == [
        "musicgpt.upload",
        "musicgpt.wait",
        "musicgpt.download",
    ]
    assert [span.parent and span.parent.span_id for span in children] == [whole.context.span_id] * 3
    moments = [moment for span in children for moment in (span.start_time, span.end_time)]
    assert moments == sorted(moments)
    assert whole.start_time <= moments[0]
    assert whole.end_time == children[1].end_time
    assert dict(whole.attributes or {}) == {
        "musicgpt.job.id": job.id,
        "musicgpt.title": "song",
        "musicgpt.task.id": job.task_id,
        "musicgpt.eta": job.eta,
        "musicgpt.cost": job.result().cost,
        "musicgpt.outcome": "completed",
    }


async def test_every_byte_is_counted_once(told: Told, tmp_path: Path) -> None:
    """Progress has many steps; their sum is the number of bytes transferred."""
    track = ("song.mp3", b"ID3" + bytes(5_000_000))
    async with Emulator(seconds=0.05, separate=False, stem_bytes=3_000_000) as vendor:
        async with connected(vendor) as session:
            telling = instrument(session, **told.providers)
            files = await session.extract(track, tmp_path, stems=["vocals", "bass"])
        await telling
    assert told.number("bytes", direction="sent") == len(track[1])
    assert told.number("bytes", direction="received") == sum(
        path.stat().st_size for path in files.values()
    )


async def test_spans_have_the_events_own_times(vendor: Emulator, told: Told) -> None:
    """A span begins and ends when its events happened, however late they are read."""
    async with connected(vendor) as session:
        began = time.time()
        telling, happened = instrument(session, **told.providers), session.events()
        await session.submit(TRACK)
        ended = time.time()
    await telling
    times = {type(event): event.at async for event in happened}
    (whole,) = told.spans("musicgpt.job")
    assert whole.start_time == int(times[events.Queued] * 1e9)
    assert whole.end_time == int(times[events.Completed] * 1e9)
    assert began <= times[events.Queued] <= times[events.Completed] <= ended


async def test_the_exporter_runs_without_a_reference_to_its_task(
    vendor: Emulator, told: Told
) -> None:
    """A program may drop what instrument() returns; a garbage collection does not end it."""
    async with connected(vendor) as session:
        instrument(session, **told.providers)
        await anyio.lowlevel.checkpoint()  # it waits, and only the events' reader knows it
        gc.collect()
        await session.submit(TRACK)
    with anyio.fail_after(10):
        while not told.spans("musicgpt.job"):
            await anyio.sleep(0.01)


async def test_numbers_are_the_vendors_own(vendor: Emulator, told: Told) -> None:
    """Jobs by outcome, polls and credits equal the emulator's numbers, and all slots are free."""
    vendor.script(Fault("job", "fails", times=2), Fault("byId", "status", status=503))
    async with connected(vendor) as session:
        telling = instrument(session, **told.providers)
        jobs = [session.submit(TRACK) for _ in range(10)]
        most = 0
        for job in jobs:
            await job.accepted()
            most = max(most, int(told.number("slots.used")))
    await telling
    assert told.number("jobs") == 10
    assert told.number("jobs", outcome="completed") == 8
    assert told.number("jobs", outcome="failed") == 2
    assert told.number("polls") == vendor.polls
    assert told.number("polls", answered=False) == 1
    assert told.number("credits", kind="estimated") == pytest.approx(session.credits_estimated)
    assert told.number("credits", kind="charged") == pytest.approx(10_000 - vendor.credits)
    assert most > 0
    assert told.number("slots.used") == told.number("slots.limit") == 0
    failed = [s for s in told.spans("musicgpt.job") if s.status.status_code is StatusCode.ERROR]
    assert {(s.attributes or {})["error.type"] for s in failed} == {"ExtractionFailedError"}
    assert len(failed) == 2


async def test_429s_are_counted_where_they_came(told: Told) -> None:
    """A full account delays a submit: one more upload span, one count; a poll likewise."""
    faults = [
        Fault("submit", "status", status=429, retry_after=1),
        Fault("byId", "status", status=429, retry_after=1),
    ]
    async with (
        Emulator(seconds=0.05, separate=False, faults=faults) as vendor,
        connected(vendor) as session,
    ):
        telling = instrument(session, **told.providers)
        await session.submit(TRACK)
    await telling
    assert told.number("throttled", call="submit") == 1
    assert told.number("throttled", call="poll") == 1
    assert len(told.spans("musicgpt.upload")) == 2
    assert len(told.spans("musicgpt.job")) == 1


async def test_each_end_has_its_name(told: Told) -> None:
    """Unknown, timed out and detached are distinct, and a requested end is not an error."""
    async with Emulator(seconds=60, separate=False, listing=False) as vendor:
        vendor.script(Fault("submit", "drop_before_answer"))
        async with connected(vendor) as session:
            unknown = session.submit(TRACK)
            first = instrument(session, **told.providers)
            with pytest.raises(MusicGPTError):
                await unknown
        async with connected(vendor, deadline=0.1) as session:
            second = instrument(session, **told.providers)
            session.submit(TRACK)
        async with connected(vendor) as session:
            third = instrument(session, **told.providers)
            released = session.submit(TRACK)
            await released.accepted()
            released.cancel()
    for telling in (first, second, third):
        await telling
    assert [(s.attributes or {})["musicgpt.outcome"] for s in told.spans("musicgpt.job")] == [
        "unknown",
        "timed_out",
        "detached",
    ]
    assert [s.status.status_code for s in told.spans("musicgpt.job")] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]


async def test_a_failed_download_is_an_error_below_a_good_job(
    vendor: Emulator, told: Told, tmp_path: Path
) -> None:
    """The job's span stays what it was; the download's bears the error."""
    vendor.script(Fault("file", "html", times=None))
    async with connected(vendor) as session:
        telling = instrument(session, **told.providers)
        with pytest.raises(MusicGPTError):
            await session.submit(TRACK, stems=["vocals"]).download(tmp_path)
    await telling
    (whole,), (download,) = told.spans("musicgpt.job"), told.spans("musicgpt.download")
    assert whole.status.status_code is StatusCode.UNSET
    assert download.status.status_code is StatusCode.ERROR
    assert (download.attributes or {})["error.type"] == "DownloadError"
    assert told.number("jobs", outcome="completed") == 1


async def test_an_attached_job_is_waited_for(vendor: Emulator, told: Told) -> None:
    """An attached job has a wait span and a cost, but no upload span."""
    async with connected(vendor) as session:
        task_id = (await session.submit(TRACK)).task_id
        telling = instrument(session, **told.providers)
        await session.attach(task_id)
    await telling
    assert [span.name for span in told.spans()] == ["musicgpt.wait", "musicgpt.job"]
    assert told.number("credits", kind="charged") == pytest.approx(10_000 - vendor.credits)


async def test_a_webhook_is_seen_on_the_span(vendor: Emulator, told: Told) -> None:
    """The delivery that woke a job is an event of its span."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = WebhookReceiver(f"http://127.0.0.1:{listener.getsockname()[1]}/hooks")
        app = web.Application()
        app.add_routes(receiver.routes())
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        async with connected(vendor, webhooks=receiver) as session:
            telling = instrument(session, **told.providers)
            await session.submit(TRACK)
        await telling
        await runner.cleanup()
    (whole,) = told.spans("musicgpt.job")
    assert [event.name for event in whole.events] == ["webhook"]


class _Recorded:
    """A session whose events are known beforehand."""

    slots = (0, 1)

    def __init__(self, *recorded: events.Event) -> None:
        self._recorded = recorded

    async def events(self) -> AsyncIterator[events.Event]:
        """Yield the events."""
        for event in self._recorded:
            yield event


async def test_the_wait_of_a_ready_upload_is_seen_on_its_span(told: Told) -> None:
    """An upload that is ready and waits for a slot says when on the upload's span."""
    ids = {"job_id": "job", "title": "song"}
    waiting = events.Uploading(**ids, sent=9, total=10, is_waiting_for_slot=True)
    sent = events.Uploading(**ids, sent=10, total=10)
    await instrument(_Recorded(waiting, sent), **told.providers)
    (upload,) = told.spans("musicgpt.upload")
    assert [(each.name, each.timestamp) for each in upload.events] == [
        ("waiting for slot", int(waiting.at * 1e9))
    ]


async def test_spans_go_below_the_current_one(vendor: Emulator, told: Told) -> None:
    """A batch under a span of the caller's has its jobs below that span."""
    tracer = told.tracer_provider.get_tracer("caller")
    async with connected(vendor) as session:
        with tracer.start_as_current_span("batch") as batch:
            telling = instrument(session, **told.providers)
        await session.submit(TRACK)
    await telling
    (whole,) = told.spans("musicgpt.job")
    assert whole.parent is not None
    assert whole.parent.span_id == batch.get_span_context().span_id


async def test_telling_ends_when_it_is_cancelled(vendor: Emulator, told: Told) -> None:
    """Cancelling ends the open spans and leaves the job alone."""
    async with connected(vendor) as session:
        telling = instrument(session, **told.providers)
        job = session.submit(TRACK)
        await job.accepted()
        telling.cancel()
        assert (await job).stems
    assert telling.cancelled()
    assert len(told.spans("musicgpt.job")) == 1
    assert told.number("slots.used") == 0


def test_nothing_is_imported_that_is_not_needed() -> None:
    """The library and its session work without OpenTelemetry, and never import it."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import musicgpt_async, musicgpt_async.testing\n"
        "assert 'musicgpt_async.otel' not in sys.modules\n"
        "try:\n    import musicgpt_async.otel\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert 'pip install "musicgpt-async[otel]"' in done.stdout, done.stderr
