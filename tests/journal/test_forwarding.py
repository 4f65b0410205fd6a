"""Webhooks that arrive at a process which does not work on their job."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import attrs
import pytest
from aiohttp import web
from factories.journals import let_pass
from factories.postgres import PostgresServers
from factories.postgres_fixtures import POSTGRES
from factories.sessions import SOUND, connected
from factories.tcp_proxy import proxied

from musicgpt_async import MusicGPTSession, WebhookReceiver
from musicgpt_async._io import http_server
from musicgpt_async._io.forwarding import Forwarding
from musicgpt_async.emulator import Emulator
from musicgpt_async.events import WebhookReceived
from musicgpt_async.journal import Journal

pytestmark = pytest.mark.anyio

PROCESS = Path(__file__).with_name("forwarding_process.py")
GUARD = 150.0  # seconds; no test comes near it


@attrs.define
class Front:
    """What is at the public URL: it passes each delivery to the next process."""

    roots: list[str]
    posted: dict[str, float] = attrs.field(factory=dict)
    acknowledged: dict[str, float] = attrs.field(factory=dict)
    statuses: list[int] = attrs.field(factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        """Pass a delivery on to a process, in turn; so most arrive at a wrong one."""
        token = request.match_info["token"]
        self.posted[token] = time.time()
        body = await request.read()
        root = self.roots[len(self.posted) % len(self.roots)]
        async with aiohttp.request("POST", f"{root}/hooks/{token}", data=body) as response:
            self.statuses.append(response.status)
            self.acknowledged[token] = time.time()
            return web.Response(status=response.status)


@asynccontextmanager
async def fleet(
    count: int, place: str, vendor: Emulator, *, jobs: int
) -> AsyncIterator[tuple[Front, list[asyncio.subprocess.Process]]]:
    """Run processes behind one front; each submits its jobs and waits for them."""
    front = Front([])
    app = web.Application()
    app.router.add_post("/hooks/{token}", front.handle)
    pipe = asyncio.subprocess.PIPE
    async with AsyncExitStack() as stack:
        public_url = await stack.enter_async_context(http_server.serve(app, "127.0.0.1", 0))
        running = []
        for number in range(count):
            settings = {
                "public_url": f"{public_url}/hooks",
                "key": vendor.api_key,
                "base_url": vendor.base_url,
                "journal": place,
                "polls_per_minute": 80,
                "tracks": [f"{number} {each}" for each in range(jobs)],
            }
            child = await asyncio.create_subprocess_exec(
                sys.executable, str(PROCESS), json.dumps(settings), stdin=pipe, stdout=pipe
            )
            stack.callback(end, child)
            running.append(child)
        for child in running:
            front.roots.append((await line_of(child))["root"])
        for child in running:
            tell(child)
        yield front, running
        for child in running:
            tell(child)
            await child.wait()


def end(child: asyncio.subprocess.Process) -> None:
    """Kill a process that still runs."""
    if child.returncode is None:
        child.kill()


def tell(child: asyncio.subprocess.Process) -> None:
    """Let a process continue."""
    assert child.stdin is not None
    child.stdin.write(b"go\n")


async def line_of(child: asyncio.subprocess.Process) -> dict[str, Any]:
    """Return what a process says next."""
    assert child.stdout is not None
    async with asyncio.timeout(GUARD):
        found: dict[str, Any] = json.loads(await child.stdout.readline())
        return found


async def heard_by(child: asyncio.subprocess.Process) -> dict[str, float]:
    """Return when a process heard first of each of its jobs, once it is done."""
    heard: dict[str, float] = {}
    while "done" not in (line := await line_of(child)):
        heard.setdefault(line["heard"], line["at"])
    return heard


async def test_a_delivery_at_the_wrong_process_wakes_the_right_one(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three processes behind one URL: each delivery is acknowledged and wakes its owner at once."""
    vendor = Emulator(seconds=4.0, separate=False, parallel=None, polls_per_minute=None)
    async with vendor, fleet(3, place, vendor, jobs=6) as (front, running):
        heard = [await heard_by(child) for child in running]
        async with Journal(place) as journal:
            tokens = {record.label: record.token async for record in journal.records()}
    assert set(front.statuses) == {200}
    # A poll may have found the end of the others before their delivery.
    assert sum(map(len, heard)) >= 12
    found = [(tokens[name], at) for name, at in itertools.chain(*(each.items() for each in heard))]
    to_wake = statistics.median(at - front.posted[token] for token, at in found)
    after_write = statistics.median(at - front.acknowledged[token] for token, at in found)
    to_write = statistics.median(
        front.acknowledged[token] - front.posted[token] for token, _ in found
    )
    with capsys.disabled():
        print(f"\ndelivery to wake: median {to_wake * 1000:.0f} ms")  # noqa: T201
    # Without notifications owners would ask seconds later, however fast the database is.
    assert after_write < 0.3 + 3 * to_write


