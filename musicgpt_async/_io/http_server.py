"""Serve an aiohttp application with limits that aiohttp's own server does not have.

Silent clients must not use up the file descriptors that submits and downloads need. At most
``MAX_CONNECTIONS`` are accepted at a time (others wait in the kernel's queue), the head of a
request must arrive within ``HEAD_TIMEOUT``, and accepting pauses when descriptors run out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from aiohttp import web
from yarl import URL

from musicgpt_async.errors import ConfigurationError

MAX_CONNECTIONS = 256
HEAD_TIMEOUT = 10.0  # seconds, from the connection or the last response
ACCEPT_RETRY_INTERVAL = 1.0  # seconds
SHUTDOWN_TIMEOUT = 1.0  # seconds that running requests have to finish

_log = logging.getLogger("musicgpt_async.webhooks")


@asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Run a server for the duration of the block; yield its root, ``"http://127.0.0.1:8080"``.

    Raises:
        ConfigurationError: The server cannot listen on the host and port.
    """
    app.middlewares.append(_mark_head_received)
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_TIMEOUT)
    listeners: list[socket.socket] = []
    accepting: list[asyncio.Task[None]] = []
    try:
        await runner.setup()
        listeners = await _listen(host, port)
        permits = asyncio.Semaphore(MAX_CONNECTIONS)
        assert runner.server is not None  # noqa: S101 - for the type checker: setup() made it
        make = partial(_Connection, runner.server, permits.release)
        accepting = [asyncio.create_task(_accept(each, permits, make)) for each in listeners]
        address, port = listeners[0].getsockname()[:2]
        yield str(URL.build(scheme="http", host=address, port=port)).rstrip("/")
    finally:
        with anyio.CancelScope(shield=True):
            for task in accepting:
                task.cancel()
            await asyncio.gather(*accepting, return_exceptions=True)
            for listener in listeners:
                listener.close()
            await runner.cleanup()


class _Connection(web.RequestHandler):
    """A connection of aiohttp's server, with a timeout for the head of its first request."""

    __slots__ = ("_head_timer", "_on_close")

    def __init__(self, server: web.Server, on_close: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=HEAD_TIMEOUT,  # for the heads of further requests
            access_log=None,  # type: ignore[arg-type]  # it would show the URLs of jobs
            logger=_RedactingLogger(_log),  # type: ignore[arg-type]
            auto_decompress=False,  # compressed bodies are refused, not decompressed
            lingering_time=SHUTDOWN_TIMEOUT,
        )
        self._on_close = on_close
        # aiohttp before 3.14 has no timeout for it.
        self._head_timer = loop.call_later(HEAD_TIMEOUT, self.force_close)

    def head_received(self) -> None:
        """Cancel the timeout, because a request has started."""
        self._head_timer.cancel()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release the permit, so that another connection is accepted."""
        self._head_timer.cancel()
        super().connection_lost(exc)
        self._on_close()


@web.middleware
async def _mark_head_received(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    if isinstance(request.protocol, _Connection):
        request.protocol.head_received()
    return await handler(request)


class _RedactingLogger(logging.LoggerAdapter[logging.Logger]):
    """Logger without tracebacks, which quote malformed requests and thus the URLs of jobs."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        error = kwargs.pop("exc_info", None)
        return (f"{msg} ({type(error).__name__})" if error else msg), kwargs


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Bind all addresses of a host to one port."""
    loop = asyncio.get_running_loop()
    listeners: list[socket.socket] = []
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, *_, address in dict.fromkeys(found):
            where = (address[0], listeners[0].getsockname()[1] if listeners else port)
            listener = socket.create_server(where, family=family)
            listener.setblocking(False)
            listeners.append(listener)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise ConfigurationError(
            f"The webhook receiver cannot listen on {host} port {port} ({error}); "
            "choose another host or port."
        ) from error
    return listeners


async def _accept(
    listener: socket.socket, permits: asyncio.Semaphore, make: Callable[[], _Connection]
) -> None:
    """Accept connections while permits are left; a closed connection returns its permit."""
    loop = asyncio.get_running_loop()
    is_failing = False
    while True:
        await permits.acquire()
        try:
            client, _ = await loop.sock_accept(listener)
        except OSError as error:  # most likely out of descriptors or memory
            permits.release()
            if not is_failing:
                _log.warning("Cannot accept webhook connections for now: %s", error)
            is_failing = True
            await asyncio.sleep(ACCEPT_RETRY_INTERVAL)
        else:
            is_failing = False
            await loop.connect_accepted_socket(make, client)
