from __future__ import annotations

import asyncio
import io
import json
import logging
import resource
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import anyio
import attrs
import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from musicgpt_async.errors import ConfigurationError, JournalError
from musicgpt_async.webhooks import MAX_BODY, SERVICE, WebhookReceiver

pytestmark = pytest.mark.anyio

PUBLIC_URL = "https://bot.example.com/hooks"
GARBAGE_TOKEN = "0" * 32 + "." + "f" * 32
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@asynccontextmanager
async def uvicorn_running(app: Any, **options: Any) -> AsyncIterator[str]:
    """Serve an ASGI application under a real uvicorn; yields the root of the server."""
    # asyncio turns Nagle's algorithm off only where the protocol is named.
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
    """The door mounted beside other routes of a FastAPI application."""
    app = FastAPI()
    app.get("/other")(lambda: "theirs")
    app.mount("/hooks", receiver.asgi)
    async with uvicorn_running(app) as root:
        yield root


@asynccontextmanager
async def alone_under_uvicorn(receiver: WebhookReceiver) -> AsyncIterator[str]:
    """The door as the only ASGI application, lifespan included."""
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
    """The door's routes beside other routes of an aiohttp application."""

    async def other(_request: web.Request) -> web.Response:
        return web.json_response("theirs")

    app = web.Application()
    app.add_routes([web.get("/other", other), *receiver.routes()])
    async with aiohttp_running(app) as root:
        yield root


@asynccontextmanager
async def served_by_itself(receiver: WebhookReceiver) -> AsyncIterator[str]:
    """The door as a server of its own."""
    async with receiver.serve(port=0) as root:
        yield root


Door = Callable[[WebhookReceiver], AbstractAsyncContextManager[str]]
DOORS: dict[str, Door] = {
    "fastapi": mounted_in_fastapi,
    "uvicorn": alone_under_uvicorn,
    "aiohttp": routed_in_aiohttp,
    "serve": served_by_itself,
}


@attrs.frozen
class Open:
    """A door that is open, with one letterbox behind it."""

    receiver: WebhookReceiver
    root: str
    token: str
    got: list[Mapping[str, Any]]
    client: aiohttp.ClientSession

    async def send(
        self, method: str, path: str, data: Any = None, **headers: str
    ) -> tuple[int, Mapping[str, str], Any]:
        """Send one request, the path as it is; returns status, headers and JSON of the answer."""
        url = URL(self.root + path.replace("TOKEN", self.token), encoded=True)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.client.request(
            method, url, data=body, headers=named, allow_redirects=False
        ) as answer:
            content = await answer.read()
            return answer.status, answer.headers, json.loads(content) if content else None

    async def talk(self, request: bytes, *, listen: bool = True) -> bytes:
        """Write bytes to the door and hang up, after the first bytes of an answer or at once."""
        stream = await anyio.connect_tcp("127.0.0.1", URL(self.root).port or 0)
        async with stream:
            await stream.send(request)
            with anyio.fail_after(10):
                return await stream.receive() if listen else b""


@pytest.fixture(params=DOORS)
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Each of the four doors in turn."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver.token_for("job")
    receiver.inbox.open(token, got.append)
    async with (
        DOORS[request.param](receiver) as root,
        aiohttp.ClientSession(auto_decompress=False) as client,
    ):
        yield Open(receiver, root, token, got, client)


