from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest
from aiohttp import web

from musicgpt_async.emulator import Fault, WebhookDelivery

pytestmark = pytest.mark.anyio


@attrs.define
class Post:
    """A delivery as it arrived."""

    path: str
    body: bytes
    at: float
    headers: Any

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@attrs.define
class Receiver:
    """A webhook endpoint that responds with the given statuses, and with 200 after them."""

    url: str
    statuses: list[int]
    posts: list[Post] = attrs.field(factory=list)
    on_request: Callable[[Post], Any] | None = None
    arrived: anyio.Event = attrs.field(factory=anyio.Event)

    async def take(self, request: web.Request) -> web.Response:
        """The route for everything."""
        post = Post(request.path, await request.read(), time.monotonic(), request.headers)
        self.posts.append(post)
        self.arrived.set()
        if self.on_request is not None:
            await self.on_request(post)
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async def count(self, number: int) -> list[Post]:
        """Wait for so many posts, and return them."""
        with anyio.fail_after(60):
            while len(self.posts) < number:
                self.arrived = anyio.Event()
                await self.arrived.wait()
        return self.posts


@asynccontextmanager
async def receive(*statuses: int) -> AsyncIterator[Receiver]:
    """Run an endpoint that responds with these statuses first."""
    receiver = Receiver("", list(statuses))
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.take)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/token-a1b2"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def settled(me: Any, attempts: int) -> None:
    """Wait until so many attempts at deliveries have been made and are over."""
    await me.until(lambda: sum(each.ended is not None for each in me.vendor.deliveries) >= attempts)


async def test_the_extraction_pages_payload(open_account: Any) -> None:
    """Links are strings of JSON with line breaks, the cost is a string, and status is missing."""
    async with receive() as hooks, open_account() as me:
        conversion = await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
        await settled(me, 1)
        body = post.json
        assert body.keys() == {
            "success", "conversion_type", "task_id", "conversion_id", "audio_url",
            "audio_url_wav", "conversion_cost", "conversion_duration",
        }  # fmt: skip
        assert "\n    " in body["audio_url"]
        assert json.loads(body["audio_url_wav"]) == json.loads(conversion["audio_url_wav"])
        assert (body["success"], body["conversion_cost"]) == (True, "0.01")
        assert isinstance(body["conversion_duration"], float)
        assert post.headers["Content-Type"] == "application/json"
        (record,) = me.vendor.deliveries
        assert (record.task_id, record.status, record.attempt) == (body["task_id"], 200, 1)
        assert record.started <= post.at <= record.ended


@pytest.mark.parametrize("payload", ["general", "status"])
async def test_the_general_pages_payload(open_account: Any, payload: str) -> None:
    """A status, one plain URL and a number for the cost; `success` is there or not."""
    async with receive() as hooks, open_account(payload=payload) as me:
        await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
    body = post.json
    assert (body["status"], body["conversion_cost"]) == ("COMPLETED", 0.01)
    assert body["audio_url"].startswith("http://")
    assert ("success" in body) is (payload == "general")


@pytest.mark.parametrize("payload", ["extraction", "general", "status"])
async def test_a_delivery_may_omit_the_wavs_of_byid(open_account: Any, payload: Any) -> None:
    """With `wav=False` a payload links the MP3s alone, though byId links both formats."""
    planned = WebhookDelivery(payload=payload, wav=False)
    async with receive() as hooks, open_account(webhooks=planned) as me:
        conversion = await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
    assert post.json["audio_url"]
    assert "audio_url_wav" not in post.json
    assert conversion["audio_url_wav"]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ("extraction", {"success": False, "message": "No"}),
        ("general", {"success": False, "status": "FAILED", "status_msg": "No", "audio_url": None}),
        ("status", {"status": "FAILED", "status_msg": "No"}),
    ],
)
async def test_failures_are_delivered(
    open_account: Any, payload: str, expected: dict[str, Any]
) -> None:
    """A conversion that failed is delivered with success false, a status, or both."""
    fault = Fault("job", "fails", word="FAILED", message="No")
    async with receive() as hooks, open_account(payload=payload, faults=[fault]) as me:
        await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
    assert expected.items() <= post.json.items()
    assert payload != "extraction" or "status" not in post.json


async def test_before_the_submits_answer(open_account: Any) -> None:
    """The conversion finishes and its webhook arrives before the submit's response."""
    async with receive() as hooks, open_account(webhooks="before_answer") as me:
        words = []

        async def poll_once(post: Post) -> None:
            reply = await me.by_id(post.json["task_id"])
            words.append(reply.json["conversion"]["status"])

        hooks.on_request = poll_once
        reply = await me.submit(webhook_url=hooks.url)
        assert words == ["COMPLETED"]
        assert hooks.posts[0].json["task_id"] == reply.json["task_id"]


