"""Responses that are written to the socket directly, to break the rules of HTTP."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal

import attrs
from aiohttp import web

from musicgpt_async.emulator.request_log import DroppedConnection, record_status


@attrs.frozen(kw_only=True)
class RawResponse:
    """A status, headers and body that are sent unchanged, and what follows them."""

    status: int = 200
    headers: Mapping[str, str]
    body: bytes
    then: Literal["close", "stall"] = "close"

    async def send(self, request: web.Request) -> DroppedConnection:
        """Write the response, then close the connection or stall."""
        phrase = HTTPStatus(self.status).phrase
        lines = [f"HTTP/1.1 {self.status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        record_status(self.status)
        if request.transport is not None:
            request.transport.write(head + (b"" if request.method == "HEAD" else self.body))
        if self.then == "stall":
            await stall()
        return drop(request)


async def stall() -> None:
    """Do nothing until the emulator is closed and cancels the request."""
    await asyncio.Event().wait()


def drop(request: web.Request) -> DroppedConnection:
    """Close the connection of a request after everything written before was sent."""
    if request.transport is not None:
        request.transport.close()
    return DroppedConnection()


async def read_body(request: web.Request, size: int) -> None:
    """Read and discard at least `size` bytes of a request's body."""
    while size > 0 and (chunk := await request.content.readany()):
        size -= len(chunk)
