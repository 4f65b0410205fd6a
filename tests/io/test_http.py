from __future__ import annotations

import gzip
from typing import Any

import aiohttp
import anyio
import pytest
from factories.calls import (
    KEY,
    PATIENCE,
    YES,
    Echo,
    call_by_name,
    failure_of,
    fetch,
    stay_silent,
    submit,
)

from musicgpt_async._io.http import MAX_RESPONSE_BYTES, Transport
from musicgpt_async._rules import hosts
from musicgpt_async._rules.retrying import SubmitOutcome, submit_outcome
from musicgpt_async.errors import (
    APIError,
    ConfigurationError,
    ProtocolError,
    ServerError,
    TransportError,
    TransportTimeoutError,
)

pytestmark = pytest.mark.anyio


# Connections.


async def test_each_submit_has_a_new_connection_and_polls_share_one(serve: Any, lanes: Any) -> None:
    """A POST never meets a connection that the server may have dropped meanwhile."""
    echo = Echo()
    async with serve(echo) as server, lanes() as transport:
        for _ in range(3):
            await transport.get(server.url, {"a": "b"})
            await submit(transport, server.url)
    by_method = {"GET": [], "POST": []}  # type: dict[str, list[int]]
    for number, request in echo.requests:
        by_method[request.line.split(" ")[0]].append(number)
    assert len(set(by_method["GET"])) == 1
    assert len(set(by_method["POST"])) == 3
    assert not set(by_method["GET"]) & set(by_method["POST"])


async def test_a_server_that_drops_idle_connections_loses_no_call(serve: Any, lanes: Any) -> None:
    """A stale kept connection is not a failure: polls are retried, submits never use one."""
    requests = []

    async def answer_once(peer: Any) -> None:
        requests.append(await peer.request())
        await peer.answer(200, YES, Connection="keep-alive")

    async with serve(answer_once) as server, lanes() as transport:
        for _ in range(5):
            assert (await transport.get(server.url, {"a": "b"})).status == 200
            assert (await submit(transport, server.url)).status == 200
    assert len(requests) == 10


async def test_downloads_do_not_starve_polls(serve: Any, lanes: Any) -> None:
    """Files have a pool of their own, of the size that was asked for."""
    release = anyio.Event()

    async def hold(peer: Any) -> None:
        request = await peer.request()
        if request.path != "/look?a=b":
            await release.wait()
        await peer.answer(200, YES)

    async with serve(hold) as server, lanes(downloads=3) as transport:
        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(fetch, transport, f"{server.url}/{number}")
            with anyio.fail_after(PATIENCE):
                while server.open < 3:
                    await anyio.sleep(0.005)
                answer = await transport.get(f"{server.url}/look", {"a": "b"})
            assert answer.status == 200
            assert server.most_open <= 4
            release.set()
        assert server.most_open <= 4


# Redirects.


