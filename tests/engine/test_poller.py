"""Webhooks and polls together: whichever is first, one winner."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest
import uvicorn
from aiohttp import web
from factories.sessions import TRACK, connected, free_port
from fastapi import FastAPI

from musicgpt_async import (
    JobState,
    Limits,
    MusicGPTSession,
    SubmissionUnknownError,
    WebhookReceiver,
    events,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = [pytest.mark.anyio, pytest.mark.accelerated(20)]

FIFTY = Limits(parallel=50, polls_per_minute=500)


@asynccontextmanager
async def alone() -> AsyncIterator[WebhookReceiver]:
    """The receiver as a server of its own."""
    port = free_port()
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/hooks")
    async with receiver.serve("127.0.0.1", port):
        yield receiver


@asynccontextmanager
async def in_aiohttp() -> AsyncIterator[WebhookReceiver]:
    """The receiver's routes in an aiohttp application that has others too."""
    port = free_port()
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/hooks")
    app = web.Application()
    app.add_routes([web.post("/other", _other), *receiver.routes()])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield receiver
    await runner.cleanup()


async def _other(_: web.Request) -> web.Response:
    return web.Response(text="the application's own")


@asynccontextmanager
async def in_fastapi() -> AsyncIterator[WebhookReceiver]:
    """The receiver mounted in FastAPI behind uvicorn."""
    port = free_port()
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/hooks")
    app = FastAPI()
    app.mount("/hooks", receiver.asgi)
    config = uvicorn.Config(app, port=port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield receiver
    server.should_exit = True
    await serving


@pytest.mark.parametrize("door", [alone, in_aiohttp, in_fastapi])
async def test_a_batch_finishes_as_it_is_delivered(door: Any) -> None:
    """With each endpoint, 50 jobs finish as they are delivered, with one poll each."""
    turns = itertools.count()
    vendor = Emulator(
        seconds=lambda _: 1.0 + 0.04 * next(turns), eta=60, separate=False, parallel=50
    )
    async with (
        vendor,
        door() as receiver,
        connected(vendor, webhooks=receiver, limits=FIFTY) as session,
    ):
        began = anyio.current_time()
        jobs = [session.submit((f"{n}.mp3", TRACK[1])) for n in range(50)]
        await asyncio.gather(*jobs)
        took = anyio.current_time() - began
    assert len(vendor.deliveries) == 50
    # The last is delivered after 3 s; polling alone would come no sooner than the eta of a minute.
    assert took < 30
    assert vendor.polls <= 60
    assert len(vendor.submissions) == 50


MISBEHAVIOURS = [
    ("normal",),
    ("before_answer",),
    ("early", "normal"),
    ("twice",),
    ("late",),
    ("lost",),
    ("garbled",),
    ("garbled", "normal"),
    ("forged", "normal"),
    ("other_task", "normal"),
    ("other_task", "forged", "garbled", "early", "twice"),
]


async def test_every_misbehaviour_at_once_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """200 jobs under everything that webhooks can do wrong: each right, none twice, no leak."""
    caplog.set_level(logging.DEBUG)
    mixture = itertools.cycle(MISBEHAVIOURS)
    vendor = Emulator(
        seconds=2.0,
        separate=False,
        parallel=None,
        polls_per_minute=None,
        speed=5.0,
        webhooks=lambda _: next(mixture),
    )
    limits = Limits(parallel=50, polls_per_minute=5000)
    async with vendor, alone() as receiver:
        async with connected(vendor, webhooks=receiver, limits=limits) as session:
            jobs = [session.submit((f"{n}.mp3", TRACK[1]), stems=["bass"]) for n in range(200)]
            tokens = [job._job.record.token for job in jobs]
        tokens += [job._job.record.token for job in jobs]
        assert len(receiver._queue) == 0
    assert {job.state for job in jobs} == {JobState.COMPLETED}
    by_task = {each.task_id: each for each in vendor.submissions}
    assert len(by_task) == len({job.task_id for job in jobs}) == 200
    for job in jobs:
        links = (await job).stems["bass"]
        own = by_task[job.task_id or ""].conversion_id
        assert own in (links.wav or "")
        assert own in (links.mp3 or "")
    secrets = [token.partition(".")[2] for token in tokens if token]
    assert secrets
    assert not any(secret in caplog.text for secret in secrets)


async def test_a_lost_answer_comes_in_by_its_webhook() -> None:
    """One submission, its answer dropped: the delivery names the task and the job completes."""
    vendor = Emulator(
        seconds=0.3,
        separate=False,
        webhooks=("other_task", "normal"),
        faults=[Fault("submit", "drop_before_answer")],
    )
    async with (
        vendor,
        alone() as receiver,
        connected(vendor, webhooks=receiver, limits=FIFTY) as session,
    ):
        job = session.submit(TRACK)
        extraction = await job
    assert [each.task_id for each in vendor.submissions] == [extraction.task_id]


async def test_a_lost_answer_whose_webhook_is_lost_too_is_unknown() -> None:
    """With neither answer nor delivery by the deadline, the job ends as unknown; one submission."""
    faults = [Fault("submit", "drop_before_answer")]
    vendor = Emulator(seconds=0.1, separate=False, webhooks="lost", faults=faults)
    async with (
        vendor,
        alone() as receiver,
        connected(vendor, webhooks=receiver, limits=FIFTY, deadline=1.0) as session,
    ):
        job = session.submit(TRACK)
        with pytest.raises(SubmissionUnknownError):
            await job
    assert len(vendor.submissions) == 1


async def test_a_delivery_for_an_unfinished_job_finishes_nothing() -> None:
    """A delivery with the right token is only a hint: the job continues until byId confirms it."""
    vendor = Emulator(seconds=5, separate=False, webhooks="early")
    async with (
        vendor,
        alone() as receiver,
        connected(vendor, webhooks=receiver, limits=FIFTY) as session,
    ):
        stream = session.events()
        job = session.submit(TRACK)
        async for event in stream:
            if isinstance(event, events.WebhookReceived):
                break
        while vendor.polls < 3:
            await asyncio.sleep(0.01)
        assert job.state is JobState.PROCESSING
        job.cancel()


async def test_links_that_byid_leaves_out_come_from_the_delivery() -> None:
    """A WAV link that only the delivery has is used, since it bore the token and the task."""
    async with (
        bare_vendor() as (base_url, deliver),
        alone() as receiver,
        MusicGPTSession("key", base_url=base_url, webhooks=receiver) as session,
    ):
        job = session.submit(TRACK, stems=["bass"])
        await job.accepted()
        await deliver(
            json.dumps({"bass": "https://example.com/d.mp3"}),
            json.dumps({"bass": "https://example.com/d.wav"}),
        )
        links = (await job).stems["bass"]
    assert links.mp3 == "https://example.com/byid.mp3"
    assert links.wav == "https://example.com/d.wav"


@asynccontextmanager
async def bare_vendor() -> AsyncIterator[tuple[str, Any]]:
    """A vendor of a few lines whose byId knows MP3 links alone, and only after a delivery."""
    state: dict[str, Any] = {"status": "PROCESSING"}

    async def submit(request: web.Request) -> web.Response:
        state["hook"] = (await request.post())["webhook_url"]
        return web.json_response({"success": True, "task_id": "t", "eta": -1})

    async def look(_: web.Request) -> web.Response:
        conversion = {"task_id": "t", "status": state["status"]}
        if state["status"] == "COMPLETED":
            conversion["audio_url"] = json.dumps({"bass": "https://example.com/byid.mp3"})
        return web.json_response({"success": True, "conversion": conversion})

    async def deliver(mp3: str, wav: str) -> None:
        state["status"] = "COMPLETED"
        payload = {"success": True, "task_id": "t", "audio_url": mp3, "audio_url_wav": wav}
        async with aiohttp.request("POST", state["hook"], json=payload) as answer:
            assert answer.status == 200

    app = web.Application()
    app.add_routes([web.post("/v1/Extraction", submit), web.get("/v1/byId", look)])
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}/v1", deliver
    await runner.cleanup()


