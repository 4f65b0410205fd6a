"""The log of requests: what reached the emulator, and the status it got."""

import contextvars
import time
from collections import deque
from typing import Any

import attrs
from aiohttp import web
from aiohttp.typedefs import Handler

from musicgpt_async.emulator import answers


class Dropped(web.Response):
    """Stands for an answer that never was: the connection has been closed."""


@attrs.define(eq=False)
class Exchange:
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


_current: contextvars.ContextVar[Exchange] = contextvars.ContextVar("exchange")


def answered(status: int) -> None:
    """Note the status that the request at hand is about to get."""
    _current.get().status = status


async def note_answer(_: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: the status is final only when the headers go out."""
    if not isinstance(response, Dropped):
        answered(response.status)


def noting(log: deque[Exchange]) -> Any:
    """A middleware that notes every request; a client that goes away is no error here."""

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = Exchange(request.method, request.path, request.query_string, time.monotonic())
        _current.set(exchange)
        log.append(exchange)
        try:
            return await handler(request)
        except web.HTTPException as refused:
            return answers.error(refused.status, refused.reason, body="detail")
        except ConnectionError:
            return Dropped()

    return note
