"""The API key: which calls send it, and that no output shows it."""

from __future__ import annotations

import gzip
import traceback
from typing import Any

import pytest
from factories.calls import (
    KEY,
    YES,
    Echo,
    failure_of,
    fetch,
    seen_by_a_crash_reporter,
    stay_silent,
    submit,
)

from musicgpt_async._io.http import SecretKey, Transport
from musicgpt_async.errors import (
    TransportError,
)

pytestmark = pytest.mark.anyio


async def test_the_key_is_sent_with_api_calls_only(serve: Any, lanes: Any) -> None:
    """Polls and submits send the key; file hosts never receive it."""
    echo = Echo()
    async with serve(echo) as server, lanes(api_key=KEY) as transport:
        await transport.get(f"{server.url}/byId", {"task_id": "t"})
        await submit(transport, f"{server.url}/Extraction")
        await fetch(transport, f"{server.url}/stem.wav?sig=1")
    poll, sent, file = (request for _, request in echo.requests)
    assert poll.headers["authorization"] == sent.headers["authorization"] == KEY
    assert poll.line == "GET /byId?task_id=t HTTP/1.1"
    assert "authorization" not in file.headers
    assert KEY.encode() not in file.raw_head
    assert file.headers["accept-encoding"] == "identity"


def test_the_key_shows_stars() -> None:
    """Wherever a program shows its values, the key does not show."""
    key = SecretKey(KEY)
    assert (repr(key), f"{key!r}", repr([key]), repr({"a": key})) == (
        "'***'",
        "'***'",
        "['***']",
        "{'a': '***'}",
    )
    transport = Transport(KEY, request_timeout=1, downloads=1, is_allowed=lambda _: True)
    assert KEY not in repr(transport) + str(transport) + repr(vars(transport))


async def _hang_up(peer: Any) -> None:
    await peer.request()


async def _reset(peer: Any) -> None:
    await peer.reader.readexactly(100)
    peer.reset()


async def _garbage(peer: Any) -> None:
    await peer.request()
    await peer.say(b"NOT HTTP AT ALL\r\n\r\n")


async def _cut(peer: Any) -> None:
    await peer.request()
    await peer.answer(200, YES, Content_Length="900")


async def _bad_gzip(peer: Any) -> None:
    await peer.request()
    await peer.answer(200, YES, Content_Encoding="gzip")


def _echoing(status: int) -> Any:
    async def echo(peer: Any) -> None:
        key = (await peer.request()).headers["authorization"]
        await peer.answer(status, f'{{"success": false, "message": "bad key {key}"}}'.encode())

    echo.__name__ = f"echo_{status}"
    return echo


async def _echoing_html(peer: Any) -> None:
    key = (await peer.request()).headers["authorization"]
    await peer.answer(502, f"<html>Bad gateway for {key}</html>".encode(), Content_Type="text/html")


async def _echoing_gzip(peer: Any) -> None:
    key = (await peer.request()).headers["authorization"]
    body = gzip.compress(f'{{"detail": "bad key {key}"}}'.encode())
    await peer.answer(401, body, Content_Encoding="gzip")


FAULTY = [
    _hang_up,
    _reset,
    stay_silent,
    _garbage,
    _cut,
    _bad_gzip,
    *(_echoing(status) for status in (200, 307, 400, 401, 402, 403, 404, 409, 422, 429, 500, 503)),
    _echoing_html,
    _echoing_gzip,
]


@pytest.mark.parametrize("call", ["ask", "send"])
@pytest.mark.parametrize("faulty", FAULTY, ids=lambda each: each.__name__.strip("_"))
async def test_no_failure_shows_the_key(call: str, faulty: Any, serve: Any, lanes: Any) -> None:
    """Message, repr, data, causes and captured locals omit the key, even if it is echoed."""
    async with serve(faulty) as server, lanes(api_key=KEY, request_timeout=0.3) as transport:
        error = await failure_of(transport, call, server.url)
    assert KEY not in seen_by_a_crash_reporter(error)


@pytest.mark.parametrize("call", ["ask", "send"])
async def test_a_refused_connection_does_not_show_the_key(
    call: str, unused_port: int, lanes: Any
) -> None:
    """The same for a refused connection."""
    async with lanes(api_key=KEY) as transport:
        error = await failure_of(transport, call, f"http://127.0.0.1:{unused_port}")
    assert isinstance(error, TransportError)
    assert KEY not in seen_by_a_crash_reporter(error)


async def _garbled_echo(peer: Any) -> None:
    key = (await peer.request()).headers["authorization"]
    await peer.say(f"NOT HTTP {key}\r\n\r\n".encode())


async def _header_echo(peer: Any) -> None:
    key = (await peer.request()).headers["authorization"]
    await peer.say(f"HTTP/1.1 200 OK\r\nX-\0Echo: {key}\r\n\r\n".encode())


@pytest.mark.parametrize("faulty", [_garbled_echo, _header_echo])
async def test_a_broken_answer_that_repeats_the_key_does_not_show_it(
    faulty: Any, serve: Any, lanes: Any
) -> None:
    """The message and the traceback omit the key, though aiohttp quotes the response."""
    async with serve(faulty) as server, lanes(api_key=KEY) as transport:
        error = await failure_of(transport, "ask", server.url)
    assert KEY not in str(error)
    assert KEY not in "".join(traceback.format_exception(error))


async def _cut_echo(peer: Any) -> None:
    key = (await peer.request()).headers["authorization"]
    await peer.answer(200, key.encode(), Content_Length="900")


async def test_an_answer_cut_short_that_repeats_the_key_does_not_show_it(
    serve: Any, lanes: Any
) -> None:
    """What was read before the break is in no captured local either."""
    async with serve(_cut_echo) as server, lanes(api_key=KEY) as transport:
        error = await failure_of(transport, "ask", server.url)
    assert KEY not in seen_by_a_crash_reporter(error)


async def test_a_redirect_that_repeats_the_key_does_not_show_it(serve: Any, lanes: Any) -> None:
    """Headers are redacted like bodies: the message of a redirect shows its target."""
    echo = Echo(302, b"", Location=f"https://login.example/?key={KEY}")
    async with serve(echo) as server, lanes(api_key=KEY) as transport:
        error = await failure_of(transport, "ask", server.url)
    assert "login.example" in str(error)
    assert KEY not in seen_by_a_crash_reporter(error)
