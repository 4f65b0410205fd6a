"""The HTTP transport: sends requests, returns (status, headers, body).

There are three connection pools, so that no kind of call delays another. Polls share a few
keep-alive connections. Each submit opens a new connection: if the server had closed a kept one, the
failed POST would look like a lost response. Downloads have a pool that never sends the API key.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import re
import socket
import urllib.request
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from musicgpt_async._rules import hosts, retrying
from musicgpt_async._rules.protocol import Response
from musicgpt_async._version import __version__
from musicgpt_async.errors import (
    ConfigurationError,
    DownloadError,
    MusicGPTError,
    TransportError,
    TransportTimeoutError,
)

_log = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 1 << 20
# Read buffer in bytes for downloads: with aiohttp's 64 KiB, the socket is paused during each write.
READ_BUFFER = 1 << 18
# Characters allowed in a URL (RFC 3986), "%" included: links must stay encoded as they were signed.
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"
# Network errors of every layer; a host name that cannot be encoded for DNS is a UnicodeError.
NETWORK_ERRORS = (aiohttp.ClientError, OSError, UnicodeError)


class SecretKey(str):
    """The API key: a string whose repr is masked."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Transport:
    """The connection pools for polls, submits and downloads.

    Args:
        api_key: Sent with API calls only.
        http: The caller's session, used for all pools and never closed. Submits use a copy of it
            that does not keep connections and is not counted by its connection limit.
        request_timeout: Seconds without a byte after which a call fails.
        downloads: Maximum number of connections to file hosts.
        is_allowed: Returns whether the host of a link may resolve to an address.
    """

    def __init__(
        self,
        api_key: str,
        *,
        http: aiohttp.ClientSession | None = None,
        request_timeout: float,
        downloads: int,
        is_allowed: Callable[[str], bool],
    ) -> None:
        self.request_timeout: float = request_timeout
        self._key = SecretKey(api_key)
        self._owns_sessions = http is None
        # No `total` timeout: it would abort long uploads; the session's own deadlines apply.
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=request_timeout, sock_read=request_timeout
        )
        # No `sock_read` timeout: aiohttp creates a timer for each read. See `response_body`.
        self._file_timeout = aiohttp.ClientTimeout(total=None, sock_connect=request_timeout)
        self._proxies = _read_proxies() if self._owns_sessions else {}
        # Own semaphore: waiting for a free connection must not count as a read timeout.
        self._files = asyncio.Semaphore(downloads)
        self._is_allowed = is_allowed
        self._pools = [] if http is None else [http]

    def open(self) -> None:
        """Create the pools in the running event loop."""
        if not self._owns_sessions:
            http = self._pools[0]
            if http.closed or http.connector is None:
                raise ConfigurationError("The session given as http= is closed already.")
            self._pools = [http, _copy_session(http, _FreshConnector(http.connector)), http]
            return
        proxy_hosts = {each["proxy"].host for each in self._proxies.values()}
        resolver = _FilteringResolver(self._is_allowed, trusted=proxy_hosts)
        self._pools = [
            self._make_pool(aiohttp.TCPConnector(limit=64, ttl_dns_cache=300)),
            self._make_pool(aiohttp.TCPConnector(limit=0, force_close=True)),
            # force_close: on a kept connection aiohttp would take a surplus response of the last
            # request for the response to the next one.
            self._make_pool(aiohttp.TCPConnector(limit=0, force_close=True, resolver=resolver)),
        ]

    async def close(self) -> None:
        """Close the pools, except for the caller's session."""
        for pool in self._pools if self._owns_sessions else self._pools[1:2]:
            await pool.close()

    async def get(self, url: str, query: Mapping[str, str]) -> Response:
        """Send a GET request to the API.

        Raises:
            TransportError: No complete response arrived in time.
        """
        with map_exceptions(url, self._key):
            async with asyncio.timeout(retrying.response_timeout(self.request_timeout)):
                return await self._request(self._pools[0], "GET", url, params=query)

    async def post(self, url: str, body: aiohttp.Payload) -> Response:
        """Send a POST request to the API on a new connection, without following redirects.

        Raises:
            TransportError: No complete response arrived; `body.delivered` says how far it got.
        """
        _check_open(self._pools[0])  # the copy for submits stays open if the caller's is closed
        return await self._request(self._pools[1], "POST", url, data=body)

    @asynccontextmanager
    async def stream(
        self, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Request a file without the API key, and without decompressing it.

        The request timeout covers the response's head only; the reader of the body has its own.

        Raises:
            TransportError: The connection failed.
            DownloadError: The host is in a private network; nothing was read.
        """
        with map_exceptions(url):
            async with self._files:
                async with asyncio.timeout(self._timeout.sock_read):
                    response = await _check_open(self._pools[-1]).get(
                        _parse_url(url),
                        headers={"Accept-Encoding": "identity", "Connection": "close", **headers},
                        allow_redirects=False,
                        raise_for_status=False,
                        auto_decompress=False,
                        read_bufsize=READ_BUFFER,
                        timeout=self._file_timeout,
                        **self._proxy(url),
                    )
                async with response:
                    self._check_peer(response)
                    yield response

    def _check_peer(self, response: aiohttp.ClientResponse) -> None:
        """Check the address of a file host, and do not keep the connection to it.

        This is for a caller's ``http=``; the resolver of our own pool has filtered addresses.
        """
        connection, url = response.connection, response.url
        if connection is not None and connection.protocol is not None:
            connection.protocol.force_close()
        if self._is_proxied(url):
            return  # the peer is the proxy
        transport = connection.transport if connection is not None else None
        peer = transport.get_extra_info("peername") if transport is not None else None
        if peer is not None:
            is_allowed = self._is_allowed(peer[0].partition("%")[0])
        else:  # a short body arrived with the head, so aiohttp has released the connection
            is_allowed = (
                self._owns_sessions or hosts.is_address(url.host or "") or response.status >= 300
            )
        if not is_allowed:
            raise DownloadError(f"{url.host} leads into a private network; it was not followed.")

    def _is_proxied(self, url: URL) -> bool:
        if self._owns_sessions:
            return bool(self._proxy(str(url)))
        http = self._pools[0]
        if getattr(http, "_default_proxy", None) is not None:  # ClientSession(proxy=…): no getter
            return True
        return http.trust_env and bool(_select_proxy(url, _read_proxies()))

    async def _request(
        self, pool: aiohttp.ClientSession, method: str, url: str, **options: Any
    ) -> Response:
        with map_exceptions(url, self._key):
            async with _check_open(pool).request(
                method,
                url,
                headers={"Authorization": self._key},
                allow_redirects=False,
                raise_for_status=False,
                timeout=self._timeout,
                **self._proxy(url),
                **options,
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                body = await _read_body(response)
                return Response(response.status, headers, body, url=url, secret=self._key)

    def _proxy(self, url: str) -> dict[str, Any]:
        # Not trust_env=True: it also reads ~/.netrc, which conflicts with an Authorization header.
        return _select_proxy(URL(url), self._proxies) if self._proxies else {}

    @staticmethod
    def _make_pool(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"musicgpt-async/{__version__}"},
            raise_for_status=False,
        )


def _read_proxies() -> dict[str, dict[str, Any]]:
    """Return the proxies of the environment, as request arguments by scheme."""
    given = urllib.request.getproxies()
    resolved = {}
    for scheme in ("http", "https"):
        url = given.get(scheme) or given.get("all")
        if url is None:
            continue
        try:
            proxy = URL(url if "://" in url else f"http://{url}")
        except ValueError as error:
            raise ConfigurationError(
                f"The proxy for {scheme} is not a URL; check {scheme}_proxy."
            ) from error
        if proxy.scheme in ("http", "https"):
            resolved[scheme] = {"proxy": proxy}
        else:
            _warn_of_unknown_proxy(scheme, proxy.scheme)
    return resolved


@functools.cache
def _warn_of_unknown_proxy(scheme: str, kind: str) -> None:
    """Log that a proxy is not used; cached, so that each is logged once per process."""
    _log.warning(
        "The %s proxy of the environment has the scheme %s, which aiohttp does not support; it is "
        "not used. Set an http:// proxy, or pass a session with a suitable connector as http=.",
        scheme,
        kind,
    )


def _select_proxy(url: URL, proxies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the request arguments that select a URL's proxy, if it has one."""
    proxy = proxies.get(url.scheme)
    if proxy is None or hosts.is_loopback(str(url)):  # the key would leave the machine unencrypted
        return {}
    # Include the port, because entries of no_proxy may have one.
    return {} if urllib.request.proxy_bypass(f"{url.host}:{url.port}") else proxy


class map_exceptions:  # noqa: N801 - used as a function: "with map_exceptions(url)"
    """Convert network errors to `TransportError`."""

    __slots__ = ("_key", "_url")

    def __init__(self, url: str, key: str = "") -> None:
        self._url = url
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, MusicGPTError) or not isinstance(error, NETWORK_ERRORS):
            return
        host = URL(self._url).host
        if isinstance(error, TimeoutError):
            raise TransportTimeoutError(
                f"{host} did not respond in time; try again later."
            ) from error
        # aiohttp quotes a malformed response, which may echo the key.
        shows_key = bool(self._key) and self._key in str(error)
        reason = "the response is malformed" if shows_key else _reason(error)
        raise TransportError(
            f"The connection to {host} failed ({reason}); check the network."
        ) from (None if shows_key else error)


