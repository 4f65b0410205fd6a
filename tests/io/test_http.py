from __future__ import annotations

import gzip
import socket
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from musicgpt_async._io import upload
from musicgpt_async._io.http import LONGEST_ANSWER, SecretKey, Transport
from musicgpt_async._io.upload import Body, track_of
from musicgpt_async._rules import hosts, protocol
from musicgpt_async._rules.protocol import Answer
from musicgpt_async._rules.retrying import Verdict, submit_verdict
from musicgpt_async.errors import (
    APIError,
    ConfigurationError,
    MusicGPTError,
    ProtocolError,
    ServerError,
    StalledError,
    TransportError,
)

pytestmark = pytest.mark.anyio

KEY = "key-3f9a7c51e0"
PATIENCE = 60
YES = b'{"success": true, "task_id": "t"}'


async def _nothing() -> None:
    """Hand over without a word."""


async def submit(transport: Transport, url: str, data: bytes = b"sound") -> Answer:
    """Send a small track."""
    with ThreadPoolExecutor(1) as executor:
        async with upload.opened(track_of(("a.wav", data)), executor) as content:
            body = Body(
                {"audio_url": ""},
                content,
                stall_timeout=30,
                hand_over=_nothing,
                progress=lambda _: None,
            )
            return await transport.send(url, body)


async def fetch(transport: Transport, url: str) -> tuple[int, bytes]:
    """Bring a file down whole."""
    async with transport.fetch(url, {}) as response:
        return response.status, await response.read()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own settings out of what is seen here."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Echo:
    """Answers each request of each connection with the same bytes, and remembers the requests."""

    def __init__(self, status: int = 200, body: bytes = YES, **headers: str) -> None:
        self.requests: list[tuple[int, Any]] = []
        self._answer = status, body, headers

    async def __call__(self, peer: Any) -> None:
        """Answer for as long as the client asks."""
        status, body, headers = self._answer
        while True:
            self.requests.append((peer.number, await peer.request()))
            await peer.answer(status, body, **headers)


# The key.


async def test_the_key_goes_on_api_calls_alone(serve: Any, lanes: Any) -> None:
    """Looks and submits carry the bare key; a file's host is told nothing of it."""
    echo = Echo()
    async with serve(echo) as server, lanes(api_key=KEY) as transport:
        await transport.ask(f"{server.url}/byId", {"task_id": "t"})
        await submit(transport, f"{server.url}/Extraction")
        await fetch(transport, f"{server.url}/stem.wav?sig=1")
    look, sent, file = (request for _, request in echo.requests)
    assert look.headers["authorization"] == sent.headers["authorization"] == KEY
    assert look.line == "GET /byId?task_id=t HTTP/1.1"
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
    transport = Transport(KEY, request_timeout=1, downloads=1, allows=lambda _: True)
    assert KEY not in repr(transport) + str(transport) + repr(vars(transport))


async def _hang_up(peer: Any) -> None:
    await peer.request()


async def _reset(peer: Any) -> None:
    await peer.reader.readexactly(100)
    peer.reset()


async def _silence(peer: Any) -> None:
    await peer.request()
    await anyio.sleep(PATIENCE)


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
    _silence,
    _garbage,
    _cut,
    _bad_gzip,
    *(_echoing(status) for status in (200, 307, 400, 401, 402, 403, 404, 409, 422, 429, 500, 503)),
    _echoing_html,
    _echoing_gzip,
]


async def _failure(transport: Transport, call: str, url: str) -> MusicGPTError:
    with pytest.raises(MusicGPTError) as caught:
        await _called(transport, call, url)
    return caught.value


async def _called(transport: Transport, call: str, url: str) -> None:
    match call:
        case "ask":
            answer = await transport.ask(url, {"task_id": "t"})
        case "send":
            answer = await submit(transport, url)
        case _:
            await fetch(transport, url)
            return
    protocol.read(answer, now=time.time(), what="The call")


