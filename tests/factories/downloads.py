"""Files to download, and a scripted host that serves them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
from factories.watching import held

# A guard against hanging; no test passes or fails by it on its own.
LONG = 60
MIB = 1 << 20


def mp3(size: int) -> bytes:
    """Make what passes for an MP3."""
    return b"\xff\xfb\x90\x00" + secrets.token_bytes(size - 4)


def wav(size: int) -> bytes:
    """Return a WAV whose header declares its size."""
    return b"RIFF" + (size - 8).to_bytes(4, "little") + b"WAVE" + secrets.token_bytes(size - 12)


def ignore(_received: int, _total: int | None) -> None:
    """Take no notice of progress."""


Get = Callable[..., Any]


@attrs.define
class Host:
    """A file host that supports ranges and whose responses can be scripted."""

    data: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    plan: list[Callable[[Any, Any], Any]] = attrs.field(factory=list)
    requests: list[dict[str, str]] = attrs.field(factory=list)

    async def __call__(self, peer: Any) -> None:
        """Do what is planned, then serve."""
        while True:
            request = await peer.request()
            self.requests.append(request.headers)
            step = self.plan.pop(0) if self.plan else self.serve
            await step(peer, request)

    async def serve(
        self, peer: Any, request: Any, *, cut: int | None = None, pause: float = 0.0
    ) -> None:
        """Serve what was asked for, cut after so many bytes."""
        start = self._start(request)
        piece = self.data[start:]
        headers = {"Content_Type": "audio/mpeg", "Content_Length": str(len(piece))}
        if self.etag:
            headers["ETag"] = self.etag
        if start:
            whole = len(self.data)
            headers["Content_Range"] = f"bytes {start}-{whole - 1}/{whole}"
        await peer.answer(206 if start else 200, piece[:cut], **headers)
        if cut is not None:
            await anyio.sleep(pause)  # aiohttp forgets what it has not handed on at the break
            peer.writer.close()
            raise ConnectionResetError

    def _start(self, request: Any) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if found and self.ranges and request.headers.get("if-range") == self.etag:
            return int(found[1])
        return 0

    def cut(self, after: int) -> Callable[[Any, Any], Any]:
        """Serve, and disconnect after so many bytes of this response."""

        async def step(peer: Any, request: Any) -> None:
            await self.serve(peer, request, cut=after)

        return step


def say(status: int, body: bytes = b"", **headers: str) -> Callable[[Any, Any], Any]:
    """Respond once with these."""

    async def step(peer: Any, _: Any) -> None:
        await peer.answer(status, body, **headers)

    return step


def close_delimited(body: bytes, **headers: str) -> Callable[[Any, Any], Any]:
    """Respond without a length, so that only closing the connection marks the end."""

    async def step(peer: Any, _: Any) -> None:
        await peer.answer(200, body, Content_Length="", Connection="close", **headers)
        peer.writer.close()
        raise ConnectionResetError

    return step


def is_empty_directory(directory: Path) -> bool:
    """Return whether a directory is empty and no file in it is open."""
    return not list(directory.iterdir()) and not held(directory)
