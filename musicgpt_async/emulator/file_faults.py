"""Faults of file downloads: each modifies a correct response."""

import asyncio
import email.utils
import gzip
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import attrs
from aiohttp import hdrs, web

from musicgpt_async.emulator import responses
from musicgpt_async.emulator.faults import Fault
from musicgpt_async.emulator.raw_response import RawResponse

_HEADER = 4096
"""Bytes at the start of a file that `replace_content` keeps, so that it is still audio."""


def etag(stat: os.stat_result) -> str:
    """Return the ETag of a file, computed as aiohttp does."""
    return f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'


def replace_content(path: Path) -> None:
    """Replace the content of a file by other content of the same length, with another ETag."""
    content = path.read_bytes()
    changed = path.with_name(f"{path.name}.changed")
    changed.write_bytes(content[:_HEADER] + content[_HEADER:][::-1])
    changed.replace(path)


@attrs.frozen
class ServedFile:
    """A file to be served, and the requested range."""

    content: bytes
    start: int
    stop: int
    is_range: bool
    headers: Mapping[str, str]

    @classmethod
    async def of(cls, request: web.Request, path: Path, *, content_type: str) -> Self:
        """Read the file for a request; If-Range is ignored."""
        loop = asyncio.get_running_loop()
        content, stat = await loop.run_in_executor(None, lambda: (path.read_bytes(), path.stat()))
        count_call = request.http_range
        start, stop, _ = count_call.indices(len(content))
        headers: dict[str, str] = {
            hdrs.CONTENT_TYPE: content_type,
            hdrs.ETAG: etag(stat),
            hdrs.LAST_MODIFIED: email.utils.formatdate(stat.st_mtime, usegmt=True),
        }
        return cls(content, start, stop, count_call.start is not None, headers)

    def part(self, start: int, stop: int) -> RawResponse:
        """Return a correct response with this part of the file."""
        body = self.content[start:stop]
        headers = {**self.headers, hdrs.CONTENT_LENGTH: str(len(body)), hdrs.ACCEPT_RANGES: "bytes"}
        if not self.is_range:
            return RawResponse(headers=headers, body=body)
        headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{start + len(body) - 1}/{len(self.content)}"
        return RawResponse(status=206, headers=headers, body=body)

    @property
    def answer(self) -> RawResponse:
        """Return the correct response."""
        return self.part(self.start, self.stop)


def _cut(answer: RawResponse, fault: Fault) -> bytes:
    return answer.body[: fault.cut(len(answer.body))]


def _truncated(file_content: ServedFile, fault: Fault) -> RawResponse:
    return attrs.evolve(file_content.answer, body=_cut(file_content.answer, fault))


def _stall(file_content: ServedFile, fault: Fault) -> RawResponse:
    return attrs.evolve(_truncated(file_content, fault), then="stall")


def _mis_sized(file_content: ServedFile, fault: Fault) -> RawResponse:
    body = _cut(file_content.answer, fault)
    headers = {**file_content.answer.headers, hdrs.CONTENT_LENGTH: str(len(body))}
    return attrs.evolve(file_content.answer, headers=headers, body=body)


def _no_length(file_content: ServedFile, _: Fault) -> RawResponse:
    headers = {**file_content.answer.headers, hdrs.CONNECTION: "close"}
    del headers[hdrs.CONTENT_LENGTH]
    return attrs.evolve(file_content.answer, headers=headers)


def _no_length_truncated(file_content: ServedFile, fault: Fault) -> RawResponse:
    return attrs.evolve(_no_length(file_content, fault), body=_cut(file_content.answer, fault))


def _gzip(file_content: ServedFile, _: Fault) -> RawResponse:
    body = gzip.compress(file_content.answer.body, compresslevel=1)
    headers = {**file_content.answer.headers, hdrs.CONTENT_LENGTH: str(len(body))}
    headers[hdrs.CONTENT_ENCODING] = "gzip"
    return attrs.evolve(file_content.answer, headers=headers, body=body)


def _as_it_is(file_content: ServedFile, _: Fault) -> RawResponse:
    return file_content.answer


def _no_ranges(file_content: ServedFile, _: Fault) -> RawResponse:
    whole = attrs.evolve(file_content, is_range=False).part(0, len(file_content.content))
    headers = {name: value for name, value in whole.headers.items() if name != hdrs.ACCEPT_RANGES}
    return attrs.evolve(whole, headers=headers)


def _wrong_range(file_content: ServedFile, _: Fault) -> RawResponse:
    return file_content.part(file_content.start // 2, file_content.stop)


def _other_body(kind: str) -> Callable[[ServedFile, Fault], RawResponse]:
    def spoil(_: ServedFile, fault: Fault) -> RawResponse:
        body = responses.error(200, fault.message, body=kind)
        content = body.body if isinstance(body.body, bytes) else b""
        headers: dict[str, str] = {
            hdrs.CONTENT_TYPE: body.content_type,
            hdrs.CONTENT_LENGTH: str(len(content)),
        }
        return RawResponse(headers=headers, body=content)

    return spoil


FILE_FAULTS: Mapping[str, Callable[[ServedFile, Fault], RawResponse]] = {
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
"""The implementations of faults of file downloads, by name."""
