"""The receiver in applications, behind mount points, and as its own server."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from factories.endpoints import (
    GARBAGE_TOKEN,
    PUBLIC_URL,
    SERVERS,
    Endpoint,
    Serve,
    aiohttp_running,
    alone_under_uvicorn,
    listen,
    served_by_itself,
    uvicorn_running,
)
from fastapi import FastAPI
from yarl import URL

from musicgpt_async.errors import ConfigurationError
from musicgpt_async.webhooks import SERVICE, WebhookReceiver

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["fastapi", "aiohttp"])
async def test_other_routes_stay_as_they_were(name: str) -> None:
    """The surrounding application responds to its own paths."""
    async with (
        SERVERS[name](WebhookReceiver(PUBLIC_URL)) as root,
        aiohttp.ClientSession() as client,
    ):
        async with client.get(f"{root}/other") as answer:
            assert (answer.status, await answer.json()) == (200, "theirs")
        async with client.get(f"{root}/nothing") as answer:
            assert answer.status == 404


@pytest.mark.parametrize("name", ["aiohttp", "uvicorn", "serve"])
async def test_the_bare_base_and_leading_slashes_are_right_too(name: str) -> None:
    """Endpoints that see the complete path accept the base without a slash and doubled slashes."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver._token_for("job")
    listen(receiver._queue, token, got)
    async with SERVERS[name](receiver) as root, aiohttp.ClientSession() as client:
        opened = Endpoint(receiver, root, token, got, client)
        for path in ("/hooks", "//hooks", "/hooks?q"):
            assert (await opened.send("GET", path))[0] == 200
        assert (await opened.send("POST", "//hooks/TOKEN", b"{}"))[0] == 200


def in_a_sub_application(receiver: WebhookReceiver) -> AbstractAsyncContextManager[str]:
    """Run the endpoint in an aiohttp sub-application."""
    sub = web.Application()
    sub.add_routes(receiver.routes("/in"))
    app = web.Application()
    app.add_subapp("/sub", sub)
    return aiohttp_running(app)


def at_the_root_of_aiohttp(receiver: WebhookReceiver) -> AbstractAsyncContextManager[str]:
    """Run the endpoint as the only route of aiohttp, behind a proxy that strips the path."""
    app = web.Application()
    app.add_routes(receiver.routes("/"))
    return aiohttp_running(app)


def mounted_twice_deep(receiver: WebhookReceiver) -> AbstractAsyncContextManager[str]:
    """Mount the endpoint two levels deep, under a server's root path."""
    inner, outer = FastAPI(), FastAPI()
    inner.mount("/in", receiver.asgi)
    outer.mount("/sub", inner)
    return uvicorn_running(outer, root_path="/proxy")


@pytest.mark.parametrize(
    ("placed", "prefix"),
    [
        (in_a_sub_application, "/sub/in"),
        (at_the_root_of_aiohttp, ""),
        (at_the_root_of_aiohttp, "/hooks"),
        (mounted_twice_deep, "/sub/in"),
        (alone_under_uvicorn, ""),
        (served_by_itself, ""),
    ],
)
async def test_the_endpoint_works_wherever_it_is_mounted(placed: Serve, prefix: str) -> None:
    """Mount points and proxies that change the path leave deliveries and health as they are."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver._token_for("job")
    listen(receiver._queue, token, got)
    async with placed(receiver) as root, aiohttp.ClientSession() as client:
        opened = Endpoint(receiver, root, token, got, client)
        assert (await opened.send("GET", f"{prefix}/"))[2]["service"] == SERVICE
        assert (await opened.send("POST", f"{prefix}/TOKEN", b"{}"))[0] == 200
        assert (await opened.send("POST", f"{prefix}/{GARBAGE_TOKEN}", b"{}"))[0] == 404


async def called(
    app: Any, scope: dict[str, Any], *messages: dict[str, Any]
) -> list[dict[str, Any]]:
    """Call an ASGI application with a scope and what it may receive; returns what it sent."""
    incoming, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("root_path", "path"),
    [
        ("", "/hooks/TOKEN"),
        ("/hooks", "/hooks/TOKEN"),
        ("/hooks", "/TOKEN"),
        ("/hooks/", "/hooks//TOKEN/"),
        ("/api/hooks", "/api/hooks/TOKEN"),
        ("/api/hooks", "/TOKEN"),
        ("/api", "/api/hooks/TOKEN"),
        ("/api", "/hooks/TOKEN"),
    ],
)
async def test_a_mount_point_may_be_in_the_path_or_not(root_path: str, path: str) -> None:
    """ASGI servers and frameworks old and new disagree about root_path; each is understood."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver._token_for("job")
    listen(receiver._queue, token, got)
    scope = {"type": "http", "root_path": root_path, "headers": [(b"content-length", b"junk")]}
    body = {"type": "http.request", "body": b"{}"}
    post = {**scope, "method": "POST", "path": path.replace("TOKEN", token)}
    assert (await called(receiver.asgi, post, body))[0]["status"] == 200
    get = {**scope, "method": "GET", "path": path.replace("TOKEN", "")}
    assert (await called(receiver.asgi, get))[0]["status"] == 200
    assert got == [{}]


