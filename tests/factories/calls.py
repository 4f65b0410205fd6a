"""Calls of the API, made one by one."""

from __future__ import annotations

import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from musicgpt_async._io import sources
from musicgpt_async._io.http import Transport
from musicgpt_async._io.sources import parse_source
from musicgpt_async._io.upload import MultipartBody
from musicgpt_async._rules import protocol
from musicgpt_async._rules.protocol import Response
from musicgpt_async.errors import (
    MusicGPTError,
)

KEY = "key-3f9a7c51e0"
PATIENCE = 60
YES = b'{"success": true, "task_id": "t"}'


async def do_nothing_before_commit() -> None:
    """Do nothing before the commit point."""


async def submit(transport: Transport, url: str, data: bytes = b"sound") -> Response:
    """Send a small track."""
    with ThreadPoolExecutor(1) as executor:
        async with sources.open_track(parse_source(("a.wav", data)), executor) as content:
            body = MultipartBody(
                {"audio_url": ""},
                content,
                stall_timeout=30,
                before_commit=do_nothing_before_commit,
                progress=lambda _: None,
            )
            return await transport.post(url, body)


async def fetch(transport: Transport, url: str) -> tuple[int, bytes]:
    """Download a file completely."""
    async with transport.stream(url, {}) as response:
        return response.status, await response.read()


class Echo:
    """A server that responds to each request with the same bytes, and records the requests."""

    def __init__(self, status: int = 200, body: bytes = YES, **headers: str) -> None:
        self.requests: list[tuple[int, Any]] = []
        self._answer = status, body, headers

    async def __call__(self, peer: Any) -> None:
        """Respond as long as the client sends requests."""
        status, body, headers = self._answer
        while True:
            self.requests.append((peer.number, await peer.request()))
            await peer.answer(status, body, **headers)


async def stay_silent(peer: Any) -> None:
    """Accept a request and never respond."""
    await peer.request()
    await anyio.sleep(PATIENCE)


async def failure_of(transport: Transport, call: str, url: str) -> MusicGPTError:
    """Return the error that a call ends in."""
    with pytest.raises(MusicGPTError) as caught:
        await call_by_name(transport, call, url)
    return caught.value


async def call_by_name(transport: Transport, call: str, url: str) -> None:
    """Send a call and read its response."""
    match call:
        case "ask":
            answer = await transport.get(url, {"task_id": "t"})
        case "send":
            answer = await submit(transport, url)
        case _:
            await fetch(transport, url)
            return
    protocol.parse_response(answer, now=time.time(), subject="The call")


def seen_by_a_crash_reporter(error: BaseException) -> str:
    """Everything that a tool which records local variables would send home."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    return f"{error!s}{error!r}{vars(error)!r}" + "".join(report.format())
