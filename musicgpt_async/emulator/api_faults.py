"""Faults of API calls."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping

import attrs
from aiohttp import web

from musicgpt_async.emulator import raw_response, responses
from musicgpt_async.emulator.clock import Clock
from musicgpt_async.emulator.faults import Fault


@attrs.frozen
class FaultRequest:
    """A call that a fault affects; `answer` is set if the call was carried out before."""

    fault: Fault
    request: web.Request
    clock: Clock
    answer: web.Response | None = None

    @property
    def body(self) -> bytes:
        """The body of the response that the fault replaces."""
        body = self.answer.body if self.answer is not None else b""
        return body if isinstance(body, bytes) else b""


async def _status(faulty: FaultRequest) -> web.StreamResponse:
    fault = faulty.fault
    return responses.error(
        fault.status or 500,
        fault.message,
        body="message" if fault.body is None else fault.body,
        retry_after=fault.retry_after,
    )


async def _redirect(faulty: FaultRequest) -> web.StreamResponse:
    fault = faulty.fault
    return responses.error(
        fault.status or 302, fault.message, body="empty", location=fault.location
    )


async def _not_success(faulty: FaultRequest) -> web.StreamResponse:
    return responses.error(200, faulty.fault.message, body=faulty.fault.body or "message")


async def _wrong_json(faulty: FaultRequest) -> web.StreamResponse:
    body = faulty.fault.body
    content = body if isinstance(body, bytes) else json.dumps([{"unexpected": True}]).encode()
    return web.Response(body=content, content_type="application/json")


async def _drop(faulty: FaultRequest) -> web.StreamResponse:
    return raw_response.drop(faulty.request)


async def _drop_mid_body(faulty: FaultRequest) -> web.StreamResponse:
    await raw_response.read_body(
        faulty.request, faulty.fault.cut(faulty.request.content_length or 0)
    )
    return raw_response.drop(faulty.request)


async def _stall_read(faulty: FaultRequest) -> web.StreamResponse:
    await raw_response.read_body(
        faulty.request, faulty.fault.cut(faulty.request.content_length or 0)
    )
    if isinstance(faulty.request.transport, asyncio.ReadTransport):
        faulty.request.transport.pause_reading()
    await raw_response.stall()
    return raw_response.drop(faulty.request)


async def _drop_mid_answer(faulty: FaultRequest) -> web.StreamResponse:
    length = len(faulty.body)
    answer = raw_response.RawResponse(
        headers={"Content-Type": "application/json", "Content-Length": str(length)},
        body=faulty.body[: faulty.fault.cut(length)],
    )
    return await answer.send(faulty.request)


async def _stall_answer(faulty: FaultRequest) -> web.StreamResponse:
    await raw_response.stall()
    return raw_response.drop(faulty.request)


async def _slow_answer(faulty: FaultRequest) -> web.StreamResponse:
    await faulty.clock.sleep(faulty.fault.seconds)
    return raw_response.drop(faulty.request) if faulty.answer is None else faulty.answer


API_FAULTS: Mapping[str, Callable[[FaultRequest], Awaitable[web.StreamResponse]]] = {
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
"""The implementations of faults of API calls, by name."""
