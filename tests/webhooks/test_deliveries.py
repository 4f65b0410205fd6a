"""What each endpoint accepts and what it refuses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anyio
import pytest
from factories.endpoints import DEEP, GARBAGE_TOKEN, PUBLIC_URL, SERVERS, Endpoint, listen

from musicgpt_async._io.delivery_queue import Consumer
from musicgpt_async.webhooks import MAX_BODY_BYTES, SERVICE, WebhookReceiver

pytestmark = pytest.mark.anyio


@pytest.fixture(params=SERVERS)
async def endpoint(request: pytest.FixtureRequest) -> AsyncIterator[Endpoint]:
    """Each of the four endpoints in turn."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver._token_for("job")
    listen(receiver._queue, token, got)
    async with (
        SERVERS[request.param](receiver) as root,
        aiohttp.ClientSession(auto_decompress=False) as client,
    ):
        yield Endpoint(receiver, root, token, got, client)


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
async def test_a_delivery_is_taken(endpoint: Endpoint, path: str) -> None:
    """A POST to the job's URL, in any spelling of the path, wakes the job before the response."""
    public, _, secret = endpoint.token.partition(".")
    spelt = path.replace("PUBLIC", public).replace("SECRET", secret)
    status, headers, content = await endpoint.send("POST", spelt, b'{"task_id": "t\xc3\xa9"}')
    assert (status, content) == (200, {"ok": True})
    assert headers["Content-Type"].startswith("application/json")
    assert endpoint.got == [{"task_id": "té"}]


@pytest.mark.parametrize("path", ["/hooks/", "/hooks//", "/hooks/?query=1"])
async def test_the_base_says_what_it_is(endpoint: Endpoint, path: str) -> None:
    """GET and HEAD of the base return the health line, and no other method is allowed."""
    status, headers, line = await endpoint.send("GET", path)
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert line == {"service": SERVICE, "instance": endpoint.receiver._instance}
    status, _, content = await endpoint.send("HEAD", path)
    assert (status, content) == (200, None)
    for method in ("POST", "PUT", "OPTIONS"):
        status, headers, _ = await endpoint.send(method, path, b"{}")
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
    "too large": ("POST", "/hooks/TOKEN", b'{"a": "' + b"x" * MAX_BODY_BYTES + b'"}', 413),
}


