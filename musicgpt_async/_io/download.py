"""Download a URL to a temporary file, resume it if needed, check it, then rename it.

Resuming follows RFC 9110, sections 13.1.5 (If-Range) and 14.4 (Content-Range): the total size is
that of Content-Range, never the length of a part.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

import aiohttp
import attrs
import stamina

from musicgpt_async._io import partial_file
from musicgpt_async._io.partial_file import Chunk, PartialFile
from musicgpt_async._rules import audio, hosts, retrying
from musicgpt_async.errors import DownloadError, TransportError, TransportTimeoutError

_T = TypeVar("_T")

Stream = Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[aiohttp.ClientResponse]]
ReadChunks = Callable[[aiohttp.ClientResponse], AsyncGenerator[list[Chunk], None]]
Progress = Callable[[int, int | None], None]

_log = logging.getLogger(__name__)

# Consecutive tries without progress after which a download fails.
MAX_FRUITLESS_TRIES = 6
# A captive portal or a proxy may respond with an HTML page for a while.
PAGE_PAUSES = (1.0, 5.0, 15.0)  # seconds
MAX_REDIRECTS = 5
# Seconds between attempts to lock a temporary file that another process holds.
LOCK_POLL_INTERVAL = 0.1
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@attrs.frozen
class DownloadedFile:
    """A complete file under its final name.

    Attributes:
        path: Its final path.
        size: Bytes.
        sha256: Hexadecimal digest, empty if none was requested.
    """

    path: Path
    size: int
    sha256: str


class _RetryableError(DownloadError):
    """The transfer was interrupted or the file was wrong; another try may succeed."""


class _PageError(DownloadError):
    """The host sent a page or a message instead of audio."""


@attrs.frozen(kw_only=True)
class Downloader:
    """Downloader of files, each of which is complete or absent.

    Attributes:
        stream: Opens a URL with the transport's pool for files.
        executor: Runs the writes.
        allow_loopback: Whether links may lead to this machine.
        digests: Whether to compute a digest of each file.
        read_chunks: Yields the body of a response in lists of chunks.
    """

    stream: Stream
    executor: Executor
    allow_loopback: bool
    digests: bool
    read_chunks: ReadChunks

    async def download(
        self, url: str, target: Path, *, progress: Progress, content_key: str | None = None
    ) -> DownloadedFile:
        """Download ``url`` to ``target``, atomically replacing an existing file.

        If another process is downloading the same content to the same target, wait for its file
        and use it.

        Args:
            url: The link.
            target: The final path.
            progress: Called with the bytes received, which can decrease, and the total, if known.
            content_key: A key that is equal for the same content even if its link changes; by
                default the link without its query.

        Raises:
            DownloadError: The file is not complete; ``status`` is set if the host refused it.
            TransportError: The host could not be reached.
        """
        content_key = hosts.without_query(url) if content_key is None else content_key
        creating = self._run(PartialFile.create, target, content_key, self.digests)
        try:
            part = await asyncio.shield(creating)
        except asyncio.CancelledError:
            creating.add_done_callback(_discard_when_created)
            raise
        try:
            if not part.is_locked:
                _log.info("%s is being downloaded by another process; waiting for it", target)
            while not part.is_locked:
                await asyncio.sleep(LOCK_POLL_INTERVAL)
                await self._run(part.try_lock)
            if part.is_committed:
                progress(part.size, part.size)
            else:
                await _Transfer(self, part, url, progress).complete()
                await self._run(part.commit)
        finally:
            if part.is_open:
                # Shielded, so that a cancelled download does not leave its partial file behind.
                # Not on the session's executor, which may be closed by now.
                await asyncio.shield(asyncio.to_thread(part.discard))
        return DownloadedFile(target, part.size, part.sha256)

    async def matches(self, path: Path, *, size: int, sha256: str) -> bool:
        """Return whether a file with this size and digest exists."""
        return await self._run(partial_file.matches, path, size, sha256)

    def _run(self, call: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self.executor, call, *args)


class _Transfer:
    """The download of one file, over as many connections as needed."""

    def __init__(
        self, downloader: Downloader, part: PartialFile, url: str, progress: Progress
    ) -> None:
        self._downloader = downloader
        self._run = downloader._run  # noqa: SLF001 - the two are one piece of work
        self._part = part
        self._url = url
        self._progress = progress
        self._total: int | None = None
        self._validator = ""
        self._furthest = 0
        self._fruitless = 0
        self._pages = 0
        self._wrong = ""  # digest of the last file that was complete but wrong

    async def complete(self) -> None:
        """Fill the partial file until it is complete."""
        try:
            async for attempt in stamina.retry_context(
                on=self._should_retry, attempts=None, timeout=None, wait_max=10.0
            ):
                with attempt:
                    await self._attempt(self._url, MAX_REDIRECTS)
        except (_RetryableError, _PageError) as error:
            raise DownloadError(error.message, status=error.status) from error

    def _should_retry(self, error: Exception) -> bool | float:
        """Return whether to try again, or the seconds to wait before that.

        A try is fruitless if it gets no further than an earlier one, or ends in a timeout, since a
        slow host gets further each time. ``MAX_FRUITLESS_TRIES`` may follow each other.
        """
        if isinstance(error, _PageError):
            self._pages += 1
            return self._pages <= len(PAGE_PAUSES) and PAGE_PAUSES[self._pages - 1]
        got_further = self._part.size > self._furthest and not isinstance(
            error, TransportTimeoutError
        )
        self._fruitless = 0 if got_further else self._fruitless + 1
        self._furthest = max(self._furthest, self._part.size)
        passing = isinstance(error, (TransportError, _RetryableError))
        return passing and self._fruitless < MAX_FRUITLESS_TRIES

    async def _attempt(self, url: str, redirects: int) -> None:
        hosts.check_link(url, allow_loopback=self._downloader.allow_loopback)
        async with self._downloader.stream(url, self._range()) as response:
            location = response.headers.get("Location")
            if location is None or not 300 <= response.status < 400:
                await self._read(response)
                return
        if not redirects:
            raise self._make_error("there are too many redirects")
        await self._attempt(urljoin(url, location), redirects - 1)

    def _range(self) -> dict[str, str]:
        if not (self._part.size and self._validator):
            return {}
        return {"Range": f"bytes={self._part.size}-", "If-Range": self._validator}

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        await self._accept_response(response)
        async with aclosing(self._downloader.read_chunks(response)) as body:
            async for chunks in body:
                await self._append(chunks, response)
        await self._check_whole(response)

    async def _accept_response(self, response: aiohttp.ClientResponse) -> None:
        """Keep the content of the partial file if the response continues it; else restart it."""
        status = response.status
        if status == 206 and self._continues(response):
            return
        if status in retrying.TRANSIENT_STATUSES:  # keep what was received
            raise self._make_retryable("the host could not serve it", status)
        if self._part.size:
            await self._run(self._part.restart)
        if status in (206, 416):  # not the requested range: the next try starts over
            raise self._make_retryable("the file changed at the host during the download", status)
        if status != 200:
            raise self._make_error("the host refused it", status)
        encoding = response.headers.get("Content-Encoding", "").lower() or "identity"
        if encoding != "identity":  # a small body may decompress to gigabytes
            raise self._make_error(f"it has the content encoding {encoding[:50]!r}")
        self._total = response.content_length
        self._validator = _validator(response)

    def _continues(self, response: aiohttp.ClientResponse) -> bool:
        same = response.headers.get("ETag", self._validator) == self._validator
        return same and _content_range(response) == (self._part.size, self._total)

    async def _append(self, chunks: list[Chunk], response: aiohttp.ClientResponse) -> None:
        first = not self._part.size
        await self._run(self._part.append, chunks)
        reason = audio.why_not_audio(self._part.head, response.content_type) if first else None
        if reason:
            await self._run(self._part.restart)
            raise _PageError(self._format_message(reason, None))
        self._progress(self._part.size, self._total)

    async def _check_whole(self, response: aiohttp.ClientResponse) -> None:
        size, own = self._part.size, audio.wav_size(self._part.head)
        if size == 0:
            raise self._make_error("it is empty")
        if self._total is not None and size != self._total:
            raise self._make_retryable(f"only {size} of {self._total} bytes were received")
        if own is not None and size < own:
            await self._start_over(f"{size} bytes were received, but its header declares {own}")
        chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if self._total is None and own is None and not chunked:
            raise self._make_error("the host does not declare its length, so it may be incomplete")

    async def _start_over(self, reason: str) -> None:
        """Retry a complete but wrong file, unless the last try received the same bytes."""
        digest = await self._run(self._part.content_digest)
        if digest == self._wrong:
            raise self._make_error(reason)
        self._wrong = digest
        await self._run(self._part.restart)
        raise self._make_retryable(reason)

    def _make_error(self, reason: str, status: int | None = None) -> DownloadError:
        return DownloadError(self._format_message(reason, status), status=status)

    def _make_retryable(self, reason: str, status: int | None = None) -> DownloadError:
        return _RetryableError(self._format_message(reason, status), status=status)

    def _format_message(self, reason: str, status: int | None) -> str:
        code = f" (status {status})" if status else ""
        return f"{hosts.without_query(self._url)} was not downloaded: {reason}{code}."


def _discard_when_created(creating: asyncio.Future[PartialFile]) -> None:
    """Remove a partial file whose download was cancelled while it was being created."""
    if not creating.cancelled() and creating.exception() is None:
        asyncio.get_running_loop().run_in_executor(None, creating.result().discard)


def _content_range(response: aiohttp.ClientResponse) -> tuple[int, int] | None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else None


def _validator(response: aiohttp.ClientResponse) -> str:
    """Return the strong ETag for If-Range, which accepts no weak one, or an empty string."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else ""