async def test_early(open_account: Any) -> None:
    """The delivery claims success while byId still says that the conversion is not finished."""
    faults = [Fault("job", "never_finishes")]
    async with receive() as hooks, open_account(webhooks="early", faults=faults) as me:
        reply = await me.submit(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
        assert post.json["success"] is True
        conversion = (await me.by_id(reply.json["task_id"])).json["conversion"]
        assert conversion["status"] != "COMPLETED"


async def test_twice(open_account: Any) -> None:
    """Two deliveries say the same."""
    async with receive() as hooks, open_account(webhooks="twice") as me:
        await me.extract(webhook_url=hooks.url)
        one, two = await hooks.count(2)
    assert one.body == two.body


async def test_lost(open_account: Any) -> None:
    """Nothing is sent."""
    async with receive() as hooks, open_account(webhooks="lost") as me:
        await me.extract(webhook_url=hooks.url)
        me.vendor.script(Fault("webhook", "normal"))
        await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
        assert post.json["task_id"] == me.vendor.submissions[1].task_id
        assert len(me.vendor.deliveries) == 1


async def test_late(open_account: Any) -> None:
    """The delivery arrives after the configured emulated seconds."""
    fault = Fault("webhook", "late", seconds=3600)
    async with receive() as hooks, open_account(speed=10_000, faults=[fault]) as me:
        await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
        assert post.at * me.vendor.speed >= me.vendor.submissions[0].finished + 3600


async def test_garbled(open_account: Any) -> None:
    """The body is not JSON."""
    async with receive() as hooks, open_account(webhooks="garbled") as me:
        await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(post.body)


async def test_forged(open_account: Any) -> None:
    """The URL's last segment is another, and the links lead nowhere."""
    async with receive() as hooks, open_account(webhooks="forged") as me:
        await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
        url = json.loads(post.json["audio_url"])["drums"]
        assert (await me.call("GET", url)).status == 404
        assert post.json["task_id"] == me.vendor.submissions[0].task_id
    assert post.path.startswith("/hooks/")
    assert post.path != "/hooks/token-a1b2"
    assert len(post.path) == len("/hooks/token-a1b2")


async def test_other_task(open_account: Any) -> None:
    """The URL is right, and what it is about is another task."""
    async with receive() as hooks, open_account(webhooks="other_task") as me:
        await me.extract(webhook_url=hooks.url)
        (post,) = await hooks.count(1)
    assert post.path == "/hooks/token-a1b2"
    assert post.json["task_id"] != me.vendor.submissions[0].task_id


async def test_behaviours_mix(open_account: Any) -> None:
    """Several deliveries of several kinds may be made about one conversion, differing by job."""
    mixed = ["forged", "garbled", WebhookDelivery(payload="general"), "normal"]
    behaviour = lambda submission: mixed if submission.number else "lost"  # noqa: E731
    async with receive() as hooks, open_account(webhooks=behaviour) as me:
        await me.extract(webhook_url=hooks.url)
        await me.extract(webhook_url=hooks.url)
        posts = await hooks.count(4)
        assert {record.task_id for record in me.vendor.deliveries} == {
            me.vendor.submissions[1].task_id
        }
    assert sum(b'"status"' in post.body for post in posts) == 1


async def test_what_is_no_behaviour_is_refused(open_account: Any) -> None:
    """An unknown name is a ValueError when the emulator is created."""
    with pytest.raises(ValueError, match="unknown behaviour 'sometimes'"):
        async with open_account(webhooks="sometimes"):
            pass


@pytest.mark.parametrize("status", [500, 404, 301, 307])
async def test_a_delivery_that_is_not_taken_is_made_again(open_account: Any, status: int) -> None:
    """Anything but a 2xx, a redirect too, is tried again after a while, and stops with a 2xx."""
    async with receive(status, status, 204) as hooks, open_account(speed=20) as me:
        await me.extract(webhook_url=hooks.url)
        await settled(me, 3)
        posts = await hooks.count(3)
        records = me.vendor.deliveries
        assert [record.status for record in records] == [status, status, 204]
        assert [record.is_taken for record in records] == [False, False, True]
        assert [record.attempt for record in records] == [1, 2, 3]
        first, second = (records[n + 1].started - records[n].ended for n in (0, 1))
        assert first * 20 >= 0.9
        assert second * 20 >= 1.9
    assert {post.path for post in posts} == {"/hooks/token-a1b2"}


async def test_a_delivery_stops_after_its_last_attempt(open_account: Any) -> None:
    """After four attempts the emulator stops; the result of each is recorded."""
    async with open_account(speed=1000) as me:
        await me.extract(webhook_url="http://127.0.0.1:1/nobody")
        await settled(me, 4)
        await asyncio.sleep(0)
        assert [record.attempt for record in me.vendor.deliveries] == [1, 2, 3, 4]
        assert all("ClientConnector" in record.error for record in me.vendor.deliveries)