@pytest.fixture
async def vendor() -> AsyncIterator[Emulator]:
    """A vendor whose jobs take long and whose webhooks do not come."""
    async with Emulator(seconds=600.0, separate=False, webhooks="lost") as emulator:
        yield emulator


async def test_what_is_not_notified_is_found_all_the_same(vendor: Emulator, place: str) -> None:
    """If notifications get lost, the owner finds a delivery by itself within seconds."""
    receiver = WebhookReceiver("http://127.0.0.1:9/hooks")
    async with (
        Journal(place) as other,
        connected(vendor, place, webhooks=receiver) as session,
    ):
        job = session.submit(("song.mp3", SOUND))
        task_id = (await job.accepted()).task_id
        events = session.events()
        record = await other._find(job.id)
        assert record is not None
        assert record.token is not None
        silent = Forwarding(other._transactions, other._sql, on_server=False)
        await silent.forward(record.token.partition(".")[0], {"task_id": task_id})
        with anyio.fail_after(8.0):
            async for event in events:
                if isinstance(event, WebhookReceived):
                    break
        job.cancel()


async def test_what_came_before_a_job_is_resumed_is_found(vendor: Emulator, place: str) -> None:
    """A delivery that arrived while no process worked on the job reaches the one that resumes."""
    async with connected(vendor, place, webhooks=WebhookReceiver("http://127.0.0.1:9/a")) as first:
        job = first.submit(("song.mp3", SOUND))
        await job.accepted()
        await first.aclose(drain=False)
    receiver = WebhookReceiver("http://127.0.0.1:9/a")
    async with (
        Journal(place) as other,
        MusicGPTSession(  # of another account, so that it leaves the job alone
            "another", base_url=vendor.base_url, journal=place, webhooks=receiver
        ) as bystander,
    ):
        record = await other._find(job.id)
        assert record is not None
        receipt = await receiver._queue.put(record.token or "", {"task_id": record.task_id})
        assert receipt.value == "acknowledged"
        assert await other._forwarding.find_last() == 1
        await bystander.aclose(drain=False)
    async with connected(
        vendor, place, webhooks=WebhookReceiver("http://127.0.0.1:9/a")
    ) as session:
        events = session.events()
        (resumed,) = await session.resume()
        heard = 0
        with anyio.fail_after(8.0):
            async for event in events:
                heard += isinstance(event, WebhookReceived)
                if heard:
                    break
        resumed.cancel()


async def test_a_forged_token_costs_no_query(vendor: Emulator, place: str) -> None:
    """A token that the journal's secret has not signed is refused before anything is asked."""
    receiver = WebhookReceiver("http://127.0.0.1:9/hooks")
    forged = WebhookReceiver("http://127.0.0.1:9/hooks", secret="guess")._token_for("job")
    async with (
        Journal(place) as journal,
        connected(vendor, journal, webhooks=receiver),
    ):
        genuine = receiver._token_for("job", journal._secret.encode())
        assert (await receiver._queue.put(forged, {})).value == "unknown token"
        assert await journal._forwarding.find_last() == 0
        assert (await receiver._queue.put(genuine, {})).value == "acknowledged"
        assert await journal._forwarding.find_last() == 1


@pytest.mark.parametrize("version", POSTGRES[-1:])
async def test_a_delivery_that_cannot_be_written_is_to_be_sent_again(
    vendor: Emulator, postgres_servers: PostgresServers, version: Any
) -> None:
    """While the server is away, a delivery for another process is answered with 503, then 200."""
    receiver = WebhookReceiver("http://127.0.0.1:9/hooks")
    receiver._queue._acknowledge_timeout = 0.5
    with postgres_servers.shared(version).database() as url:
        async with (
            proxied(url) as proxy,
            Journal(proxy.url) as journal,
            connected(vendor, journal, webhooks=receiver),
            receiver.serve("127.0.0.1", 0) as root,
            aiohttp.ClientSession() as http,
        ):
            hook = f"{root}/hooks/{receiver._token_for('job', journal._secret.encode())}"
            proxy.cut(refuse=True)
            async with http.post(hook, json={}) as response:
                assert response.status == 503
            proxy.restore()
            with anyio.fail_after(GUARD):
                while (await http.post(hook, json={})).status == 503:
                    await anyio.sleep(0.1)
            assert await journal._forwarding.find_last() > 0


async def test_old_deliveries_are_deleted(journal: Journal) -> None:
    """A delivery that was not collected for a day is deleted when the next one comes."""
    await journal._forwarding.forward("old", {})
    await let_pass(journal, 90_000.0)
    await journal._forwarding.forward("new", {"task_id": "a"})
    assert await journal._forwarding.read_after(0) == [(2, "new", {"task_id": "a"})]
