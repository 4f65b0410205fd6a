"""How a fault strikes an API call."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping

import attrs
from aiohttp import web

from musicgpt_async.emulator import answers, wire
from musicgpt_async.emulator.clock import Clock
from musicgpt_async.emulator.faults import Fault


@attrs.frozen
class Struck:
    """A call that a fault strikes: `answer` is there where the work has been done."""

    fault: Fault
    request: web.Request
    clock: Clock
    answer: web.Response | None = None

    @property
    def body(self) -> bytes:
        """The bytes of the answer that would have been."""
        body = self.answer.body if self.answer is not None else b""
        return body if isinstance(body, bytes) else b""


async def _status(struck: Struck) -> web.StreamResponse:
    fault = struck.fault
    return answers.error(
        fault.status or 500,
        fault.message,
        body="message" if fault.body is None else fault.body,
        retry_after=fault.retry_after,
    )


async def _redirect(struck: Struck) -> web.StreamResponse:
    fault = struck.fault
    return answers.error(fault.status or 302, fault.message, body="empty", location=fault.location)


async def _not_success(struck: Struck) -> web.StreamResponse:
    return answers.error(200, struck.fault.message, body=struck.fault.body or "message")


async def _wrong_json(struck: Struck) -> web.StreamResponse:
    body = struck.fault.body
    content = body if isinstance(body, bytes) else json.dumps([{"unexpected": True}]).encode()
    return web.Response(body=content, content_type="application/json")


async def _drop(struck: Struck) -> web.StreamResponse:
    return wire.drop(struck.request)


async def _drop_mid_body(struck: Struck) -> web.StreamResponse:
    await wire.read_body(struck.request, struck.fault.cut(struck.request.content_length or 0))
    return wire.drop(struck.request)


async def _stall_read(struck: Struck) -> web.StreamResponse:
    await wire.read_body(struck.request, struck.fault.cut(struck.request.content_length or 0))
    if isinstance(struck.request.transport, asyncio.ReadTransport):
        struck.request.transport.pause_reading()
    await wire.stall()
    return wire.drop(struck.request)


async def _drop_mid_answer(struck: Struck) -> web.StreamResponse:
    length = len(struck.body)
    answer = wire.RawAnswer(
        headers={"Content-Type": "application/json", "Content-Length": str(length)},
        body=struck.body[: struck.fault.cut(length)],
    )
    return await answer.send(struck.request)


async def _stall_answer(struck: Struck) -> web.StreamResponse:
    await wire.stall()
    return wire.drop(struck.request)


async def _slow_answer(struck: Struck) -> web.StreamResponse:
    await struck.clock.sleep(struck.fault.seconds)
    return wire.drop(struck.request) if struck.answer is None else struck.answer


API_FAULTS: Mapping[str, Callable[[Struck], Awaitable[web.StreamResponse]]] = {
    "status": _status,
    "redirect": _redirect,
    "not_success": _not_success,
    "wrong_json": _wrong_json,
    "drop_before_body": _drop,
    "drop_mid_body": _drop_mid_body,
    "stall_read": _stall_read,
    "drop_before_answer": _drop,
    "drop_mid_answer": _drop_mid_answer,
    "stall_answer": _stall_answer,
    "slow_answer": _slow_answer,
}
"""What each kind of fault does to an API call, by name."""