def _seen_by_a_crash_reporter(error: BaseException) -> str:
    """Everything that a tool which records local variables would send home."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    return f"{error!s}{error!r}{vars(error)!r}" + "".join(report.format())


@pytest.mark.parametrize("call", ["ask", "send"])
@pytest.mark.parametrize("faulty", FAULTY, ids=lambda each: each.__name__.strip("_"))
async def test_no_failure_shows_the_key(call: str, faulty: Any, serve: Any, lanes: Any) -> None:
    """Neither message, repr, data, causes nor captured locals hold it, even where it is echoed."""
    async with serve(faulty) as server, lanes(api_key=KEY, request_timeout=0.3) as transport:
        error = await _failure(transport, call, server.url)
    assert KEY not in _seen_by_a_crash_reporter(error)


@pytest.mark.parametrize("call", ["ask", "send"])
async def test_a_refused_connection_does_not_show_the_key(
    call: str, unused_port: int, lanes: Any
) -> None:
    """The same where nobody listens."""
    async with lanes(api_key=KEY) as transport:
        error = await _failure(transport, call, f"http://127.0.0.1:{unused_port}")
    assert isinstance(error, TransportError)
    assert KEY not in _seen_by_a_crash_reporter(error)


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
    """The library's message and the traceback hold no key, though aiohttp quotes the answer."""
    async with serve(faulty) as server, lanes(api_key=KEY) as transport:
        error = await _failure(transport, "ask", server.url)
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
        error = await _failure(transport, "ask", server.url)
    assert KEY not in _seen_by_a_crash_reporter(error)


async def test_a_redirect_that_repeats_the_key_does_not_show_it(serve: Any, lanes: Any) -> None:
    """Headers are scrubbed like bodies: the message of a redirect shows where it leads."""
    echo = Echo(302, b"", Location=f"https://login.example/?key={KEY}")
    async with serve(echo) as server, lanes(api_key=KEY) as transport:
        error = await _failure(transport, "ask", server.url)
    assert "login.example" in str(error)
    assert KEY not in _seen_by_a_crash_reporter(error)


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        yield sock.getsockname()[1]


# Connections.


async def test_each_submit_has_a_fresh_connection_and_looks_share_one(
    serve: Any, lanes: Any
) -> None:
    """A POST never meets a connection that the server may have dropped meanwhile."""
    echo = Echo()
    async with serve(echo) as server, lanes() as transport:
        for _ in range(3):
            await transport.ask(server.url, {"a": "b"})
            await submit(transport, server.url)
    by_method = {"GET": [], "POST": []}  # type: dict[str, list[int]]
    for number, request in echo.requests:
        by_method[request.line.split(" ")[0]].append(number)
    assert len(set(by_method["GET"])) == 1
    assert len(set(by_method["POST"])) == 3
    assert not set(by_method["GET"]) & set(by_method["POST"])


async def test_a_server_that_drops_idle_connections_loses_no_call(serve: Any, lanes: Any) -> None:
    """Kept connections that went stale are no failure: looks go again, submits never use one."""
    requests = []

    async def answer_once(peer: Any) -> None:
        requests.append(await peer.request())
        await peer.answer(200, YES, Connection="keep-alive")

    async with serve(answer_once) as server, lanes() as transport:
        for _ in range(5):
            assert (await transport.ask(server.url, {"a": "b"})).status == 200
            assert (await submit(transport, server.url)).status == 200
    assert len(requests) == 10


async def test_downloads_do_not_starve_looks(serve: Any, lanes: Any) -> None:
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
                answer = await transport.ask(f"{server.url}/look", {"a": "b"})
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
    """Following one loses the body or posts it elsewhere, and answers 200: it is an error."""
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
        error = await _failure(transport, "send", f"{server.url}/Extraction")
        looked = await _failure(transport, "ask", f"{server.url}/byId")
    assert [request.line.split(" ")[0] for request in seen] == ["POST", "GET"]
    assert not other.requests
    assert isinstance(error, ProtocolError)
    assert isinstance(looked, ProtocolError)
    assert (error.status, place in str(error)) == (status, True)
    assert submit_verdict(error, delivered=True) is Verdict.REFUSED


# Answers.