async def test_uploads_and_downloads_that_hang_hold_up_no_look(tmp_path: Any) -> None:
    """With every upload and every file connection stuck, jobs are still seen to finish."""
    faults = [
        Fault("file", "stall", times=None),
        Fault("submit", "stall_read", times=4, after=12, at=1000),
    ]
    vendor = Emulator(seconds=0.05, separate=False, parallel=None, faults=faults)
    limits = Limits(parallel=20, polls_per_minute=500)
    async with vendor, alone() as receiver:
        session = connected(vendor, webhooks=receiver, limits=limits, downloads=4)
        await session.start()
        stuck = [session.submit((f"{n}.mp3", TRACK[1])) for n in range(12)]
        downloads = [asyncio.create_task(job.download(tmp_path)) for job in stuck]
        await asyncio.gather(*stuck)
        long = bytes(64 << 20)  # more than the sockets' buffers can grow to
        uploads = [session.submit((f"long{n}.mp3", long)) for n in range(4)]
        while vendor.faults.fired("stall") < 4 or vendor.faults.fired("stall_read") < 4:
            await asyncio.sleep(0.01)
        later = [session.submit((f"later{n}.mp3", TRACK[1])) for n in range(3)]
        assert [(await job).task_id for job in later]
        assert not any(task.done() for task in downloads)
        assert {job.state for job in uploads} == {JobState.UPLOADING}
        for task in downloads:
            task.cancel()
        await asyncio.gather(*downloads, return_exceptions=True)
        await session.aclose(drain=False)
