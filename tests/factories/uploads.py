"""Uploads without a session: a body, its parts, and a server that accepts it."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

from musicgpt_async._io import sources
from musicgpt_async._io.content import BLOCK_SIZE, ReadableTrack
from musicgpt_async._io.sources import Track, parse_source
from musicgpt_async._io.upload import MultipartBody

FIELDS = {"audio_url": "", "stems": '["vocals"]', "preprocessing_options": "[]"}
# More than the kernel and the transport hold between a client and a server that does not read.
MORE_THAN_BUFFERS = 24 * BLOCK_SIZE
NARROW = 1 << 16
# Guards against hanging; no test passes or fails by it on its own.
PATIENCE = 60


async def do_nothing_before_commit() -> None:
    """Do nothing before the commit point."""


def body_of(content: ReadableTrack | None, **settings: Any) -> MultipartBody:
    """Make one attempt's body."""
    given = {
        "stall_timeout": 30.0,
        "before_commit": do_nothing_before_commit,
        "progress": lambda _: None,
        **settings,
    }
    return MultipartBody(given.pop("fields", FIELDS), content, **given)


@asynccontextmanager
async def open_track(source: Any, executor: ThreadPoolExecutor) -> AsyncIterator[ReadableTrack]:
    """Open a source that has content."""
    track = source if isinstance(source, Track) else parse_source(source)
    async with sources.open_track(track, executor) as content:
        assert content is not None
        yield content


def write_track(path: Path, size: int) -> bytes:
    """Write a track and return its bytes."""
    data = secrets.token_bytes(min(size, BLOCK_SIZE))
    whole = (data * (size // len(data) + 1))[:size]
    path.write_bytes(whole)
    return whole


def parts_of(request: Any) -> list[tuple[bytes, bytes]]:
    """Split a multipart body into (head, content) of each part."""
    boundary = re.search(r'boundary="?([^";]+)', request.headers["content-type"])[1].encode()
    assert request.body.startswith(b"--" + boundary + b"\r\n")
    assert request.body.endswith(b"\r\n--" + boundary + b"--\r\n")
    inner = request.body[len(boundary) + 4 : -len(boundary) - 8]
    pieces = inner.split(b"\r\n--" + boundary + b"\r\n")
    return [tuple(piece.split(b"\r\n\r\n", 1)) for piece in pieces]  # type: ignore[misc]


def closing(body: MultipartBody) -> bytes:
    """The closing boundary, which has to go out last."""
    return body._tail


@attrs.define
class Recorder:
    """A server that reads complete submits and accepts them."""

    requests: list[Any] = attrs.field(factory=list)
    peers: list[int] = attrs.field(factory=list)

    async def __call__(self, peer: Any) -> None:
        """Read complete submits as long as the client sends them."""
        while True:
            self.requests.append(await peer.request())
            self.peers.append(peer.number)
            await peer.answer(200, b'{"success": true, "task_id": "t"}')


async def stream(data: bytes) -> AsyncGenerator[bytes, None]:
    """Yield bytes in pieces of unusual sizes."""
    for start in range(0, len(data), 700_001):
        yield data[start : start + 700_001]