async def test_a_proxys_page_becomes_an_error_with_its_status(serve: Any, lanes: Any) -> None:
    """An HTML 502 reads as a server's failure, with a piece of the page in the message."""
    page = b"<html>\r\n<body><h1>Bad\xff gateway</h1>" + b"x" * 9000
    async with serve(Echo(502, page, Content_Type="text/html")) as server, lanes() as transport:
        error = await _failure(transport, "ask", server.url)
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
        error = await _failure(transport, "send", server.url)
    assert isinstance(error, ProtocolError)
    assert submit_verdict(error, delivered=True) is Verdict.UNKNOWN


@pytest.mark.parametrize("call", ["ask", "send"])
@pytest.mark.parametrize("status", [200, 500])
async def test_an_endless_answer_is_cut(call: str, status: int, serve: Any, lanes: Any) -> None:
    """No more than a mebibyte is kept of any answer."""

    async def endless(peer: Any) -> None:
        await peer.request()
        await peer.say(f"HTTP/1.1 {status} Said\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        while True:
            await peer.say(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    async with serve(endless) as server, lanes() as transport:
        with anyio.fail_after(PATIENCE):
            if call == "ask":
                answer = await transport.ask(server.url, {})
            else:
                answer = await submit(transport, server.url)
    assert (answer.status, len(answer.body)) == (status, LONGEST_ANSWER)


async def test_headers_have_one_spelling(serve: Any, lanes: Any) -> None:
    """Header names are compared in lower case, however they came."""
    async with serve(Echo(429, b"", RETRY_AFTER="7")) as server, lanes() as transport:
        answer = await transport.ask(server.url, {})
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("call", ["ask", "send", "fetch"])
async def test_silence_ends_in_a_stalled_error(call: str, serve: Any, lanes: Any) -> None:
    """A server that accepts and says nothing is given up after the request timeout."""
    async with serve(_silence) as server, lanes(request_timeout=0.3) as transport:
        with anyio.fail_after(PATIENCE), pytest.raises(StalledError) as caught:
            await _called(transport, call, server.url)
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
            await transport.ask(server.url, {})
            await submit(transport, server.url)
            await fetch(transport, server.url)
        assert not http.closed
    heads = [request.headers for _, request in echo.requests]
    assert [head["x-own"] for head in heads] == ["yes"] * 3
    assert [head.get("authorization") for head in heads] == [KEY, KEY, None]


async def test_a_closed_session_is_said_to_be_closed() -> None:
    """A session that cannot be used any more is refused at once."""
    http = aiohttp.ClientSession()
    await http.close()
    transport = Transport(KEY, http=http, request_timeout=1, downloads=1, allows=lambda _: True)
    with pytest.raises(ConfigurationError, match="closed"):
        transport.open()


@pytest.mark.parametrize("status", [402, 422, 429, 500])
async def test_a_session_that_raises_for_status_loses_no_answer(
    status: int, serve: Any, lanes: Any
) -> None:
    """A refusal stays a refusal: it must not look like an answer that was lost."""
    echo = Echo(status, b'{"detail": "no"}')
    async with (
        serve(echo) as server,
        aiohttp.ClientSession(raise_for_status=True) as http,
        lanes(http=http) as transport,
    ):
        error = await _failure(transport, "send", server.url)
        async with transport.fetch(server.url, {}) as response:
            assert response.status == status
    assert isinstance(error, APIError)
    assert (error.status, error.vendor_message) == (status, "no")


# Proxies.


class Proxy:
    """A small real proxy: answers what comes in absolute form, and refuses tunnels."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[Any] = []
        self._status = status

    async def __call__(self, peer: Any) -> None:
        """Take one request."""
        request = await peer.request()
        self.requests.append(request)
        if request.line.startswith("CONNECT"):
            await peer.answer(403, b"no tunnels")
        else:
            await peer.answer(self._status, YES)


async def test_proxies_of_the_environment_are_used(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """http_proxy takes API calls and files alike, and no_proxy takes hosts out."""
    proxy, echo = Proxy(), Echo()
    async with serve(proxy) as server, serve(echo) as direct:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with lanes(api_key=KEY) as transport:
            await transport.ask("http://api.invalid/byId", {"a": "b"})
            await submit(transport, "http://api.invalid/Extraction")
            await fetch(transport, "http://files.invalid/stem.wav")
            await transport.ask(f"{direct.url}/byId", {})
    assert [request.line for request in proxy.requests] == [
        "GET http://api.invalid/byId?a=b HTTP/1.1",
        "POST http://api.invalid/Extraction HTTP/1.1",
        "GET http://files.invalid/stem.wav HTTP/1.1",
    ]
    assert [request.line for _, request in echo.requests] == ["GET /byId HTTP/1.1"]
    assert KEY.encode() not in proxy.requests[2].raw_head


async def test_a_tunnel_is_asked_for_without_the_key(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Https goes through CONNECT, whose head never holds the key; a refusal delivers nothing."""
    proxy = Proxy()
    async with serve(proxy) as server:
        monkeypatch.setenv("https_proxy", server.url)
        async with lanes(api_key=KEY) as transport:
            error = await _failure(transport, "send", "https://api.invalid/Extraction")
    (request,) = proxy.requests
    assert request.line == "CONNECT api.invalid:443 HTTP/1.1"
    assert KEY.encode() not in request.raw_head
    assert submit_verdict(error, delivered=False) is Verdict.NOT_DELIVERED
    assert KEY not in _seen_by_a_crash_reporter(error)


async def test_a_proxys_password_is_in_no_message(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials in a proxy's URL reach the proxy and nobody else."""
    proxy = Proxy()
    async with serve(proxy) as server:
        monkeypatch.setenv("https_proxy", f"http://user:pass-7d2@127.0.0.1:{server.port}")
        async with lanes(api_key=KEY) as transport:
            error = await _failure(transport, "ask", "https://api.invalid/byId")
    assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")
    assert "pass-7d2" not in str(error)


async def test_a_proxy_inside_the_network_serves_files(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy known by a name that leads to a private address is the user's own wish."""
    proxy = Proxy()
    async with serve(proxy) as server:
        monkeypatch.setenv("http_proxy", f"http://localhost:{server.port}")
        async with lanes(allows=hosts.is_public) as transport:
            assert (await fetch(transport, "http://files.invalid/stem.wav"))[0] == 200


async def test_a_proxy_without_a_scheme_is_understood(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``http_proxy=host:port``, as many write it and curl takes it, is an http proxy."""
    async with serve(Proxy()) as server:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.port}")
        async with lanes() as transport:
            assert (await transport.ask("http://api.invalid/byId", {})).status == 200


@pytest.mark.parametrize("proxied", [False, True])
async def test_a_netrc_does_no_harm(
    proxied: bool, serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An entry for the host neither breaks a call nor is sent in the key's place."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1\n login me\n password secret\ndefault login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    echo = Echo()
    async with serve(echo) as server:
        if proxied:
            monkeypatch.setenv("http_proxy", server.url)
        async with lanes(api_key=KEY) as transport:
            await transport.ask(server.url, {})
            await submit(transport, server.url)
            await fetch(transport, server.url)
    keys = [request.headers.get("authorization") for _, request in echo.requests]
    assert keys == [KEY, KEY, None]


# Where links lead.


async def test_a_name_that_leads_to_a_private_address_is_refused(serve: Any, lanes: Any) -> None:
    """The addresses that a lookup gave are judged, not only the name."""
    echo = Echo()
    async with serve(echo) as server:
        url = f"http://localhost:{server.port}/stem.wav"
        async with lanes(allows=hosts.is_public) as transport:
            with pytest.raises(TransportError, match="private network"):
                await fetch(transport, url)
        assert server.connections == 0
        async with lanes(allows=lambda address: address == "127.0.0.1") as transport:
            assert (await fetch(transport, url))[0] == 200


async def test_the_guard_is_for_links_not_for_the_api(serve: Any, lanes: Any) -> None:
    """The API's own host is the user's choice, wherever it leads."""
    async with serve(Echo()) as server, lanes(allows=hosts.is_public) as transport:
        answer = await transport.ask(f"http://localhost:{server.port}/byId", {})
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
