"""How often each client submits when the answer to a paid submit is dropped.

A server on loopback reads each submit whole, counts it, as the vendor would charge for it, and
closes the connection unanswered a few times before it answers. A peer that is not installed is
skipped:

    pip install fal-client musicgpt
    python benchmarks/lost_responses.py

Every connection that does not lead to 127.0.0.1 is refused, whoever asks for it.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
import stamina
from aiohttp import web

from musicgpt_async import MusicGPTSession

RESPONSE = {
    "success": True,
    "task_id": "00000000-0000-4000-8000-000000000001",
    "conversion_id": "00000000-0000-4000-8000-000000000002",
    "eta": 1,
    "credit_estimate": 1.0,
    "request_id": "00000000-0000-4000-8000-000000000003",
    "response_url": "http://127.0.0.1/response",
    "status_url": "http://127.0.0.1/status",
    "cancel_url": "http://127.0.0.1/cancel",
}
DROPPED = (1, 3)
TRACK = b"ID3" + bytes(20_000)


@attrs.define
class Vendor:
    """Counts submits, and drops the first answers."""

    dropped: int
    submits: int = 0
    url: str = ""

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Read a submit, and answer it or not."""
        await request.read()
        self.submits += 1
        if self.submits <= self.dropped and request.transport is not None:
            request.transport.close()
        return web.json_response(RESPONSE)


@asynccontextmanager
async def vendor_that_drops(answers: int) -> AsyncIterator[Vendor]:
    """A vendor on a loopback port."""
    vendor = Vendor(answers)
    app = web.Application()
    app.router.add_post("/{path:.*}", vendor.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    vendor.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield vendor
    finally:
        await runner.cleanup()


async def ours(url: str) -> None:
    """Submit a track with this library."""
    async with MusicGPTSession("a key", base_url=url) as session:
        job = session.submit(("song.mp3", TRACK))
        try:
            await job.accepted()
        finally:
            job.cancel()


async def fal(url: str) -> None:
    """Submit to a queue with fal's client."""
    import fal_client.client  # noqa: PLC0415 - a peer that may not be there

    fal_client.client.QUEUE_URL_FORMAT = f"{url}/"
    client = fal_client.SyncClient(key="a key")
    await asyncio.to_thread(client.submit, "some/application", arguments={"prompt": "a song"})


async def the_vendors_own(url: str) -> None:
    """Submit with the vendor's package; it has no extraction, this is its only submit."""
    import musicgpt  # noqa: PLC0415 - a peer that may not be there

    client = musicgpt.MusicGPTClient("a key", log_level="ERROR")
    client.base_url = url
    await asyncio.to_thread(client.music_ai, prompt="a song")


async def retry_loop(url: str) -> None:
    """Submit as much hand-written code does: any error of the network is worth another try."""

    @stamina.retry(on=(aiohttp.ClientError, OSError), attempts=4, wait_initial=0.05)
    async def submit() -> None:
        form = aiohttp.FormData({"stems": "[]"})
        form.add_field("audio_file", TRACK, filename="song.mp3")
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{url}/Extraction", data=form) as answer,
        ):
            answer.raise_for_status()
            await answer.json()

    await submit()


PEERS: dict[str, tuple[str | None, Callable[[str], Awaitable[None]]]] = {
    "musicgpt-async": (None, ours),
    "fal-client": ("fal-client", fal),
    "musicgpt (the vendor's, music_ai)": ("musicgpt", the_vendors_own),
    "a retry loop around aiohttp": (None, retry_loop),
}


async def measured(submit: Callable[[str], Awaitable[None]], dropped: int) -> tuple[int, str]:
    """Return how often a peer submitted, and what its caller got."""
    async with vendor_that_drops(dropped) as vendor:
        try:
            async with asyncio.timeout(120):
                await submit(vendor.url)
        except Exception as error:  # noqa: BLE001 - what it raises is what is measured
            return vendor.submits, type(error).__name__
        return vendor.submits, "a task"


def version_of(distribution: str | None) -> str | None:
    """Return the version of a peer, ``None`` where it is not installed."""
    if distribution is None:
        return ""
    try:
        return f" {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def refuse_the_world(event: str, arguments: tuple[Any, ...]) -> None:
    """Let no connection leave this machine: an audit hook."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
        raise ConnectionRefusedError(f"{address[0]} is not this machine")


async def main() -> None:
    """Print the table."""
    heads = [f"{n} dropped: submits, caller gets" for n in DROPPED]
    print("| client | " + " | ".join(heads) + " |")
    print("| --- |" + " --- |" * len(DROPPED))
    for name, (distribution, submit) in PEERS.items():
        version = version_of(distribution)
        if version is None:
            print(f"| {name} | not installed |" + " |" * (len(DROPPED) - 1))
            continue
        cells = [await measured(submit, dropped) for dropped in DROPPED]
        told = " | ".join(f"{submits}, {outcome}" for submits, outcome in cells)
        print(f"| {name}{version} | {told} |")


if __name__ == "__main__":
    logging.disable()
    sys.addaudithook(refuse_the_world)
    asyncio.run(main())
