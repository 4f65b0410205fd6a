"""The HTTP transport: requests out, (status, headers, body) in.

Three lanes, so that no kind of work starves another: looks share a small pool of kept connections;
each submit has a fresh connection, since a POST on one that the server had already dropped looks
like an answer that was lost; files have a pool of their own, which never sees the key.
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
# Bytes of a file that may wait while the last ones are written: 64 KiB stop the socket each time.
READ_BUFFER = 1 << 18
# Characters allowed in a URL (RFC 3986), "%" included: an encoded link stays as it was signed.
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"
# The network's exceptions, whichever layer they come from; a host that no lookup takes is a
# UnicodeError.
NETWORK_ERRORS = (aiohttp.ClientError, OSError, UnicodeError)


class SecretKey(str):
    """The key: sent as it is, shown as stars in a repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Transport:
    """The three lanes to the vendor.

    Args:
        api_key: Sent with each call of the API, and with nothing else.
        http: The caller's own session, used for every lane and never closed. Submits go through a
            copy of it that keeps no connections; its limit of connections does not count them.
        request_timeout: Seconds without a byte before a call is given up.
        downloads: Connections to file hosts, at most.
        is_allowed: Decides whether a name that a link bears may lead to an address.
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
        # `total` would cut long uploads: deadlines of our own bound the wait as a whole.
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=request_timeout, sock_read=request_timeout
        )
        # aiohttp's own timeout for reads makes a timer for each of them.
        self._file_timeout = aiohttp.ClientTimeout(total=None, sock_connect=request_timeout)
        self._proxies = _proxies() if self._owns_sessions else {}
        # Own semaphore: waiting for a free connection must not count as a read timeout.
        self._files = asyncio.Semaphore(downloads)
        self._is_allowed = is_allowed
        self._pools = [] if http is None else [http]

    def open(self) -> None:
        """Make the lanes, in the loop that runs now."""
        if not self._owns_sessions:
            http = self._pools[0]
            if http.closed or http.connector is None:
                raise ConfigurationError("The session given as http= is closed already.")
            self._pools = [http, _copy_with(http, _FreshConnector(http.connector)), http]
            return
        proxy_hosts = {each["proxy"].host for each in self._proxies.values()}
        resolver = _FilteringResolver(self._is_allowed, trusted=proxy_hosts)
        self._pools = [
            self._make_pool(aiohttp.TCPConnector(limit=64, ttl_dns_cache=300)),
            self._make_pool(aiohttp.TCPConnector(limit=0, force_close=True)),
            # Never kept: aiohttp hands a second, unasked response to the next request.
            self._make_pool(aiohttp.TCPConnector(limit=0, force_close=True, resolver=resolver)),
        ]

    async def close(self) -> None:
        """Close the lanes that are our own."""
        for pool in self._pools if self._owns_sessions else self._pools[1:2]:
            await pool.close()

    async def get(self, url: str, query: Mapping[str, str]) -> Response:
        """GET a call of the API.

        Raises:
            TransportError: No complete response came, or not in time.
        """
        with map_exceptions(url, self._key):
            async with asyncio.timeout(retrying.response_timeout(self.request_timeout)):
                return await self._request(self._pools[0], "GET", url, params=query)

    async def post(self, url: str, body: aiohttp.Payload) -> Response:
        """POST a body to the API on a connection of its own, following no redirect.

        Raises:
            TransportError: No whole answer came; the body knows how much of it went out.
        """
        _check_open(self._pools[0])  # a copy of the caller's session does not notice its end
        return await self._request(self._pools[1], "POST", url, data=body)

    @asynccontextmanager
    async def stream(
        self, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET a file without the key, its content as it is on the wire.

        The request timeout ends with the response's head; the reader of the body watches the rest.

        Raises:
            TransportError: The connection failed.
            DownloadError: The host turned out to be in a private network; nothing was read.
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
        """Judge the address of a file's host, and do not keep the connection to it.

        The resolver of our own pool has judged it already; a caller's ``http=`` has its own.
        """
        connection, url = response.connection, response.url
        if connection is not None and connection.protocol is not None:
            connection.protocol.force_close()
        if self._is_proxied(url):
            return  # the address is the proxy's
        transport = connection.transport if connection is not None else None
        peer = transport.get_extra_info("peername") if transport is not None else None
        if peer is not None:
            is_allowed = self._is_allowed(peer[0].partition("%")[0])
        else:  # a short body came with the head, and aiohttp has returned the connection
            is_allowed = (
                self._owns_sessions or hosts.is_address(url.host or "") or response.status >= 300
            )
        if not is_allowed:
            raise DownloadError(f"{url.host} leads into a private network; it was not followed.")

    def _is_proxied(self, url: URL) -> bool:
        if self._owns_sessions:
            return bool(self._proxy(str(url)))
        http = self._pools[0]
        if getattr(http, "_default_proxy", None) is not None:  # ClientSession(proxy=…) hides it
            return True
        return http.trust_env and bool(_proxy_for(url, _proxies()))

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
        # aiohttp's trust_env also reads ~/.netrc, which clashes with an Authorization header.
        return _proxy_for(URL(url), self._proxies) if self._proxies else {}

    @staticmethod
    def _make_pool(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"musicgpt-async/{__version__}"},
            raise_for_status=False,
        )


def _proxies() -> dict[str, dict[str, Any]]:
    """Return the proxies of the environment: scheme → argument of a request."""
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
                f"The proxy for {scheme} is no URL; check {scheme}_proxy."
            ) from error
        if proxy.scheme in ("http", "https"):
            resolved[scheme] = {"proxy": proxy}
        else:
            _warn_of_unknown_proxy(scheme, proxy.scheme)
    return resolved


@functools.cache
def _warn_of_unknown_proxy(scheme: str, kind: str) -> None:
    """Log that a proxy is not used; cached, so that each is logged once in a process."""
    _log.warning(
        "The %s proxy of the environment is of the kind %s, which aiohttp does not support; it is "
        "not used. Set an http:// proxy, or pass a session with a connector for it as http=.",
        scheme,
        kind,
    )


def _proxy_for(url: URL, proxies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the argument of a request that sends it through its proxy, if it has one."""
    proxy = proxies.get(url.scheme)
    if proxy is None or hosts.is_loopback(str(url)):  # the key would leave the machine in clear
        return {}
    # With the port, because no_proxy may name one.
    return {} if urllib.request.proxy_bypass(f"{url.host}:{url.port}") else proxy


