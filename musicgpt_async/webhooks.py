"""The endpoints that receive MusicGPT's webhooks, over one framework-independent core.

The responses, each with a small JSON object as body; no request is redirected:

====== =========================================================================
200    the delivery was accepted; or the health line, to GET and HEAD on the base
400    the body is not a JSON object
404    no job has this token
405    not a POST on a job's URL, or not a GET or HEAD on the base
408    the body did not arrive within 30 s
413    the body is over 1 MiB
415    the body is compressed
503    the journal could not save what a delivery brought: send it again
====== =========================================================================
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import attrs
from yarl import URL

from musicgpt_async._io.delivery_queue import DeliveryQueue, Receipt
from musicgpt_async.errors import ConfigurationError

if TYPE_CHECKING:
    from aiohttp import web

MAX_BODY_BYTES = 1024 * 1024  # bytes
BODY_TIMEOUT = 30.0  # seconds
SERVICE = "musicgpt-async webhook receiver"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

_SIGNED_TOKEN = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{32}")

_log = logging.getLogger(__name__)


class WebhookReceiver:
    """Receives MusicGPT's webhooks and wakes the jobs that they are for.

    One receiver may serve many sessions. Its own logs never show a token; the access log of a
    server around it may show the URLs of jobs.

    Args:
        public_url: The URL at which MusicGPT reaches this process, path included:
            ``"https://bot.example.com/musicgpt"``.
        secret: A long random string, kept between runs. With it a job's token is the same after a
            restart, and a delivery that arrives before the job is resumed is kept for it. Without
            it the journal's own secret is used; without a journal, tokens are random.

    Attributes:
        public_url: The URL without a trailing slash.

    Raises:
        ConfigurationError: MusicGPT could not post to this URL, or the secret is empty.
    """

    def __init__(self, public_url: str, *, secret: str | bytes | None = None) -> None:
        self.public_url: str = _validate_url(public_url)
        self._secret = secret.encode() if isinstance(secret, str) else secret
        if self._secret == b"":
            raise ConfigurationError(
                "The webhook secret is empty; leave it out, or make one with secrets.token_hex()."
            )
        self._journal_secrets: set[bytes] = set()
        self._instance: str = secrets.token_hex(8)
        self._queue: DeliveryQueue = DeliveryQueue(self._is_signed)
        self._endpoint = _Endpoint(
            _segments(URL(self.public_url).path), self._instance, self._queue
        )

    def __repr__(self) -> str:
        return f"WebhookReceiver({self.public_url!r})"

    def _token_for(self, job_id: str, journal_secret: bytes | None = None) -> str:
        """Return a token for a job: with a secret always the same one, else a new random one.

        Args:
            job_id: The job.
            journal_secret: The secret of its journal, for a receiver that was given none.
        """
        secret = self._secret or journal_secret
        if secret is None:
            return f"{secrets.token_hex(16)}.{secrets.token_hex(16)}"
        public = _digest(secret, "job", job_id)
        return f"{public}.{_digest(secret, 'token', public)}"

    def _learn_secret(self, secret: bytes) -> None:
        """Accept deliveries for tokens that are signed with a journal's secret."""
        self._journal_secrets.add(secret)

    def _url_for(self, token: str) -> str:
        """Return the absolute URL for MusicGPT to post to."""
        return f"{self.public_url}/{token}"

    def routes(self, path: str | None = None) -> list[web.RouteDef]:
        """Return the routes to add to an aiohttp application.

        Args:
            path: The path of the endpoint in that application; by default the path of the public
                URL. Behind a proxy that rewrites paths it differs.
        """
        from aiohttp import web  # noqa: PLC0415  # a client that only polls needs no server

        async def handle(request: web.Request) -> web.Response:
            return await _respond_aiohttp(self._endpoint, request)

        return [
            web.route(
                "*", _pattern(self._endpoint.base if path is None else _segments(path)), handle
            )
        ]

    @property
    def asgi(self) -> ASGIApplication:
        """The endpoint as an ASGI application, to mount in another one or to run by itself."""
        return _ASGIApp(self._endpoint)

    @asynccontextmanager
    async def serve(self, host: str = "127.0.0.1", port: int = 8080) -> AsyncIterator[str]:
        """Run the endpoint as a server of its own, for the duration of the block.

        It answers below the path of the public URL and below ``/`` alike, so that a proxy in front
        of it may strip the path or keep it. It takes at most 256 connections at a time, and waits
        10 s for the head of a request and 30 s for its body.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 takes a free one.

        Yields:
            The root of the server on this machine, for a proxy to point at:
            ``"http://127.0.0.1:8080"``.

        Raises:
            ConfigurationError: It cannot listen there.
        """
        from aiohttp import web  # noqa: PLC0415  # a client that only polls needs no server

        from musicgpt_async._io import http_server  # noqa: PLC0415  # the same

        app = web.Application()
        app.add_routes(self.routes("/"))
        async with http_server.serve(app, host, port) as root:
            yield root

    def _is_signed(self, token: str) -> bool:
        if _SIGNED_TOKEN.fullmatch(token) is None:
            return False
        known = self._journal_secrets if self._secret is None else (self._secret,)
        public, _, signature = token.partition(".")
        return any(
            hmac.compare_digest(_digest(secret, "token", public), signature) for secret in known
        )