PATHS = {
    "plain": "/hooks/TOKEN",
    "slash behind": "/hooks/TOKEN/",
    "slashes within": "/hooks//TOKEN",
    "slashes around": "/hooks///TOKEN//",
    "query": "/hooks/TOKEN?a=/b&token=0.0",
    "encoded dot": "/hooks/TOKEN?".replace("TOKEN", "PUBLIC%2ESECRET"),
    "encoded letter": "/h%6Foks/TOKEN",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_a_delivery_is_taken(door: Open, path: str) -> None:
    """A POST on the job's URL wakes the job before it is answered, however the path is spelt."""
    public, _, secret = door.token.partition(".")
    spelt = path.replace("PUBLIC", public).replace("SECRET", secret)
    status, headers, content = await door.send("POST", spelt, b'{"task_id": "t\xc3\xa9"}')
    assert (status, content) == (200, {"ok": True})
    assert headers["Content-Type"].startswith("application/json")
    assert door.got == [{"task_id": "té"}]


@pytest.mark.parametrize("path", ["/hooks/", "/hooks//", "/hooks/?query=1"])
async def test_the_base_tells_what_it_is(door: Open, path: str) -> None:
    """GET and HEAD on the base answer the health line, and nothing else is allowed there."""
    status, headers, line = await door.send("GET", path)
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert line == {"service": SERVICE, "instance": door.receiver.instance}
    status, _, content = await door.send("HEAD", path)
    assert (status, content) == (200, None)
    for method in ("POST", "PUT", "OPTIONS"):
        status, headers, _ = await door.send(method, path, b"{}")
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


REFUSED = {
    "wrong token": ("POST", f"/hooks/{GARBAGE_TOKEN}", b"{}", 404),
    "half a token": ("POST", "/hooks/PUBLIC", b"{}", 404),
    "token of another job's secret": ("POST", "/hooks/PUBLIC." + "0" * 32, b"{}", 404),
    "token in capitals": ("POST", "/hooks/UPPER", b"{}", 404),
    "junk for a token": ("POST", "/hooks/%00%ff%F0%9F%8E%B5", b"{}", 404),
    "token before the end": ("POST", "/hooks/TOKEN/more", b"{}", 404),
    "GET": ("GET", "/hooks/TOKEN", None, 405),
    "HEAD": ("HEAD", "/hooks/TOKEN", None, 405),
    "PUT": ("PUT", "/hooks/TOKEN", b"{}", 405),
    "OPTIONS": ("OPTIONS", "/hooks/TOKEN", None, 405),
    "nothing": ("POST", "/hooks/TOKEN", None, 400),
    "no JSON": ("POST", "/hooks/TOKEN", b"task_id=1", 400),
    "cut JSON": ("POST", "/hooks/TOKEN", b'{"task_id": "t', 400),
    "an array": ("POST", "/hooks/TOKEN", b'[{"task_id": "t"}]', 400),
    "a string": ("POST", "/hooks/TOKEN", b'"{}"', 400),
    "null": ("POST", "/hooks/TOKEN", b"null", 400),
    "no UTF-8": ("POST", "/hooks/TOKEN", b'{"a": "\xff\xfe"}', 400),
    "a huge number": ("POST", "/hooks/TOKEN", b'{"a": ' + b"9" * 5000 + b"}", 400),
    "deep arrays": ("POST", "/hooks/TOKEN", b"[" * 500_000, 400),
    "deep objects": ("POST", "/hooks/TOKEN", DEEP, 400),
    "too large": ("POST", "/hooks/TOKEN", b'{"a": "' + b"x" * MAX_BODY + b'"}', 413),
}


@pytest.mark.parametrize(("method", "path", "body", "expected"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_delivery_is_refused(
    door: Open, method: str, path: str, body: bytes | None, expected: int
) -> None:
    """Each thing that can be wrong has its status, wakes nothing and hurts nothing after it."""
    spelt = path.replace("PUBLIC", door.token.partition(".")[0]).replace(
        "UPPER", door.token.upper()
    )
    status, headers, content = await door.send(method, spelt, body)
    assert status == expected
    assert headers.get("Allow") == ("POST" if expected == 405 else None)
    assert method == "HEAD" or set(content) == {"error"}
    assert door.got == []
    assert (await door.send("POST", "/hooks/TOKEN", b'{"after": 1}'))[0] == 200
    assert door.got == [{"after": 1}]


async def test_a_body_of_exactly_the_limit_is_taken(door: Open) -> None:
    """1 MiB is not over 1 MiB."""
    body = b'{"a": "' + b"x" * (MAX_BODY - 9) + b'"}'
    assert len(body) == MAX_BODY
    assert (await door.send("POST", "/hooks/TOKEN", body))[0] == 200


@pytest.mark.parametrize(("blocks", "status"), [(1, 200), (16, 413), (64, 413)])
async def test_a_body_of_unknown_length_is_counted(door: Open, blocks: int, status: int) -> None:
    """Without a Content-Length the bytes are counted as they come in."""

    async def body() -> AsyncIterator[bytes]:
        yield b'{"a": "'
        for _ in range(blocks):
            yield b"x" * (MAX_BODY // 16)
        yield b'"}'

    assert (await door.send("POST", "/hooks/TOKEN", body()))[0] == status
    assert len(door.got) == (status == 200)


@pytest.mark.parametrize("path", ["TOKEN", GARBAGE_TOKEN])
async def test_what_is_refused_beforehand_is_not_read(door: Open, path: str) -> None:
    """A body that is announced too large, or bears a wrong token, is answered before it comes."""
    target = f"/hooks/{path}".replace("TOKEN", door.token)
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
    answer = await door.talk(head.encode())
    assert answer.split()[1] == (b"404" if path == GARBAGE_TOKEN else b"413")


async def test_a_compressed_body_is_refused(door: Open) -> None:
    """A Content-Encoding is refused unread at each door alike, since some would unpack a bomb."""
    status, _, _ = await door.send(
        "POST", "/hooks/TOKEN", b"{}", Content_Encoding="gzip", Connection="close"
    )
    assert status == 415
    status, _, _ = await door.send("POST", "/hooks/TOKEN", b"{}", Content_Encoding="identity")
    assert status == 200


async def test_a_job_that_raises_does_not_break_the_door(
    door: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """The delivery is acknowledged all the same, and the log shows no token."""

    def wake(payload: Mapping[str, Any]) -> None:
        raise LookupError(payload)

    token = door.receiver.token_for("another")
    door.receiver.inbox.open(token, wake)
    status, _, _ = await door.send("POST", f"/hooks/{token}", b'{"task_id": "private"}')
    assert status == 200
    assert "LookupError" in caplog.text
    assert token not in caplog.text
    assert "private" not in caplog.text


async def test_a_delivery_is_acknowledged_once_it_is_written_down(door: Open) -> None:
    """The door waits for whoever keeps what it brought, and asks for it again where that fails."""
    kept, began, written = [JournalError("the disk is full")], anyio.Event(), anyio.Event()

    async def keep() -> None:
        if kept:
            raise kept.pop()
        began.set()
        await written.wait()

    token = door.receiver.token_for("another")
    door.receiver.inbox.open(token, door.got.append, keep)
    status, headers, _ = await door.send("POST", f"/hooks/{token}", b"{}")
    assert (status, headers["Retry-After"]) == (503, "30")
    delivery = asyncio.create_task(door.send("POST", f"/hooks/{token}", b"{}"))
    await began.wait()
    assert not delivery.done()
    written.set()
    assert (await delivery)[0] == 200
    assert door.got == [{}, {}]


async def test_late_and_doubled_deliveries_are_acknowledged(door: Open) -> None:
    """After the job is over its URL still answers 200, so that the vendor does not go on trying."""
    door.receiver.inbox.close(door.token)
    for _ in range(2):
        assert (await door.send("POST", "/hooks/TOKEN", b"{}"))[0] == 200
    assert door.got == []


async def test_a_client_that_hangs_up_does_no_harm(
    door: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that breaks off wakes nothing, raises nothing, and the door stays open."""
    head = f"POST /hooks/{door.token} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    for beginning in (b"", b'{"task_id": '):
        await door.talk(head.encode() + beginning, listen=False)
    assert (await door.send("POST", "/hooks/TOKEN", b"{}"))[0] == 200
    assert door.got == [{}]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_broken_chunk_does_no_harm(door: Open) -> None:
    """A body whose chunks do not parse is refused and wakes nothing."""
    head = f"POST /hooks/{door.token} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await door.talk(head.encode() + b"2\r\n{}\r\nzz\r\n")
    assert answer.split()[1] == b"400"
    assert door.got == []


async def test_many_sessions_share_a_door(door: Open) -> None:
    """Each delivery of a crowd reaches its own job, once."""
    got: dict[int, list[Any]] = {number: [] for number in range(50)}
    tokens = {number: door.receiver.token_for(f"job{number}") for number in got}
    for number, token in tokens.items():
        door.receiver.inbox.open(token, got[number].append)
    async with anyio.create_task_group() as tasks:
        for number, token in tokens.items():
            body = json.dumps({"number": number}).encode()
            tasks.start_soon(door.send, "POST", f"/hooks/{token}", body)
    assert got == {number: [{"number": number}] for number in got}
    assert door.got == []


@pytest.mark.parametrize("name", ["fastapi", "aiohttp"])
async def test_other_routes_stay_as_they_were(name: str) -> None:
    """The application around the door answers its own paths."""
    async with (
        DOORS[name](WebhookReceiver(PUBLIC_URL)) as root,
        aiohttp.ClientSession() as client,
    ):
        async with client.get(f"{root}/other") as answer:
            assert (answer.status, await answer.json()) == (200, "theirs")
        async with client.get(f"{root}/nothing") as answer:
            assert answer.status == 404


@pytest.mark.parametrize("name", ["aiohttp", "uvicorn", "serve"])
async def test_the_bare_base_and_leading_slashes_are_right_too(name: str) -> None:
    """Doors that see the whole path answer the base without a slash and paths joined carelessly."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver.token_for("job")
    receiver.inbox.open(token, got.append)
    async with DOORS[name](receiver) as root, aiohttp.ClientSession() as client:
        opened = Open(receiver, root, token, got, client)
        for path in ("/hooks", "//hooks", "/hooks?q"):
            assert (await opened.send("GET", path))[0] == 200
        assert (await opened.send("POST", "//hooks/TOKEN", b"{}"))[0] == 200


def in_a_sub_application(receiver: WebhookReceiver) -> AbstractAsyncContextManager[str]:
    """The door in an aiohttp sub-application."""
    sub = web.Application()
    sub.add_routes(receiver.routes("/in"))
    app = web.Application()
    app.add_subapp("/sub", sub)
    return aiohttp_running(app)


def at_the_root_of_aiohttp(receiver: WebhookReceiver) -> AbstractAsyncContextManager[str]:
    """The door as all that an aiohttp application has, behind a proxy that takes the path away."""
    app = web.Application()
    app.add_routes(receiver.routes("/"))
    return aiohttp_running(app)


def mounted_twice_deep(receiver: WebhookReceiver) -> AbstractAsyncContextManager[str]:
    """The door in a mounted application of a mounted application, under a server's root path."""
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
async def test_where_the_door_is_placed_does_not_matter(placed: Door, prefix: str) -> None:
    """Mount points and proxies that change the path leave deliveries and health as they are."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver.token_for("job")
    receiver.inbox.open(token, got.append)
    async with placed(receiver) as root, aiohttp.ClientSession() as client:
        opened = Open(receiver, root, token, got, client)
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
    token = receiver.token_for("job")
    receiver.inbox.open(token, got.append)
    scope = {"type": "http", "root_path": root_path, "headers": [(b"content-length", b"junk")]}
    body = {"type": "http.request", "body": b"{}"}
    post = {**scope, "method": "POST", "path": path.replace("TOKEN", token)}
    assert (await called(receiver.asgi, post, body))[0]["status"] == 200
    get = {**scope, "method": "GET", "path": path.replace("TOKEN", "")}
    assert (await called(receiver.asgi, get))[0]["status"] == 200
    assert got == [{}]


async def test_an_asgi_client_that_hangs_up_is_not_answered() -> None:
    """A disconnect in the middle of the body ends the call with nothing sent and nobody woken."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver.token_for("job")
    receiver.inbox.open(token, got.append)
    scope = {"type": "http", "method": "POST", "path": f"/{token}", "headers": []}
    part = {"type": "http.request", "body": b"{}", "more_body": True}
    assert await called(receiver.asgi, scope, part, {"type": "http.disconnect"}) == []
    assert got == []


async def test_an_asgi_answer_to_head_has_no_body() -> None:
    """The door itself leaves the body out, whether or not the server would."""
    scope = {"type": "http", "method": "HEAD", "path": "/", "headers": []}
    start, body = await called(WebhookReceiver(PUBLIC_URL).asgi, scope)
    assert start["status"] == 200
    assert body["body"] == b""


async def test_lifespan_is_answered() -> None:
    """A server that waits for startup and shutdown to be complete is told so."""
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = await called(WebhookReceiver(PUBLIC_URL).asgi, {"type": "lifespan"}, *events)
    assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_websocket_is_closed() -> None:
    """Somebody who asks the ASGI door for a websocket is sent away, without an exception."""
    sent = await called(WebhookReceiver(PUBLIC_URL).asgi, {"type": "websocket", "path": "/"})
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_server_of_its_own_is_gone_after_its_block() -> None:
    """A server frees its port when the block ends, also by cancellation with a body half sent."""
    receiver = WebhookReceiver(PUBLIC_URL)
    token = receiver.token_for("job")
    receiver.inbox.open(token, print)
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


async def test_a_taken_port_is_told() -> None:
    """A server says which address it could not have, and leaves nothing open behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}.*choose another"):
            async with WebhookReceiver(PUBLIC_URL).serve(port=port):
                pytest.fail("it listens where another does")


async def test_its_own_server_logs_no_token(caplog: pytest.LogCaptureFixture) -> None:
    """Under serve no log of anybody shows a token: right, wrong, or in a malformed request."""
    receiver = WebhookReceiver(PUBLIC_URL)
    token = receiver.token_for("job")
    receiver.inbox.open(token, print)
    with caplog.at_level(logging.DEBUG):
        async with receiver.serve(port=0) as root, aiohttp.ClientSession() as client:
            opened = Open(receiver, root, token, [], client)
            await opened.send("POST", "/TOKEN", b"[]")
            await opened.send("POST", f"/{GARBAGE_TOKEN}", b"{}")
            answer = await opened.talk(f"POST /{token}\0 HTTP/9.z\r\n\r\n".encode())
            assert answer.split()[1] == b"400"
    assert token not in caplog.text
    assert GARBAGE_TOKEN not in caplog.text


async def test_its_own_server_does_not_unpack(caplog: pytest.LogCaptureFixture) -> None:
    """Under serve a body that claims to be compressed costs an answer, and no error in a log."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    async with receiver.serve(port=0) as root, aiohttp.ClientSession() as client:
        opened = Open(receiver, root, receiver.token_for("job"), got, client)
        for _ in range(3):
            status, _, _ = await opened.send("POST", "/TOKEN", b"{}", Content_Encoding="gzip")
            assert status == 404
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_tokens_are_unguessable_or_derived() -> None:
    """Without a secret each token is new; with one it is the same for a job after a restart."""
    assert len({WebhookReceiver(PUBLIC_URL).token_for("job") for _ in range(3)}) == 3
    first, again = (WebhookReceiver(PUBLIC_URL, secret=s) for s in ("s3cret", b"s3cret"))
    assert first.token_for("job") == again.token_for("job")
    assert first.token_for("job") != first.token_for("job2")
    assert first.token_for("job") != WebhookReceiver(PUBLIC_URL, secret="x").token_for("job")
    assert "job" not in first.token_for("job")


async def test_a_delivery_between_restart_and_resume_is_kept() -> None:
    """With a secret, a new process takes a delivery for a job that it has not taken up yet."""
    token = WebhookReceiver(PUBLIC_URL, secret="s3cret").token_for("job")
    receiver, got = WebhookReceiver(PUBLIC_URL, secret="s3cret"), []
    other = WebhookReceiver(PUBLIC_URL, secret="another").token_for("job")
    async with receiver.serve(port=0) as root, aiohttp.ClientSession() as client:
        opened = Open(receiver, root, token, got, client)
        assert (await opened.send("POST", "/TOKEN", b'{"task_id": "t"}'))[0] == 200
        assert (await opened.send("POST", f"/{other}", b"{}"))[0] == 404
        receiver.inbox.open(token, got.append)
    assert got == [{"task_id": "t"}]


def test_the_receiver_shows_no_secret() -> None:
    """Its repr has the URL, not the secret."""
    assert repr(WebhookReceiver(PUBLIC_URL, secret="s3cret")) == f"WebhookReceiver('{PUBLIC_URL}')"


@pytest.mark.parametrize(
    ("public_url", "url"),
    [
        ("https://x.example", "https://x.example/T"),
        ("https://x.example/", "https://x.example/T"),
        ("http://127.0.0.1:8080/a/b/", "http://127.0.0.1:8080/a/b/T"),
        ("https://[::1]:1/@me", "https://[::1]:1/@me/T"),
    ],
)
def test_urls_are_joined_with_one_slash(public_url: str, url: str) -> None:
    """A job's URL is the public URL, one slash and the token."""
    assert WebhookReceiver(public_url).url_for("T") == url


@pytest.mark.parametrize(
    "public_url",
    [
        *("", "x.example", "/hooks", "ftp://x.example", "https://", "https:///hooks", "https:x"),
        *("https://x.example?a", "https://x.example/?", "https://x.example/#a", "https://a b.c"),
        *("https://u:p@x.example", "https://x.example/\n", "https://x:99999", "https://[", None),
    ],
)
def test_an_unusable_public_url_is_told(public_url: Any) -> None:
    """What the vendor could not post to is refused, with an example of what is right."""
    with pytest.raises(ConfigurationError, match=r"must look like https://example.com/musicgpt"):
        WebhookReceiver(public_url)


def test_an_empty_secret_is_told() -> None:
    """An empty secret would make tokens that anybody can derive."""
    with pytest.raises(ConfigurationError, match="secret is empty"):
        WebhookReceiver(PUBLIC_URL, secret="")


def outcome(answer: Coroutine[Any, Any, Any]) -> Any:
    """Return what the core answers, and fail if it awaits anything but the body."""
    try:
        answer.send(None)
    except StopIteration as stop:
        return stop.value
    answer.close()
    pytest.fail("the core awaited something else than the body")


def reading(*blocks: bytes) -> Callable[[], Awaitable[bytes]]:
    """Return a body that is there already."""
    rest = list(blocks)

    async def read() -> bytes:
        return rest.pop(0) if rest else b""

    return read


@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT"]) | st.text(max_size=8),
    path=st.text(max_size=200),
    headers=st.dictionaries(
        st.sampled_from(["content-length", "content-encoding", "x"]), st.text(max_size=40)
    ),
    blocks=st.lists(st.binary(min_size=1, max_size=64)),
)
def test_garbage_gets_an_answer_and_wakes_nobody(
    method: str, path: str, headers: dict[str, str], blocks: list[bytes]
) -> None:
    """Whatever is asked without a token, the core answers it with a refusal or the health line."""
    receiver, got = WebhookReceiver(PUBLIC_URL, secret="s3cret"), []
    receiver.inbox.open(receiver.token_for("job"), got.append)
    answer = outcome(receiver._core.answer(method, path, headers, reading(*blocks)))
    if answer.status == 200:
        assert method in {"GET", "HEAD"}
        assert path.strip("/") in {"", "hooks"}
    else:
        assert answer.status in {404, 405}
    assert got == []


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | json_values.map(json.dumps).map(str.encode))
@example(b'{"a": "\\ud800"}')
@example(b'\xef\xbb\xbf{"a": 1}')
@example(b'{"a": NaN, "a": -Infinity}')
@example(DEEP)
def test_any_body_with_a_token_is_taken_or_refused(body: bytes) -> None:
    """With the right token a JSON object wakes the job, and every other body is a 400."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver.token_for("job")
    receiver.inbox.open(token, got.append)
    half = len(body) // 2
    answer = outcome(
        receiver._core.answer(
            "POST", f"/{token}", {}, reading(*filter(None, (body[:half], body[half:])))
        )
    )
    assert answer.status in {200, 400}
    assert len(got) == (answer.status == 200)
    if got:
        assert isinstance(got[0], dict)


@pytest.mark.parametrize("name", ["serve", "fastapi"])
async def test_a_flood_of_garbage_disturbs_no_delivery(name: str) -> None:
    """10,000 pieces of garbage get right statuses, memory stays flat, and jobs are woken."""
    receiver, got = WebhookReceiver(PUBLIC_URL, secret="s3cret"), []
    token = receiver.token_for("job")
    receiver.inbox.open(token, got.append)
    sent = 0
    async with DOORS[name](receiver) as root, aiohttp.ClientSession() as client:
        opened = Open(receiver, root, token, got, client)
        await flood(root, token, 1_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with anyio.create_task_group() as tasks:
            running = anyio.Event()

            async def genuine() -> None:
                nonlocal sent
                while not running.is_set():
                    sent += 1
                    assert (await opened.send("POST", "/hooks/TOKEN", b'{"n": %d}' % sent))[
                        0
                    ] == 200
                    assert got[-1] == {"n": sent}

            tasks.start_soon(genuine)
            report = await flood(root, token, 10_000)
            running.set()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert report["wrong"] == []
    assert report["answers"] == 10_000
    assert len(got) == sent > 10
    grown = (after - before) * 1024
    assert grown < report["bytes"] / 10, f"{grown} bytes more for {report['bytes']} bytes sent"


async def flood(root: str, token: str, number: int) -> dict[str, Any]:
    """Have another process send garbage to a door; returns its report."""
    command = [sys.executable, __file__, str(URL(root).port), token, str(number)]
    done = await anyio.run_process(command, stderr=None)
    return json.loads(done.stdout)


def garbage(token: str) -> list[tuple[int, bytes]]:
    """Return requests that a door refuses, each with the status that it must get."""

    def post(status: int, path: str, body: bytes) -> tuple[int, bytes]:
        head = f"POST /hooks/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        return status, head.encode() + body

    public = token.partition(".")[0]
    return [
        *(post(404, f"{n:032x}.{n:032x}", b'{"task_id": "%d"}' % n) for n in range(50)),
        post(404, public, b"{}"),
        post(404, f"{public}.{'0' * 32}", b"x" * 20_000),
        post(400, token, b""),
        post(400, token, b"[" * 20_000),
        post(400, token, b"\xff" * 50_000),
        post(413, token, b"x" * (MAX_BODY + 1)),
        (405, f"GET /hooks/{token} HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
        (405, b"DELETE /hooks/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    ]


async def send_garbage(port: int, token: str, number: int) -> None:
    """Send garbage over a few connections and print a report of what came back, as JSON."""
    requests = garbage(token)
    queue = iter(requests[n % len(requests)] for n in range(number))
    wrong: list[tuple[int, int]] = []
    answers = bytes_sent = 0

    async def one_after_another() -> None:
        nonlocal answers, bytes_sent
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for expected, request in queue:
            writer.write(request)
            bytes_sent += len(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
            await writer.drain()
            answers += 1
            if (status := int(head.split()[1])) != expected:
                wrong.append((status, expected))
            if b"connection: close" in head:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    await asyncio.gather(*(one_after_another() for _ in range(4)))
    print(json.dumps({"answers": answers, "wrong": wrong[:10], "bytes": bytes_sent}))  # noqa: T201  # the report


if __name__ == "__main__":
    asyncio.run(send_garbage(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
