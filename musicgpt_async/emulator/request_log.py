"""The log of the requests that reached the emulator, and their response statuses."""

import contextvars
import logging
import time
from collections import deque
from typing import Any

import attrs
from aiohttp import web
from aiohttp.typedefs import Handler

from musicgpt_async.emulator import responses

_log = logging.getLogger(__name__)


class DroppedConnection(web.Response):
    """Placeholder for a response that was not sent, because the connection was closed."""


@attrs.define(eq=False)
class LoggedRequest:
    """One request that reached the emulator.

    Attributes:
        method: HTTP method, in upper case.
        path: Path without the query.
        query: Query without the question mark.
        at: Time of its arrival, by `time.monotonic()`.
        status: Status of the response, or None if there is none yet or the connection was closed.
    """

    method: str
    path: str
    query: str
    at: float
    status: int | None = None


_current: contextvars.ContextVar[LoggedRequest] = contextvars.ContextVar("exchange")


def record_status(status: int) -> None:
    """Record the response status of the current request."""
    _current.get().status = status


async def record_response(_: web.Request, response: web.StreamResponse) -> None:
    """Record the status as an `on_response_prepare` signal: it is final when headers are sent."""
    if not isinstance(response, DroppedConnection):
        record_status(response.status)


def log_requests(log: deque[LoggedRequest]) -> Any:
    """Return a middleware that logs every request; a client that disconnects is not an error."""

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = LoggedRequest(
            request.method, request.path, request.query_string, time.monotonic()
        )
        _current.set(exchange)
        log.append(exchange)
        response: web.StreamResponse
        try:
            response = await handler(request)
        except web.HTTPException as refused:
            response = responses.error(refused.status, refused.reason, body="detail")
        except ConnectionError:
            response = DroppedConnection()
        is_closed = isinstance(response, DroppedConnection)
        status = "closed without an answer" if is_closed else response.status
        _log.info("%s %s: %s", request.method, request.path_qs, status)
        return response

    return note
