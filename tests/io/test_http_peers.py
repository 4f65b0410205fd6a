"""The peers of downloads, and which calls use a proxy."""

from __future__ import annotations

import logging
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from factories.calls import KEY, YES, Echo, failure_of, fetch

from musicgpt_async._io.http import Transport
from musicgpt_async._rules import hosts
from musicgpt_async.errors import DownloadError

pytestmark = pytest.mark.anyio

LARGE = bytes(1 << 20)


class _ToLoopback(AbstractResolver):
    """A caller's resolver: each name leads to this machine, as a rebinding name server's would."""

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - aiohttp's
    ) -> list[ResolveResult]:
        """Return 127.0.0.1."""
        found = {"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET}
        return [{**found, "proto": 0, "flags": socket.AI_NUMERICHOST}]  # type: ignore[list-item]

    async def close(self) -> None:
        """Close nothing."""


@pytest.mark.parametrize("body", [b"secret", LARGE])
async def test_the_peer_of_the_callers_own_session_is_judged(
    body: bytes, serve: Any, lanes: Any
) -> None:
    """A name in a private network is refused, even if the caller's session resolved it."""
    async with (
        serve(Echo(200, body)) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=_ToLoopback())) as http,
        lanes(http=http, is_allowed=hosts.is_public) as transport,
    ):
        url = f"http://files.example:{server.port}/latest/meta-data"
        with pytest.raises(DownloadError, match="private network"):
            async with transport.stream(url, {}):
                pytest.fail("a byte could have been taken")
        assert server.connections == 1


async def test_the_callers_own_session_may_reach_a_public_peer(serve: Any, lanes: Any) -> None:
    """What `is_allowed` allows is served, by name and by address."""
    async with (
        serve(Echo(200, LARGE)) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=_ToLoopback())) as http,
        lanes(http=http, is_allowed=hosts.is_loopback_address) as transport,
    ):
        for host in ("files.example", "127.0.0.1"):
            assert await fetch(transport, f"http://{host}:{server.port}/a") == (200, LARGE)


@pytest.mark.parametrize("by", ["argument", "environment"])
async def test_the_callers_own_proxy_may_be_in_the_private_network(
    by: str, serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a proxy the peer is the proxy: the caller chose it."""
    async with serve(Echo(200, LARGE)) as proxy:
        if by == "environment":
            monkeypatch.setenv("http_proxy", proxy.url)
            http = aiohttp.ClientSession(trust_env=True)
        else:
            http = aiohttp.ClientSession(proxy=proxy.url)
        async with http, lanes(http=http, is_allowed=hosts.is_public) as transport:
            assert (await fetch(transport, "http://files.invalid/a"))[0] == 200


@pytest.mark.parametrize("own", [False, True])
async def test_connections_to_file_hosts_are_not_kept(own: bool, serve: Any, lanes: Any) -> None:
    """Each file has its own connection, and the request says so."""
    echo = Echo(200, LARGE)
    async with (
        serve(echo) as server,
        aiohttp.ClientSession() as http,
        lanes(http=None if own else http) as transport,
    ):
        for _ in range(3):
            await fetch(transport, server.url)
    assert [number for number, _ in echo.requests] == [1, 2, 3]
    assert {request.headers["connection"] for _, request in echo.requests} == {"close"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_is_never_reached_through_a_proxy(
    host: str, serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of a development server does not leave the machine for a proxy, in clear."""
    proxy, echo = Echo(), Echo()
    async with serve(proxy) as server, serve(echo) as direct:
        monkeypatch.setenv("http_proxy", server.url)
        async with lanes(api_key=KEY) as transport:
            await transport.get(f"http://{host}:{direct.port}/byId", {})
    assert len(echo.requests) == 1
    assert not proxy.requests


async def test_no_proxy_may_name_a_port(
    serve: Any, lanes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``no_proxy=host:port`` takes out that port alone; a URL without one has its scheme's."""
    proxy = Echo(200, YES)
    async with serve(proxy) as server:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "api.invalid:8080,api.invalid:80")
        async with lanes() as transport:
            await failure_of(transport, "ask", "http://api.invalid:8080/direct")
            await failure_of(transport, "ask", "http://api.invalid/direct")
            await transport.get("http://api.invalid:8081/proxied", {})
    assert [request.path for _, request in proxy.requests] == ["http://api.invalid:8081/proxied"]


def test_a_proxy_of_an_unknown_kind_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A SOCKS proxy is not used, which is said once in a process, without its password."""
    monkeypatch.setenv("all_proxy", "socks5h://user:pass-7d2@127.0.0.1:1080")
    with caplog.at_level(logging.WARNING, "musicgpt_async"):
        for _ in range(3):
            Transport("key", request_timeout=1, downloads=1, is_allowed=lambda _: True)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2  # http and https
    assert all("socks5h" in record.getMessage() for record in caplog.records)
    assert "pass-7d2" not in caplog.text


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("64:ff9b::5db8:d822", True),  # 93.184.216.34
        ("64:ff9b::a00:1", False),  # 10.0.0.1
        ("64:ff9b::a9fe:a9fe", False),  # 169.254.169.254
        ("64:ff9b::7f00:1", False),  # 127.0.0.1
        ("64:ff9b:1::5db8:d822", False),  # a network's own translation
    ],
)
def test_an_address_behind_nat64_is_judged_by_the_ipv4_in_it(address: str, is_public: bool) -> None:
    """On networks with IPv6 alone every IPv4 host has such an address."""
    assert hosts.is_public(address) is is_public