@attrs.frozen
class _Reply:
    status: int
    content: bytes
    headers: Mapping[str, str] = attrs.field(factory=dict)


_OK = _Reply(200, b'{"ok": true}')
_NOT_JSON = _Reply(400, b'{"error": "the body is not a JSON object"}')
_NO_SUCH_JOB = _Reply(404, b'{"error": "no job has this URL"}')
_ONLY_GET = _Reply(405, b'{"error": "wrong method"}', {"Allow": "GET, HEAD"})
_ONLY_POST = _Reply(405, b'{"error": "wrong method"}', {"Allow": "POST"})
_TOO_SLOW = _Reply(408, b'{"error": "the body did not arrive in time"}')
_TOO_LARGE = _Reply(413, b'{"error": "the body is over 1 MiB"}')
_NOT_PERSISTED = _Reply(503, b'{"error": "not saved; send it again"}', {"Retry-After": "30"})
_COMPRESSED = _Reply(415, b'{"error": "the body is compressed"}')


@attrs.frozen
class _Endpoint:
    """Framework-independent request handling.

    Reads the body only for a valid token, and waits for the journal only if the delivery brings a
    task id that is not saved yet or belongs to a job of another process.
    """

    base: tuple[str, ...]
    instance: str
    queue: DeliveryQueue

    async def respond(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        read: Callable[[], Awaitable[bytes]],
    ) -> _Reply:
        """Answer one request.

        Args:
            method: In capitals.
            path: Decoded, without a query, with or without the base in front.
            headers: By lower-case names, or without regard to case.
            read: Returns the next bytes of the body, ``b""`` at its end; raises TimeoutError if
                they do not arrive in time.
        """
        below = _strip_prefix(self.base, _segments(path))
        if not below:
            return self._health() if method in {"GET", "HEAD"} else _ONLY_GET
        token = below[-1]
        if (refusal := self._refuse(method, token, headers)) is not None:
            return refusal
        body = bytearray()
        try:
            while block := await read():
                body += block
                if len(body) > MAX_BODY_BYTES:
                    return _TOO_LARGE
        except TimeoutError:
            return _TOO_SLOW
        return await self._accept(token, body)

    def _health(self) -> _Reply:
        line = json.dumps({"service": SERVICE, "instance": self.instance})
        return _Reply(200, line.encode(), {"Cache-Control": "no-store"})

    def _refuse(self, method: str, token: str, headers: Mapping[str, str]) -> _Reply | None:
        if method != "POST":
            return _ONLY_POST
        if not self.queue.accepts(token):
            return _NO_SUCH_JOB
        if headers.get("content-encoding", "").lower() not in {"", "identity"}:
            return _COMPRESSED  # some servers would unpack it, past any bound
        return _TOO_LARGE if _content_length(headers) > MAX_BODY_BYTES else None

    async def _accept(self, token: str, body: bytearray) -> _Reply:
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            return _NOT_JSON
        if not isinstance(payload, dict):
            return _NOT_JSON
        match await self.queue.put(token, payload, size=len(body)):
            case Receipt.UNKNOWN_TOKEN:
                return _NO_SUCH_JOB
            case Receipt.REPEAT:
                return _NOT_PERSISTED
            case Receipt.ACKNOWLEDGED:
                return _OK


