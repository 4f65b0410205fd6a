"""The receiver's own server: what it bounds."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import anyio
import pytest
from factories.endpoints import PUBLIC_URL, uvicorn_running

from musicgpt_async._io.http_server import HEAD_TIMEOUT, MAX_CONNECTIONS
from musicgpt_async.testing import accelerated_loop
from musicgpt_async.webhooks import BODY_TIMEOUT, WebhookReceiver

pytestmark = pytest.mark.anyio

SPEED = 40.0
HANG = 60


@pytest.fixture
def receiver() -> WebhookReceiver:
    """A receiver that knows the tokens of its secret."""
    return WebhookReceiver(PUBLIC_URL, secret="of the test")


async def connect(root: str) -> socket.socket:
    """Connect to a server, and say nothing."""
    parts = urlsplit(root)
    client = socket.socket()
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, (parts.hostname, parts.port))
    return client


async def health(root: str) -> int:
    """Request a server's health line, over a new connection."""
    async with aiohttp.ClientSession() as http, http.get(root) as answer:
        return answer.status


async def end_of(reader: asyncio.StreamReader) -> float:
    """Wait until the server hangs up; return when that was."""
    with suppress(ConnectionError):
        await reader.read()
    return anyio.current_time()


def run(main: Any) -> None:
    """Run a test on a loop whose clock is fast."""
    with asyncio.Runner(loop_factory=accelerated_loop(SPEED)) as runner:
        runner.run(main())


async def _dribble(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        for _ in range(600):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.5)


@pytest.mark.parametrize("manner", ["silent", "dribbling", "after a request"])
def test_a_head_has_to_arrive_in_time(manner: str, receiver: WebhookReceiver) -> None:
    """A client that says nothing, or a byte now and then, is hung up on after 10 s."""

    async def main() -> None:
        async with receiver.serve(port=0) as root:
            parts = urlsplit(root)
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            if manner == "after a request":
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await reader.readuntil(b"}")
            if manner == "dribbling":
                writer.write(b"GET / HTTP/1.1\r\nX-Slow: ")
            began = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                if manner == "dribbling":
                    tasks.start_soon(_dribble, writer)
                took = await end_of(reader) - began
                tasks.cancel_scope.cancel()
            writer.close()
            assert HEAD_TIMEOUT * 0.8 <= took < 2 * HEAD_TIMEOUT

    run(main)


@asynccontextmanager
async def _own(receiver: WebhookReceiver) -> AsyncIterator[str]:
    async with receiver.serve(port=0) as root:
        yield root


@asynccontextmanager
async def _asgi(receiver: WebhookReceiver) -> AsyncIterator[str]:
    async with uvicorn_running(receiver.asgi) as root:
        yield root


@asynccontextmanager
async def _routes(receiver: WebhookReceiver) -> AsyncIterator[str]:
    app = aiohttp.web.Application()
    app.add_routes(receiver.routes("/"))
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("serve", [_own, _asgi, _routes])
def test_a_body_has_to_arrive_in_time(serve: Any, receiver: WebhookReceiver) -> None:
    """Each endpoint responds with 408 to a body that is not complete after 30 s."""
    token = receiver._token_for("a job")

    async def main() -> None:
        async with serve(receiver) as root:
            parts = urlsplit(root)
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            head = f"POST /{token} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n"
            writer.write(head.encode())
            began = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_dribble, writer)
                answer = await reader.readuntil(b"\r\n")
                took = anyio.current_time() - began
                tasks.cancel_scope.cancel()
            writer.close()
            assert b" 408 " in answer
            assert BODY_TIMEOUT * 0.9 <= took < 2 * BODY_TIMEOUT

    run(main)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _count_sockets() -> int:
    """Return how many descriptors are sockets; a loop may open others of its own at any time."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the directory that was listed
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


async def test_silent_clients_do_not_use_up_the_descriptors(receiver: WebhookReceiver) -> None:
    """Of 350 connections 256 are accepted; the others wait, and are served later."""
    async with receiver.serve(port=0) as root:
        before = _count_sockets()
        with ExitStack() as stack:
            silent = [stack.enter_context(await connect(root)) for _ in range(350)]
            with anyio.fail_after(HANG):
                while _count_sockets() - before < len(silent) + MAX_CONNECTIONS:
                    await anyio.sleep(0.01)
            await anyio.sleep(0.2)
            assert _count_sockets() - before == len(silent) + MAX_CONNECTIONS
            for each in silent[:300]:
                each.close()
            with anyio.fail_after(HANG):
                assert await health(root) == 200


@pytest.fixture
def few_descriptors() -> Iterator[list[int]]:
    """A process that may open no more files until the list's descriptors are closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_descriptors() + 40, hard))
    taken: list[int] = []
    try:
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


async def test_running_out_of_descriptors_is_waited_out(
    receiver: WebhookReceiver, few_descriptors: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log, no traceback, and the waiting client is served afterwards."""
    async with receiver.serve(port=0) as root:
        client = socket.socket()
        client.setblocking(False)
        with suppress(OSError):
            while True:
                few_descriptors.append(os.open(os.devnull, os.O_RDONLY))
        with caplog.at_level(logging.DEBUG), client:
            loop, parts = asyncio.get_running_loop(), urlsplit(root)
            await loop.sock_connect(client, (parts.hostname, parts.port))
            await loop.sock_sendall(
                client, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            )
            with anyio.fail_after(HANG):
                while "Cannot accept" not in caplog.text:
                    await anyio.sleep(0.01)
            await anyio.sleep(1.5)
            while few_descriptors:
                os.close(few_descriptors.pop())
            with anyio.fail_after(HANG):
                answer = await loop.sock_recv(client, 100)
        assert answer.startswith(b"HTTP/1.1 200")
        lines = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert len(lines) == 1
        assert lines[0].exc_info is None