class map_exceptions:  # noqa: N801 - reads as a word: "with translated(url)"
    """Turn the network's exceptions into the library's."""

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
                f"{host} did not answer in time; try again later."
            ) from error
        shows_key = bool(self._key) and self._key in str(error)  # a garbled answer repeats it
        reason = "the answer is garbled" if shows_key else _reason(error)
        raise TransportError(
            f"The connection to {host} failed ({reason}); check the network."
        ) from (None if shows_key else error)


class _FreshConnector(aiohttp.BaseConnector):
    """Connects as another connector does, and neither takes nor keeps an idle connection.

    The caller's connector knows the proxy, the certificates and the resolver to use, but aiohttp
    has no way to ask it for a connection that was not used before: a header ``Connection: close``
    ends a connection after the request, and a request may still start on a kept one.
    """

    def __init__(self, connector: aiohttp.BaseConnector) -> None:
        super().__init__(limit=0, force_close=True)
        self._connector = connector
        self.allowed_protocol_schema_set = connector.allowed_protocol_schema_set

    async def _create_connection(self, *request: Any) -> Any:
        return await self._connector._create_connection(*request)  # noqa: SLF001 - no public way


def _copy_with(
    http: aiohttp.ClientSession, connector: aiohttp.BaseConnector
) -> aiohttp.ClientSession:
    """Return a session with another one's headers, cookies and proxy, and a connector of its own.

    Closing the copy closes that connector and leaves the other session open.
    """
    copied = copy.copy(http)
    copied._connector, copied._connector_owner = connector, True  # noqa: SLF001 - as above
    return copied


class _FilteringResolver(AbstractResolver):
    """Resolves names and drops the addresses that a link may not lead to."""

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
        trusted = host in self._trusted  # the proxies that the user set
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
        raise TransportError(f"A link cannot be read as a URL ({error}): {url[:200]!r}.") from error


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body, cut at ``MAX_RESPONSE_BYTES``: no answer of the API comes near it."""
    body = b""
    try:
        while len(body) < MAX_RESPONSE_BYTES and (chunk := await response.content.readany()):
            body = body + chunk if body else chunk
            if response.content.at_eof():
                break
    except BaseException:
        body = chunk = b""  # it may repeat the key, and some keep a failed frame's values
        raise
    return body[:MAX_RESPONSE_BYTES]


def _reason(error: BaseException) -> str:
    return " ".join(re.sub(r"//[^/@\s]*@", "//", str(error)).split())[:200] or type(error).__name__