def _in_time(read: Callable[[], Awaitable[bytes]]) -> Callable[[], Awaitable[bytes]]:
    """Return a reader of a body that raises TimeoutError ``BODY_TIMEOUT`` after its first call."""
    deadline = math.inf

    async def read_in_time() -> bytes:
        nonlocal deadline
        deadline = min(deadline, anyio.current_time() + BODY_TIMEOUT)
        with anyio.fail_after(deadline - anyio.current_time()):
            return await read()

    return read_in_time


async def _respond_aiohttp(endpoint: _Endpoint, request: web.Request) -> web.Response:
    from aiohttp import web  # noqa: PLC0415  # a client that only polls needs no server

    try:
        reply = await endpoint.respond(
            request.method,
            request.match_info["tail"],
            request.headers,
            _in_time(request.content.readany),
        )
    except (ConnectionError, web.RequestPayloadError):
        reply = _NOT_JSON  # the connection broke; the response is probably not read
    return web.Response(
        status=reply.status,
        body=reply.content,
        headers=reply.headers,
        content_type="application/json",
    )


def _pattern(base: tuple[str, ...]) -> str:
    """Return the aiohttp pattern of all paths at and below a base.

    Each slash may be doubled: proxies that join paths carelessly do that.
    """
    prefix = "".join(f"/{{slashes{i}:/*}}{segment}" for i, segment in enumerate(base))
    return prefix + "{tail:(/.*)?}" if base else "/{tail:.*}"


@attrs.frozen
class _ASGIApp:
    """The bare ASGI protocol, so that no web framework is needed."""

    endpoint: _Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Some servers and frameworks leave the mount point in the path, some take it away.
        path = "/".join(
            _strip_prefix(_segments(scope.get("root_path", "")), _segments(scope["path"]))
        )
        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        with suppress(OSError):  # the client has disconnected
            reply = await self.endpoint.respond(
                scope["method"], path, headers, _in_time(_reader(receive))
            )
            await send(_response_start(reply))
            content = b"" if scope["method"] == "HEAD" else reply.content
            await send({"type": "http.response.body", "body": content})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})


def _reader(receive: Receive) -> Callable[[], Awaitable[bytes]]:
    more = True

    async def read() -> bytes:
        nonlocal more
        block = b""
        while more and not block:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            block, more = message.get("body", b""), message.get("more_body", False)
        return block

    return read


def _response_start(reply: _Reply) -> dict[str, Any]:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(reply.content)),
        **reply.headers,
    }
    raw = [(name.lower().encode(), text.encode()) for name, text in headers.items()]
    return {"type": "http.response.start", "status": reply.status, "headers": raw}


def _content_length(headers: Mapping[str, str]) -> int:
    try:
        return int(headers.get("content-length", "0"))
    except ValueError:
        return 0


def _segments(path: str) -> tuple[str, ...]:
    return tuple(segment for segment in path.split("/") if segment)


def _strip_prefix(prefix: tuple[str, ...], segments: tuple[str, ...]) -> tuple[str, ...]:
    return segments[len(prefix) :] if segments[: len(prefix)] == prefix else segments


def _digest(secret: bytes, purpose: str, text: str) -> str:
    return hmac.digest(secret, f"{purpose}:{text}".encode(), "sha256").hex()[:32]


def _validate_url(text: str) -> str:
    try:
        url = URL(text)
    except (TypeError, ValueError):
        url = URL()
    strange = any(char in "?#\\" or char.isspace() for char in str(text))
    if url.scheme not in {"http", "https"} or not url.host or url.user or url.password or strange:
        raise ConfigurationError(
            "The public URL of a webhook receiver must look like https://example.com/musicgpt: "
            "http or https, a host, perhaps a port and a path, and nothing else."
        )
    return str(url).rstrip("/")