async def test_an_asgi_client_that_hangs_up_is_not_answered() -> None:
    """A disconnect within the body ends the call without a response, and wakes no job."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver._token_for("job")
    listen(receiver._queue, token, got)
    scope = {"type": "http", "method": "POST", "path": f"/{token}", "headers": []}
    part = {"type": "http.request", "body": b"{}", "more_body": True}
    assert await called(receiver.asgi, scope, part, {"type": "http.disconnect"}) == []
    assert got == []


async def test_an_asgi_answer_to_head_has_no_body() -> None:
    """The endpoint omits the body of a HEAD response itself."""
    scope = {"type": "http", "method": "HEAD", "path": "/", "headers": []}
    start, body = await called(WebhookReceiver(PUBLIC_URL).asgi, scope)
    assert start["status"] == 200
    assert body["body"] == b""


async def test_lifespan_is_answered() -> None:
    """Startup and shutdown of the lifespan protocol are acknowledged."""
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = await called(WebhookReceiver(PUBLIC_URL).asgi, {"type": "lifespan"}, *events)
    assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_websocket_is_closed() -> None:
    """A websocket request to the ASGI endpoint is closed without an exception."""
    sent = await called(WebhookReceiver(PUBLIC_URL).asgi, {"type": "websocket", "path": "/"})
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_server_of_its_own_is_gone_after_its_block() -> None:
    """A server frees its port when the block ends, also by cancellation with a body half sent."""
    receiver = WebhookReceiver(PUBLIC_URL)
    token = receiver._token_for("job")
    listen(receiver._queue, token, [])
    head = f"POST /{token} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode()
    before = asyncio.all_tasks()
    with anyio.CancelScope() as scope:
        async with receiver.serve(port=0) as root:
            port = URL(root).port
            assert port is not None
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(head)
                scope.cancel()
                await anyio.sleep_forever()
    assert asyncio.all_tasks() <= before
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


async def test_a_taken_port_is_reported() -> None:
    """A server says which address it could not have, and leaves nothing open behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}.*choose another"):
            async with WebhookReceiver(PUBLIC_URL).serve(port=port):
                pytest.fail("it listens where another does")


async def test_its_own_server_logs_no_token(caplog: pytest.LogCaptureFixture) -> None:
    """Under serve no log shows a token: right, wrong, or in a malformed request."""
    receiver = WebhookReceiver(PUBLIC_URL)
    token = receiver._token_for("job")
    listen(receiver._queue, token, [])
    with caplog.at_level(logging.DEBUG):
        async with receiver.serve(port=0) as root, aiohttp.ClientSession() as client:
            opened = Endpoint(receiver, root, token, [], client)
            await opened.send("POST", "/TOKEN", b"[]")
            await opened.send("POST", f"/{GARBAGE_TOKEN}", b"{}")
            answer = await opened.talk(f"POST /{token}\0 HTTP/9.z\r\n\r\n".encode())
            assert answer.split()[1] == b"400"
    assert token not in caplog.text
    assert GARBAGE_TOKEN not in caplog.text


async def test_its_own_server_does_not_unpack(caplog: pytest.LogCaptureFixture) -> None:
    """Under serve a body that claims to be compressed gets a refusal, without an error in a log."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    async with receiver.serve(port=0) as root, aiohttp.ClientSession() as client:
        opened = Endpoint(receiver, root, receiver._token_for("job"), got, client)
        for _ in range(3):
            status, _, _ = await opened.send("POST", "/TOKEN", b"{}", Content_Encoding="gzip")
            assert status == 404
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