@pytest.mark.parametrize("where", ["same host", "other host"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_of_a_submit_is_followed(
    status: int, where: str, serve: Any, lanes: Any
) -> None:
    """A redirect would lose the body or post it elsewhere, so it is an error."""
    other = Echo()

    async def redirect(peer: Any) -> None:
        request = await peer.request()
        if request.path == "/there":
            await peer.answer(200, YES)
        seen.append(request)
        await peer.answer(status, b"", Location=place)

    seen: list[Any] = []
    async with serve(other) as elsewhere, serve(redirect) as server, lanes() as transport:
        place = f"{server.url if where == 'same host' else elsewhere.url}/there"
        error = await failure_of(transport, "send", f"{server.url}/Extraction")
        looked = await failure_of(transport, "ask", f"{server.url}/byId")
    assert [request.line.split(" ")[0] for request in seen] == ["POST", "GET"]
    assert not other.requests
    assert isinstance(error, ProtocolError)
    assert isinstance(looked, ProtocolError)
    assert (error.status, place in str(error)) == (status, True)
    assert submit_outcome(error, delivered=True) is SubmitOutcome.REFUSED


# Responses.


async def test_a_proxys_page_becomes_an_error_with_its_status(serve: Any, lanes: Any) -> None:
    """An HTML 502 reads as a server's failure, with a piece of the page in the message."""
    page = b"<html>\r\n<body><h1>Bad\xff gateway</h1>" + b"x" * 9000
    async with serve(Echo(502, page, Content_Type="text/html")) as server, lanes() as transport:
        error = await failure_of(transport, "ask", server.url)
    assert isinstance(error, ServerError)
    assert "<h1>Bad\ufffd gateway</h1>" in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[1]", b'"x"', b"null", b"\xff\xfe", b"{" * 5000]
)
async def test_a_yes_that_cannot_be_read_is_a_protocol_error(
    body: bytes, serve: Any, lanes: Any
) -> None:
    """Nothing that a 200 can hold becomes anything but the library's own error."""
    async with serve(Echo(200, body, Content_Type="text/plain")) as server, lanes() as transport:
        error = await failure_of(transport, "send", server.url)
    assert isinstance(error, ProtocolError)
    assert submit_outcome(error, delivered=True) is SubmitOutcome.UNKNOWN


@pytest.mark.parametrize("call", ["ask", "send"])
@pytest.mark.parametrize("status", [200, 500])
async def test_an_endless_answer_is_cut(call: str, status: int, serve: Any, lanes: Any) -> None:
    """No more than a mebibyte of any response is kept."""

    async def endless(peer: Any) -> None:
        await peer.request()
        await peer.say(f"HTTP/1.1 {status} Said\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        while True:
            await peer.say(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    async with serve(endless) as server, lanes() as transport:
        with anyio.fail_after(PATIENCE):
            if call == "ask":
                answer = await transport.get(server.url, {})
            else:
                answer = await submit(transport, server.url)
    assert (answer.status, len(answer.body)) == (status, MAX_RESPONSE_BYTES)


async def test_headers_have_one_spelling(serve: Any, lanes: Any) -> None:
    """Header names are compared in lower case, however they came."""
    async with serve(Echo(429, b"", RETRY_AFTER="7")) as server, lanes() as transport:
        answer = await transport.get(server.url, {})
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("call", ["ask", "send", "fetch"])
async def test_silence_ends_in_a_stalled_error(call: str, serve: Any, lanes: Any) -> None:
    """A server that accepts and stays silent fails the call after the request timeout."""
    async with serve(stay_silent) as server, lanes(request_timeout=0.3) as transport:
        with anyio.fail_after(PATIENCE), pytest.raises(TransportTimeoutError) as caught:
            await call_by_name(transport, call, server.url)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, ConnectionError)


# The caller's own session.


async def test_the_callers_session_is_used_and_left_open(serve: Any, lanes: Any) -> None:
    """A session given as ``http=`` does all the work and is never closed."""
    echo = Echo()
    async with (
        serve(echo) as server,
        aiohttp.ClientSession(headers={"X-Own": "yes"}) as http,
    ):
        async with lanes(http=http, api_key=KEY) as transport:
            await transport.get(server.url, {})
            await submit(transport, server.url)
            await fetch(transport, server.url)
        assert not http.closed
    heads = [request.headers for _, request in echo.requests]
    assert [head["x-own"] for head in heads] == ["yes"] * 3
    assert [head.get("authorization") for head in heads] == [KEY, KEY, None]


async def test_a_submit_never_uses_a_kept_connection_of_the_callers_session(
    serve: Any, lanes: Any
) -> None:
    """Polls leave a kept connection in the caller's pool; each POST uses a new one."""
    echo = Echo()
    async with (
        serve(echo) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http,
        lanes(http=http) as transport,
    ):
        for _ in range(3):
            await transport.get(server.url, {})
            await submit(transport, server.url)
    numbers = [(request.line.split(" ")[0], number) for number, request in echo.requests]
    assert numbers == [("GET", 1), ("POST", 2), ("GET", 1), ("POST", 3), ("GET", 1), ("POST", 4)]


async def test_a_submit_keeps_the_settings_of_the_callers_session(serve: Any, lanes: Any) -> None:
    """Headers, cookies, resolver and proxy of ``http=`` are those of a submit, too."""
    echo = Echo()
    jar = aiohttp.CookieJar(unsafe=True)
    jar.update_cookies({"own": "cookie"})
    async with (
        serve(echo) as server,
        aiohttp.ClientSession(proxy=server.url, cookie_jar=jar, headers={"X-Own": "yes"}) as http,
        lanes(http=http) as transport,
    ):
        await submit(transport, "http://api.invalid/Extraction")
        assert http.cookie_jar is jar
    ((_, request),) = echo.requests
    assert request.path == "http://api.invalid/Extraction"
    assert (request.headers["x-own"], request.headers["cookie"]) == ("yes", "own=cookie")


async def test_a_submit_after_the_callers_session_was_closed_is_refused(
    serve: Any, lanes: Any
) -> None:
    """If the caller closes ``http=`` under the session, nothing is sent any more."""
    async with serve(Echo()) as server:
        async with aiohttp.ClientSession() as http:
            transport = Transport(
                KEY, http=http, request_timeout=1, downloads=1, is_allowed=lambda _: True
            )
            transport.open()
        with pytest.raises(TransportError, match="http= was closed"):
            await submit(transport, server.url)
        await transport.close()
        assert server.connections == 0


async def test_a_closed_session_is_said_to_be_closed() -> None:
    """A session that cannot be used any more is refused at once."""
    http = aiohttp.ClientSession()
    await http.close()
    transport = Transport(KEY, http=http, request_timeout=1, downloads=1, is_allowed=lambda _: True)
    with pytest.raises(ConfigurationError, match="closed"):
        transport.open()


@pytest.mark.parametrize("status", [402, 422, 429, 500])
async def test_a_session_that_raises_for_status_loses_no_answer(
    status: int, serve: Any, lanes: Any
) -> None:
    """A refusal stays a refusal: it must not look like a lost response."""
    echo = Echo(status, b'{"detail": "no"}')
    async with (
        serve(echo) as server,
        aiohttp.ClientSession(raise_for_status=True) as http,
        lanes(http=http) as transport,
    ):
        error = await failure_of(transport, "send", server.url)
        async with transport.stream(server.url, {}) as response:
            assert response.status == status
    assert isinstance(error, APIError)
    assert (error.status, error.vendor_message) == (status, "no")


# Targets of links.


async def test_a_name_that_leads_to_a_private_address_is_refused(serve: Any, lanes: Any) -> None:
    """The addresses that a lookup gave are judged, not only the name."""
    echo = Echo()
    async with serve(echo) as server:
        url = f"http://localhost:{server.port}/stem.wav"
        async with lanes(is_allowed=hosts.is_public) as transport:
            with pytest.raises(TransportError, match="private network"):
                await fetch(transport, url)
        assert server.connections == 0
        async with lanes(is_allowed=lambda address: address == "127.0.0.1") as transport:
            assert (await fetch(transport, url))[0] == 200


async def test_the_guard_is_for_links_not_for_the_api(serve: Any, lanes: Any) -> None:
    """The API's own host is the user's choice, wherever it leads."""
    async with serve(Echo()) as server, lanes(is_allowed=hosts.is_public) as transport:
        answer = await transport.get(f"http://localhost:{server.port}/byId", {})
    assert answer.status == 200


async def test_a_file_is_given_as_it_is_on_the_wire(serve: Any, lanes: Any) -> None:
    """Nothing is unpacked on the way, so that sizes and ranges stay true; nor is a link."""
    packed = gzip.compress(b"sound")
    echo = Echo(200, packed, Content_Encoding="gzip")
    async with serve(echo) as server, lanes() as transport:
        _, body = await fetch(transport, f"{server.url}/a%2Fb%7E?sig=a/b+c%2B&x=%20#part")
    assert body == packed
    assert echo.requests[0][1].path == "/a%2Fb%7E?sig=a/b+c%2B&x=%20"


@pytest.mark.parametrize("path", ["/My Song - vocals.wav", "/прив.wav", '/a"b<c>.wav', "/a?x=1 2"])
async def test_a_link_that_is_not_encoded_is_sent_encoded(
    path: str, serve: Any, lanes: Any
) -> None:
    """A blank or a letter beyond ASCII in a link never breaks the request line."""
    echo = Echo()
    async with serve(echo) as server, lanes() as transport:
        await fetch(transport, server.url + path)
    line = echo.requests[0][1].line
    assert len(line.split(" ")) == 3
    assert line.isascii()
    assert not set('"<>') & set(line)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
async def test_a_host_that_no_lookup_takes_is_a_transport_error(host: str, lanes: Any) -> None:
    """A garbled host in a link is a failed connection, not a crash."""
    async with lanes() as transport:
        with pytest.raises(TransportError):
            await fetch(transport, f"https://{host}/stem.wav")