@pytest.mark.parametrize(("method", "path", "body", "expected"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_delivery_is_refused(
    endpoint: Endpoint, method: str, path: str, body: bytes | None, expected: int
) -> None:
    """Each thing that can be wrong has its status, wakes nothing and hurts nothing after it."""
    spelt = path.replace("PUBLIC", endpoint.token.partition(".")[0]).replace(
        "UPPER", endpoint.token.upper()
    )
    status, headers, content = await endpoint.send(method, spelt, body)
    assert status == expected
    assert headers.get("Allow") == ("POST" if expected == 405 else None)
    assert method == "HEAD" or set(content) == {"error"}
    assert endpoint.got == []
    assert (await endpoint.send("POST", "/hooks/TOKEN", b'{"after": 1}'))[0] == 200
    assert endpoint.got == [{"after": 1}]


async def test_a_body_of_exactly_the_limit_is_taken(endpoint: Endpoint) -> None:
    """1 MiB is not over 1 MiB."""
    body = b'{"a": "' + b"x" * (MAX_BODY_BYTES - 9) + b'"}'
    assert len(body) == MAX_BODY_BYTES
    assert (await endpoint.send("POST", "/hooks/TOKEN", body))[0] == 200


@pytest.mark.parametrize(("blocks", "status"), [(1, 200), (16, 413), (64, 413)])
async def test_a_body_of_unknown_length_is_counted(
    endpoint: Endpoint, blocks: int, status: int
) -> None:
    """Without a Content-Length, the received bytes are counted."""

    async def body() -> AsyncIterator[bytes]:
        yield b'{"a": "'
        for _ in range(blocks):
            yield b"x" * (MAX_BODY_BYTES // 16)
        yield b'"}'

    assert (await endpoint.send("POST", "/hooks/TOKEN", body()))[0] == status
    assert len(endpoint.got) == (status == 200)


@pytest.mark.parametrize("path", ["TOKEN", GARBAGE_TOKEN])
async def test_what_is_refused_beforehand_is_not_read(endpoint: Endpoint, path: str) -> None:
    """A body that is declared too large, or has a wrong token, is refused before it is read."""
    target = f"/hooks/{path}".replace("TOKEN", endpoint.token)
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
    answer = await endpoint.talk(head.encode())
    assert answer.split()[1] == (b"404" if path == GARBAGE_TOKEN else b"413")


async def test_a_compressed_body_is_refused(endpoint: Endpoint) -> None:
    """Each endpoint refuses a Content-Encoding unread, since some would decompress a bomb."""
    status, _, _ = await endpoint.send(
        "POST", "/hooks/TOKEN", b"{}", Content_Encoding="gzip", Connection="close"
    )
    assert status == 415
    status, _, _ = await endpoint.send("POST", "/hooks/TOKEN", b"{}", Content_Encoding="identity")
    assert status == 200


async def test_a_delivery_is_acknowledged_once_its_consumer_has_dealt_with_it(
    endpoint: Endpoint,
) -> None:
    """The endpoint waits for the consumer, and asks for the delivery again if that fails."""
    token, consumer = endpoint.receiver._token_for("another"), Consumer(endpoint.receiver._queue)
    consumer.subscribe(token)
    delivery = asyncio.create_task(endpoint.send("POST", f"/hooks/{token}", b"{}"))
    (await consumer.get()).reject()
    status, headers, _ = await delivery
    assert (status, headers["Retry-After"]) == (503, "30")
    delivery = asyncio.create_task(endpoint.send("POST", f"/hooks/{token}", b"{}"))
    taken = await consumer.get()
    assert not delivery.done()
    taken.acknowledge()
    assert (await delivery)[0] == 200


async def test_late_and_doubled_deliveries_are_acknowledged(endpoint: Endpoint) -> None:
    """After the job has ended its URL still responds with 200, so that MusicGPT stops retrying."""
    endpoint.receiver._queue.unsubscribe(endpoint.token)
    for _ in range(2):
        assert (await endpoint.send("POST", "/hooks/TOKEN", b"{}"))[0] == 200
    assert endpoint.got == []


async def test_a_client_that_hangs_up_does_no_harm(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that breaks off wakes nothing, raises nothing, and the endpoint keeps working."""
    head = f"POST /hooks/{endpoint.token} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    for beginning in (b"", b'{"task_id": '):
        await endpoint.talk(head.encode() + beginning, listen=False)
    assert (await endpoint.send("POST", "/hooks/TOKEN", b"{}"))[0] == 200
    assert endpoint.got == [{}]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_broken_chunk_does_no_harm(endpoint: Endpoint) -> None:
    """A body whose chunks do not parse is refused and wakes nothing."""
    head = f"POST /hooks/{endpoint.token} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await endpoint.talk(head.encode() + b"2\r\n{}\r\nzz\r\n")
    assert answer.split()[1] == b"400"
    assert endpoint.got == []


async def test_many_sessions_share_an_endpoint(endpoint: Endpoint) -> None:
    """Each delivery of a crowd reaches its own job, once."""
    got: dict[int, list[Any]] = {number: [] for number in range(50)}
    tokens = {number: endpoint.receiver._token_for(f"job{number}") for number in got}
    for number, token in tokens.items():
        listen(endpoint.receiver._queue, token, got[number])
    async with anyio.create_task_group() as tasks:
        for number, token in tokens.items():
            body = json.dumps({"number": number}).encode()
            tasks.start_soon(endpoint.send, "POST", f"/hooks/{token}", body)
    assert got == {number: [{"number": number}] for number in got}
    assert endpoint.got == []