class _FreshConnector(aiohttp.BaseConnector):
    """A connector that opens each connection with another connector, and never reuses one.

    The caller's connector has the right proxy, certificates and resolver, but aiohttp offers no way
    to request a new connection from it: with the header ``Connection: close`` a request may still
    start on a kept connection, and only ends it afterwards.
    """

    def __init__(self, connector: aiohttp.BaseConnector) -> None:
        super().__init__(limit=0, force_close=True)
        self._connector = connector
        self.allowed_protocol_schema_set = connector.allowed_protocol_schema_set

    async def _create_connection(self, *request: Any) -> Any:
        return await self._connector._create_connection(*request)  # noqa: SLF001 - no public way


def _copy_session(
    http: aiohttp.ClientSession, connector: aiohttp.BaseConnector
) -> aiohttp.ClientSession:
    """Return a session with the headers, cookies and proxy of another one and a new connector.

    Closing the copy closes the new connector and leaves the other session open.
    """
    copied = copy.copy(http)
    copied._connector, copied._connector_owner = connector, True  # noqa: SLF001 - as above
    return copied


class _FilteringResolver(AbstractResolver):
    """A resolver that drops the addresses to which a link must not lead."""

    def __init__(
        self, is_allowed: Callable[[str], bool], *, trusted: Collection[str | None]
    ) -> None:
        self._resolver = aiohttp.DefaultResolver()
        self._is_allowed = is_allowed
        self._trusted = trusted

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        resolved = await self._resolver.resolve(host, port, family)
        trusted = host in self._trusted  # proxies that the user configured
        allowed = [each for each in resolved if trusted or self._is_allowed(each["host"])]
        if not allowed:
            raise OSError(None, f"{host} leads into a private network; it was not followed")
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


def _check_open(pool: aiohttp.ClientSession) -> aiohttp.ClientSession:
    if pool.closed:
        raise TransportError(
            "The session given as http= was closed; close the MusicGPTSession first."
        )
    return pool


def _parse_url(url: str) -> URL:
    try:
        return URL(quote(url, safe=_URL_CHARACTERS), encoded=True)
    except ValueError as error:
        raise TransportError(f"A link is not a valid URL ({error}): {url[:200]!r}.") from error


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body, truncated to ``MAX_RESPONSE_BYTES``, which no response of the API reaches.

    `readany` returns what has arrived, so a server that never ends its response costs at most this
    much memory; `read` would collect everything first.
    """
    body = b""
    try:
        while len(body) < MAX_RESPONSE_BYTES and (chunk := await response.content.readany()):
            body = body + chunk if body else chunk
            if response.content.at_eof():
                break
    except BaseException:
        body = chunk = b""  # it may echo the key, and crash reporters keep a frame's variables
        raise
    return body[:MAX_RESPONSE_BYTES]


def _reason(error: BaseException) -> str:
    return " ".join(re.sub(r"//[^/@\s]*@", "//", str(error)).split())[:200] or type(error).__name__
