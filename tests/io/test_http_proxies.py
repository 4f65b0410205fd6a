"""Proxies of the environment, and its netrc."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories.calls import KEY, YES, Echo, failure_of, fetch, seen_by_a_crash_reporter, submit

from musicgpt_async._rules import hosts
from musicgpt_async._rules.retrying import SubmitOutcome, submit_outcome

pytestmark = pytest.mark.anyio


class Proxy:
    """A small real proxy: serves requests in absolute form, and refuses tunnels."""

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
            await transport.get("http://api.invalid/byId", {"a": "b"})
            await submit(transport, "http://api.invalid/Extraction")
            await fetch(transport, "http://files.invalid/stem.wav")
            await transport.get(f"{direct.url}/byId", {})
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
            error = await failure_of(transport, "send", "https://api.invalid/Extraction")
    (request,) = proxy.requests
    assert request.line == "CONNECT api.invalid:443 HTTP/1.1"
    assert KEY.encode() not in request.raw_head
    assert submit_outcome(error, delivered=False) is SubmitOutcome.NOT_DELIVERED
    assert KEY not in seen_by_a_crash_reporter(error)


async def test_a_proxys_password_is_in_no_message(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials in a proxy's URL are sent to the proxy only."""
    proxy = Proxy()
    async with serve(proxy) as server:
        monkeypatch.setenv("https_proxy", f"http://user:pass-7d2@127.0.0.1:{server.port}")
        async with lanes(api_key=KEY) as transport:
            error = await failure_of(transport, "ask", "https://api.invalid/byId")
    assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")
    assert "pass-7d2" not in str(error)


async def test_a_proxy_inside_the_network_serves_files(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy known by a name that leads to a private address is the user's own wish."""
    proxy = Proxy()
    async with serve(proxy) as server:
        monkeypatch.setenv("http_proxy", f"http://localhost:{server.port}")
        async with lanes(is_allowed=hosts.is_public) as transport:
            assert (await fetch(transport, "http://files.invalid/stem.wav"))[0] == 200


async def test_a_proxy_without_a_scheme_is_understood(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``http_proxy=host:port``, as many write it and curl takes it, is an http proxy."""
    async with serve(Proxy()) as server:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.port}")
        async with lanes() as transport:
            assert (await transport.get("http://api.invalid/byId", {})).status == 200


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
            await transport.get(server.url, {})
            await submit(transport, server.url)
            await fetch(transport, server.url)
    keys = [request.headers.get("authorization") for _, request in echo.requests]
    assert keys == [KEY, KEY, None]
