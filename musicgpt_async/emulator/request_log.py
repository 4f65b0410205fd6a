"""The log of requests: what reached the emulator, and the status it got."""

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
    """Stands for an answer that never was: the connection has been closed."""


@attrs.define(eq=False)
class LoggedRequest:
    """One request that reached the emulator, and the status it got.

    Attributes:
        method: in capitals.
        path: without the query.
        query: what follows the question mark.
        at: the `time.monotonic()` of its arrival.
        status: None while there is no answer, and where the connection was closed without one.
    """

    method: str
    path: str
    query: str
    at: float
    status: int | None = None


_current: contextvars.ContextVar[LoggedRequest] = contextvars.ContextVar("exchange")


def record_status(status: int) -> None:
    """Note the status that the request at hand is about to get."""
    _current.get().status = status


async def record_response(_: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: the status is final only when the headers go out."""
    if not isinstance(response, DroppedConnection):
        record_status(response.status)


def log_requests(log: deque[LoggedRequest]) -> Any:
    """A middleware that notes every request; a client that goes away is no error here."""

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
