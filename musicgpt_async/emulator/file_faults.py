"""How a fault strikes the serving of a file: each takes a right answer and spoils it."""

import asyncio
import email.utils
import gzip
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import attrs
from aiohttp import hdrs, web

from musicgpt_async.emulator import answers
from musicgpt_async.emulator.faults import Fault
from musicgpt_async.emulator.wire import RawAnswer

_HEADER = 4096
"""Bytes at the head of a file that `replace_content` keeps, so that it still opens."""


def etag(stat: os.stat_result) -> str:
    """The ETag of a file, as aiohttp makes it."""
    return f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'


def replace_content(path: Path) -> None:
    """Give a file other content of the same length, and with it another ETag."""
    content = path.read_bytes()
    changed = path.with_name(f"{path.name}.changed")
    changed.write_bytes(content[:_HEADER] + content[_HEADER:][::-1])
    changed.replace(path)


@attrs.frozen
class Served:
    """A file about to be served, and the range of it that was asked for."""

    content: bytes
    start: int
    stop: int
    is_range: bool
    headers: Mapping[str, str]

    @classmethod
    async def of(cls, request: web.Request, path: Path, *, content_type: str) -> Self:
        """Read the file; If-Range is not heeded here."""
        loop = asyncio.get_running_loop()
        content, stat = await loop.run_in_executor(None, lambda: (path.read_bytes(), path.stat()))
        asked = request.http_range
        start, stop, _ = asked.indices(len(content))
        headers: dict[str, str] = {
            hdrs.CONTENT_TYPE: content_type,
            hdrs.ETAG: etag(stat),
            hdrs.LAST_MODIFIED: email.utils.formatdate(stat.st_mtime, usegmt=True),
        }
        return cls(content, start, stop, asked.start is not None, headers)

    def part(self, start: int, stop: int) -> RawAnswer:
        """A right answer with this part of the file."""
        body = self.content[start:stop]
        headers = {**self.headers, hdrs.CONTENT_LENGTH: str(len(body)), hdrs.ACCEPT_RANGES: "bytes"}
        if not self.is_range:
            return RawAnswer(headers=headers, body=body)
        headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{start + len(body) - 1}/{len(self.content)}"
        return RawAnswer(status=206, headers=headers, body=body)

    @property
    def answer(self) -> RawAnswer:
        """The right answer."""
        return self.part(self.start, self.stop)


def _cut(answer: RawAnswer, fault: Fault) -> bytes:
    return answer.body[: fault.cut(len(answer.body))]


def _truncated(served: Served, fault: Fault) -> RawAnswer:
    return attrs.evolve(served.answer, body=_cut(served.answer, fault))


def _stall(served: Served, fault: Fault) -> RawAnswer:
    return attrs.evolve(_truncated(served, fault), then="stall")


def _mis_sized(served: Served, fault: Fault) -> RawAnswer:
    body = _cut(served.answer, fault)
    headers = {**served.answer.headers, hdrs.CONTENT_LENGTH: str(len(body))}
    return attrs.evolve(served.answer, headers=headers, body=body)


def _no_length(served: Served, _: Fault) -> RawAnswer:
    headers = {**served.answer.headers, hdrs.CONNECTION: "close"}
    del headers[hdrs.CONTENT_LENGTH]
    return attrs.evolve(served.answer, headers=headers)


def _no_length_truncated(served: Served, fault: Fault) -> RawAnswer:
    return attrs.evolve(_no_length(served, fault), body=_cut(served.answer, fault))


def _gzip(served: Served, _: Fault) -> RawAnswer:
    body = gzip.compress(served.answer.body, compresslevel=1)
    headers = {**served.answer.headers, hdrs.CONTENT_LENGTH: str(len(body))}
    headers[hdrs.CONTENT_ENCODING] = "gzip"
    return attrs.evolve(served.answer, headers=headers, body=body)


def _as_it_is(served: Served, _: Fault) -> RawAnswer:
    return served.answer


def _no_ranges(served: Served, _: Fault) -> RawAnswer:
    whole = attrs.evolve(served, is_range=False).part(0, len(served.content))
    headers = {name: value for name, value in whole.headers.items() if name != hdrs.ACCEPT_RANGES}
    return attrs.evolve(whole, headers=headers)


def _wrong_range(served: Served, _: Fault) -> RawAnswer:
    return served.part(served.start // 2, served.stop)


def _other_body(kind: str) -> Callable[[Served, Fault], RawAnswer]:
    def spoil(_: Served, fault: Fault) -> RawAnswer:
        body = answers.error(200, fault.message, body=kind)
        content = body.body if isinstance(body.body, bytes) else b""
        headers: dict[str, str] = {
            hdrs.CONTENT_TYPE: body.content_type,
            hdrs.CONTENT_LENGTH: str(len(content)),
        }
        return RawAnswer(headers=headers, body=content)

    return spoil


FILE_FAULTS: Mapping[str, Callable[[Served, Fault], RawAnswer]] = {
    "truncated": _truncated,
    "stall": _stall,
    "mis_sized": _mis_sized,
    "no_length": _no_length,
    "no_length_truncated": _no_length_truncated,
    "gzip": _gzip,
    "changed_anyway": _as_it_is,
    "no_ranges": _no_ranges,
    "wrong_range": _wrong_range,
    "html": _other_body("html"),
    "xml": _other_body("xml"),
    "empty": _other_body("empty"),
}
"""What each kind of fault does to a file's answer, by name."""
