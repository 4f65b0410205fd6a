"""The response to a submit has a time limit, and a webhook can arrive before it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import attrs
import pytest
from aiohttp import web

from musicgpt_async import (
    Limits,
    MusicGPTSession,
    SubmissionUnknownError,
    WebhookReceiver,
)
from musicgpt_async._io.http import Transport
from musicgpt_async._rules.retrying import response_timeout
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.errors import TransportTimeoutError

pytestmark = [pytest.mark.anyio, pytest.mark.accelerated(20)]

TRACK = ("song.mp3", b"ID3" + b"\x00" * 3000)


@attrs.define
class SlowVendor:
    """A server that accepts every submit and sends interim responses instead of the final one."""

    trickle: bytes
    tasks: dict[str, Any] = attrs.field(factory=dict)
    webhooks: asyncio.Queue[str] = attrs.field(factory=asyncio.Queue)
    submits: int = 0

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """Read the form, then trickle until the client disconnects."""
        found = re.search(rb'name="webhook_url"\r\n\r\n(.*?)\r\n', await request.read())
        self.submits += 1
        self.webhooks.put_nowait(found[1].decode() if found else "")
        assert request.transport is not None
        while not request.transport.is_closing():
            request.transport.write(self.trickle)
            await asyncio.sleep(0.3)
        return web.Response()

    async def by_id(self, request: web.Request) -> web.StreamResponse:
        """Respond with what the test has set."""
        found = self.tasks.get(request.query["task_id"])
        if found is None:
            return web.json_response({"success": False, "message": "No such task"}, status=404)
        return web.json_response({"success": True, "conversion": found})

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Listen for the time of the block."""
        app = web.Application()
        app.router.add_post("/v1/Extraction", self.submit)
        app.router.add_get("/v1/byId", self.by_id)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()


PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"


def test_the_bound_grows_with_the_upload_and_is_a_few_silences_at_least() -> None:
    """4 seconds for a small track with `request_timeout=1`, minutes for a GiB."""
    assert 3 <= response_timeout(1.0, 3000) <= 15
    assert response_timeout(60.0) == response_timeout(60.0, 0) == 240
    assert 5 * 60 <= response_timeout(1.0, 1 << 30) <= 15 * 60
    assert response_timeout(60.0, 1 << 20) > response_timeout(60.0, 1 << 10) > 60.0


@pytest.mark.parametrize("trickle", [PROCESSING, b""], ids=["102", "silence"])
async def test_an_answer_that_never_comes_ends_as_unknown(trickle: bytes) -> None:
    """`102 Processing` every 0.3 s does not hold a slot for ever; the track is sent once."""
    vendor = SlowVendor(trickle)
    async with (
        vendor.serve() as url,
        MusicGPTSession("key", base_url=url, request_timeout=1.0, limits=Limits.FREE) as session,
    ):
        began = anyio.current_time()
        job = session.submit(TRACK)
        with pytest.raises(SubmissionUnknownError):
            await job.wait(30)
        assert anyio.current_time() - began < 15
        assert session.slots[0] == 0
        assert vendor.submits == 1


async def test_a_poll_has_an_end_as_well() -> None:
    """A status response that trickles fails after a few times `request_timeout`."""

    async def trickle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        while not request.transport.is_closing():
            request.transport.write(PROCESSING)
            await asyncio.sleep(0.05)
        return web.Response()

    app = web.Application()
    app.router.add_get("/byId", trickle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    transport = Transport("key", request_timeout=0.3, downloads=1, is_allowed=lambda _: True)
    transport.open()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/byId"
        began = anyio.current_time()
        with pytest.raises(TransportTimeoutError):
            await transport.get(url, {})
        assert anyio.current_time() - began < 10
    finally:
        await transport.close()
        await runner.cleanup()


async def test_the_jobs_own_webhook_is_heeded_before_the_answer() -> None:
    """A delivery that names the task ends the wait for a missing response."""
    vendor = SlowVendor(PROCESSING)
    vendor.tasks["t-1"] = {"task_id": "t-1", "status": "COMPLETED", "conversion_cost": 2.0}
    receiver = WebhookReceiver("http://127.0.0.1/hook")
    async with (
        vendor.serve() as url,
        receiver.serve("127.0.0.1", 0) as root,
        MusicGPTSession("key", base_url=url, limits=Limits.PRO, webhooks=receiver) as session,
        aiohttp.ClientSession() as http,
    ):
        job = session.submit(TRACK)
        hook = (await vendor.webhooks.get()).replace("http://127.0.0.1/hook", root, 1)
        async with http.post(hook, json={"success": True, "task_id": "t-1"}) as reply:
            assert reply.status == 200
        began = anyio.current_time()
        extraction = await job.wait(30)
        assert anyio.current_time() - began < 15
        assert (job.task_id, extraction.cost) == ("t-1", 2.0)
        assert vendor.submits == 1


async def test_a_webhook_that_names_another_jobs_task_is_not_believed() -> None:
    """The webhook URL in byId's response decides, by the job's own token."""
    vendor = SlowVendor(PROCESSING)
    receiver = WebhookReceiver("http://127.0.0.1/hook")
    async with (
        vendor.serve() as url,
        receiver.serve("127.0.0.1", 0) as root,
        MusicGPTSession(
            "key", base_url=url, limits=Limits.PRO, webhooks=receiver, request_timeout=2.0
        ) as session,
        aiohttp.ClientSession() as http,
    ):
        job = session.submit(TRACK)
        ours = await vendor.webhooks.get()
        told = {"status": "COMPLETED", "conversion_cost": 2.0}
        vendor.tasks["theirs"] = {**told, "task_id": "theirs", "webhook_url": f"{root}/other"}
        vendor.tasks["ours"] = {**told, "task_id": "ours", "webhook_url": ours}
        hook = ours.replace("http://127.0.0.1/hook", root, 1)
        for task_id in ("theirs", "ours"):
            async with http.post(hook, json={"success": True, "task_id": task_id}) as reply:
                assert reply.status == 200
            await asyncio.sleep(1.5)  # beyond the grace period of the response
        await job.wait(30)
        assert job.task_id == "ours"


async def test_a_webhook_just_before_the_answer_costs_no_poll_of_its_own(
    unused_tcp_port: int,
) -> None:
    """The usual early delivery still wakes the job: one byId call, at once."""
    receiver = WebhookReceiver(f"http://127.0.0.1:{unused_tcp_port}/hook")
    vendor = Emulator(seconds=0.2, separate=False, stem_bytes=4096, webhooks="before_answer")
    async with (
        receiver.serve("127.0.0.1", unused_tcp_port),
        vendor,
        MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, limits=Limits.PRO, webhooks=receiver
        ) as session,
    ):
        vendor.script(Fault("submit", "slow_answer", seconds=0.2))
        await session.submit(TRACK).wait(30)
        assert vendor.submissions[0].polls == 1
        assert len(vendor.deliveries) == 1


@pytest.fixture
def unused_tcp_port() -> int:
    """A port without a listener so far."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
