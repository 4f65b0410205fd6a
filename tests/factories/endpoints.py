"""Webhook receivers behind each kind of server."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import anyio
import attrs
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from yarl import URL

from musicgpt_async._io.delivery_queue import Delivery, DeliveryQueue
from musicgpt_async.webhooks import WebhookReceiver

PUBLIC_URL = "https://bot.example.com/hooks"
GARBAGE_TOKEN = "0" * 32 + "." + "f" * 32
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@asynccontextmanager
async def uvicorn_running(app: Any, **options: Any) -> AsyncIterator[str]:
    """Serve an ASGI application under a real uvicorn; yields the root of the server."""
    # asyncio only disables Nagle's algorithm if the protocol is given.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=5, **options
    )
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True


@asynccontextmanager
async def mounted_in_fastapi(receiver: WebhookReceiver) -> AsyncIterator[str]:
    """Mount the endpoint beside other routes of a FastAPI application."""
    app = FastAPI()
    app.get("/other")(lambda: "theirs")
    app.mount("/hooks", receiver.asgi)
    async with uvicorn_running(app) as root:
        yield root


@asynccontextmanager
async def alone_under_uvicorn(receiver: WebhookReceiver) -> AsyncIterator[str]:
    """Run the endpoint as the only ASGI application, including lifespan."""
    async with uvicorn_running(receiver.asgi, lifespan="on") as root:
        yield root


@asynccontextmanager
async def aiohttp_running(app: web.Application) -> AsyncIterator[str]:
    """Serve an aiohttp application; yields the root of the server."""
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def routed_in_aiohttp(receiver: WebhookReceiver) -> AsyncIterator[str]:
    """Add the endpoint's routes to an aiohttp application with other routes."""

    async def other(_request: web.Request) -> web.Response:
        return web.json_response("theirs")

    app = web.Application()
    app.add_routes([web.get("/other", other), *receiver.routes()])
    async with aiohttp_running(app) as root:
        yield root


@asynccontextmanager
async def served_by_itself(receiver: WebhookReceiver) -> AsyncIterator[str]:
    """Run the endpoint as its own server."""
    async with receiver.serve(port=0) as root:
        yield root


Serve = Callable[[WebhookReceiver], AbstractAsyncContextManager[str]]
SERVERS: dict[str, Serve] = {
    "fastapi": mounted_in_fastapi,
    "uvicorn": alone_under_uvicorn,
    "aiohttp": routed_in_aiohttp,
    "serve": served_by_itself,
}


class Listener:
    """A consumer that takes each delivery as it comes and acknowledges it."""

    def __init__(self, queue: DeliveryQueue, got: list[Mapping[str, Any]]) -> None:
        self._queue = queue
        self._got = got

    def push(self, delivery: Delivery) -> None:
        """Take a delivery."""
        self._queue.on_taken(delivery)
        self._got.append(delivery.payload)
        delivery.acknowledge()


def listen(queue: DeliveryQueue, token: str, got: list[Mapping[str, Any]]) -> None:
    """Take the deliveries for a token."""
    queue.subscribe(token, Listener(queue, got))


@attrs.frozen
class Endpoint:
    """A running endpoint with one subscription."""

    receiver: WebhookReceiver
    root: str
    token: str
    got: list[Mapping[str, Any]]
    client: aiohttp.ClientSession

    async def send(
        self, method: str, path: str, data: Any = None, **headers: str
    ) -> tuple[int, Mapping[str, str], Any]:
        """Send one request with an unmodified path; return status, headers and JSON."""
        url = URL(self.root + path.replace("TOKEN", self.token), encoded=True)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.client.request(
            method, url, data=body, headers=named, allow_redirects=False
        ) as answer:
            content = await answer.read()
            return answer.status, answer.headers, json.loads(content) if content else None

    async def talk(self, request: bytes, *, listen: bool = True) -> bytes:
        """Write bytes to the endpoint and disconnect, after the start of a response or at once."""
        stream = await anyio.connect_tcp("127.0.0.1", URL(self.root).port or 0)
        async with stream:
            await stream.send(request)
            with anyio.fail_after(10):
                return await stream.receive() if listen else b""
