"""A URL as a whole file: a temporary name beside the target, resumed, checked, then renamed.

The temporary file is locked, so that it is one process's at a time. The kernel frees the lock of a
process that dies; whoever waited for it then finds the whole file, or starts over in its place.

Resuming follows RFC 9110, sections 13.1.5 (If-Range) and 14.4 (Content-Range): the total comes from
Content-Range, never from the length of a part.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import re
import secrets
import sys
import threading
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

import aiohttp
import attrs
import stamina

from musicgpt_async._rules import audio, hosts, retrying
from musicgpt_async.errors import DownloadError, TransportError

if sys.platform != "win32":
    import fcntl

_T = TypeVar("_T")

Fetch = Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[aiohttp.ClientResponse]]
Piece = bytes | memoryview
Receive = Callable[[aiohttp.ClientResponse], AsyncGenerator[list[Piece], None]]
Progress = Callable[[int, int | None], None]

_log = logging.getLogger(__name__)

# Tries in a row that bring nothing new before a file is given up.
PATIENCE = 6
MOST_REDIRECTS = 5
# Seconds between looks at a temporary file that another process has.
OTHERS = 0.1
_HEAD = 512
_SUFFIX = ".part"
_ENCODINGS = frozenset({"identity", "gzip", "x-gzip", "deflate"})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@attrs.frozen
class Fetched:
    """A file that lies whole under its final name.

    Attributes:
        path: Where it lies.
        size: Bytes.
        sha256: Hexadecimal digest, empty where none was asked for.
    """

    path: Path
    size: int
    sha256: str


class _InterruptedError(DownloadError):
    """It broke off, or came out wrong, and may come right another time."""


@attrs.frozen(kw_only=True)
class Downloader:
    """Brings files down, each whole or not at all.

    Attributes:
        fetch: Opens a URL: the transport's file lane.
        executor: Where files are written.
        allow_loopback: Whether links may lead to this machine.
        digests: Whether to take a digest of each file.
        receive: Gives an answer's body in pieces; each may be written over when the next is asked
            for.
    """

    fetch: Fetch
    executor: Executor
    allow_loopback: bool
    digests: bool
    receive: Receive

    async def download(
        self, url: str, target: Path, *, progress: Progress, what: str | None = None
    ) -> Fetched:
        """Bring ``url`` to ``target``, replacing at once what lies there.

        Where another process is bringing the same there, its file is waited for and taken.

        Args:
            url: The link.
            target: The final name.
            progress: Called with the bytes received, which can go back, and the bytes in all.
            what: Equal for the same content, however its links change; by default the link without
                its query.

        Raises:
            DownloadError: It did not arrive whole; ``status`` is set where the host said no.
            TransportError: The host could not be reached.
        """
        what = hosts.without_query(url) if what is None else what
        making = self._run(_Part.beside, target, what, self.digests)
        try:
            part = await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_discarded)
            raise
        try:
            if not part.is_ours:
                _log.info("%s is being downloaded by another process; waiting for it", target)
            while not part.is_ours:
                await asyncio.sleep(OTHERS)
                await self._run(part.take)
            if part.is_published:
                progress(part.size, part.size)
            else:
                await _Transfer(self, part, url, progress).complete()
                await self._run(part.publish)
        finally:
            if part.is_open:
                # Shielded: whoever cancels a download does not want to keep its half file.
                # Not on the session's own executor: it may have been closed meanwhile.
                await asyncio.shield(asyncio.to_thread(part.discard))
        return Fetched(target, part.size, part.sha256)

    async def has(self, path: Path, *, size: int, sha256: str) -> bool:
        """Return whether a file lies there with this content."""
        return await self._run(_has, path, size, sha256)

    def _run(self, call: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self.executor, call, *args)


class _Transfer:
    """One file on its way, over as many connections as it takes."""

    def __init__(self, downloader: Downloader, part: _Part, url: str, progress: Progress) -> None:
        self._downloader = downloader
        self._run = downloader._run  # noqa: SLF001 - the two are one piece of work
        self._part = part
        self._url = url
        self._progress = progress
        self._total: int | None = None
        self._validator = ""
        self._most = 0
        self._fruitless = 0

    async def complete(self) -> None:
        """Fill the part until it is whole."""
        try:
            async for attempt in stamina.retry_context(
                on=self._worth_another_try, attempts=None, timeout=None, wait_max=10.0
            ):
                with attempt:
                    await self._attempt(self._url, MOST_REDIRECTS)
        except _InterruptedError as error:
            raise DownloadError(error.message, status=error.status) from error

    def _worth_another_try(self, error: Exception) -> bool:
        """Allow ``PATIENCE`` tries in a row that get no further than one before them."""
        self._fruitless = 0 if self._part.size > self._most else self._fruitless + 1
        self._most = max(self._most, self._part.size)
        passing = isinstance(error, (TransportError, _InterruptedError))
        return passing and self._fruitless < PATIENCE

    async def _attempt(self, url: str, redirects: int) -> None:
        hosts.check_link(url, allow_loopback=self._downloader.allow_loopback)
        async with self._downloader.fetch(url, self._range()) as response:
            location = response.headers.get("Location")
            if location is None or not 300 <= response.status < 400:
                await self._receive(response)
                return
        if not redirects:
            raise self._failure("its redirects do not end")
        await self._attempt(urljoin(url, location), redirects - 1)

    def _range(self) -> dict[str, str]:
        if not (self._part.size and self._validator):
            return {}
        return {"Range": f"bytes={self._part.size}-", "If-Range": self._validator}

    async def _receive(self, response: aiohttp.ClientResponse) -> None:
        await self._take_up(response)
        encoding = response.headers.get("Content-Encoding", "").lower() or "identity"
        if encoding not in _ENCODINGS:
            raise self._failure(f"it came with the encoding {encoding[:50]!r}")
        inflate = _inflater(encoding)
        async with aclosing(self._downloader.receive(response)) as body:
            async for pieces in body:
                await self._append(self._inflated(inflate, pieces), response)
        if inflate and not inflate.eof:
            raise self._interruption("its encoding ends early")
        await self._check_whole(response, inflated=inflate is not None)

    async def _take_up(self, response: aiohttp.ClientResponse) -> None:
        """Make the part fit what this answer brings."""
        status = response.status
        if status == 206 and self._continues(response):
            return
        if status in retrying.PASSING:  # what came stays
            raise self._interruption("the host could not give it", status)
        if self._part.size:
            await self._run(self._part.restart)
        if status in (206, 416):  # not the range that was asked for: from the start, next time
            raise self._interruption("the host changed it midway", status)
        if status != 200:
            raise self._failure("the host refused it", status)
        self._total = _plain_length(response)
        self._validator = _validator(response)

    def _continues(self, response: aiohttp.ClientResponse) -> bool:
        same = response.headers.get("ETag", self._validator) == self._validator
        return same and _content_range(response) == (self._part.size, self._total)

    async def _append(self, pieces: list[Piece], response: aiohttp.ClientResponse) -> None:
        first = not self._part.size
        await self._run(self._part.append, pieces)
        why = audio.refusal(self._part.head, response.content_type) if first else None
        if why:
            raise self._failure(why)
        self._progress(self._part.size, self._total)

    def _inflated(self, inflate: Any, pieces: list[Piece]) -> list[Piece]:
        if inflate is None:
            return pieces
        try:
            return [inflate.decompress(piece) for piece in pieces]
        except zlib.error as error:
            raise self._failure(f"its encoding is broken ({error})") from error

    async def _check_whole(self, response: aiohttp.ClientResponse, *, inflated: bool) -> None:
        size, own = self._part.size, audio.wav_size(self._part.head)
        if size == 0:
            raise self._failure("it is empty")
        if self._total is not None and size != self._total:
            raise self._interruption(f"only {size} of {self._total} bytes came")
        if own is not None and size < own:
            await self._run(self._part.restart)
            raise self._interruption(f"{size} bytes came and its own header says {own}")
        chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if self._total is None and own is None and not (chunked or inflated):
            raise self._failure("the host does not say how long it is, so it may be cut short")

    def _failure(self, why: str, status: int | None = None) -> DownloadError:
        return DownloadError(self._sentence(why, status), status=status)

    def _interruption(self, why: str, status: int | None = None) -> DownloadError:
        return _InterruptedError(self._sentence(why, status), status=status)

    def _sentence(self, why: str, status: int | None) -> str:
        code = f" (status {status})" if status else ""
        return f"{hosts.without_query(self._url)} was not downloaded: {why}{code}."


@attrs.define
class _Part:
    """The temporary file; its methods block and run on the executor.

    A cancelled transfer leaves its last write running there: the lock keeps the file open under it.

    Attributes:
        target: The final name.
        path: The temporary one, the same in every process that brings the same content there.
        is_ours: Whether no other process has it.
        is_published: Whether another process has completed it while it was waited for.
    """

    target: Path
    path: Path
    _fd: int
    _digest: Any
    is_ours: bool = False
    is_published: bool = False
    size: int = 0
    head: bytes = b""
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    @classmethod
    def beside(cls, target: Path, what: str, digest: bool) -> _Part:
        with _disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            path = _beside(target, hashlib.sha256(what.encode(errors="replace")).hexdigest()[:8])
            if sys.platform == "win32":  # no other process can remove or rename a file in use
                path = _beside(target, secrets.token_hex(4))
            part = cls(target, path, _opened(path), hashlib.sha256() if digest else None)
        try:
            part.take()
        except BaseException:
            part.discard()
            raise
        return part

    def take(self) -> None:
        """Make the file this process's, unless another one has it."""
        with self._lock, _disk(self.target):
            while not self.is_ours and self.is_open and self._is_free():
                if _lies_at(self._fd, self.path):
                    os.ftruncate(self._fd, 0)  # of one that died, whose links are gone
                    _remove_leftovers(self.target, self.path)
                    self.is_ours = True
                elif _lies_at(self._fd, self.target):
                    self._take_published()
                else:  # the one before has given up
                    self._close()
                    self._fd = _opened(self.path)

    def _is_free(self) -> bool:
        try:
            return _lock(self._fd)
        except OSError:  # a file system without locks: a name that no other process has
            if not os.fstat(self._fd).st_size:
                self.path.unlink(missing_ok=True)
            self._close()
            self.path = _beside(self.target, secrets.token_hex(4))
            self._fd = _opened(self.path)
            return True

    def _take_published(self) -> None:
        self.is_ours = self.is_published = True
        self.size = os.fstat(self._fd).st_size
        if self._digest:
            with os.fdopen(os.dup(self._fd), "rb") as file:
                file.seek(0)
                self._digest = hashlib.file_digest(file, "sha256")

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest() if self._digest else ""

    def append(self, pieces: list[Piece]) -> None:
        with self._lock, _disk(self.target):
            _write_all(self._fd, pieces)
            for piece in pieces if self._digest else ():
                self._digest.update(piece)
            for piece in pieces if len(self.head) < _HEAD else ():
                self.head += piece[: _HEAD - len(self.head)]
            self.size += sum(map(len, pieces))

    def restart(self) -> None:
        with self._lock, _disk(self.target):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self.size, self.head = 0, b""
            self._digest = self._digest and hashlib.sha256()

    def publish(self) -> None:
        """Give the whole file its name, so that a crash leaves it whole or absent."""
        with self._lock, _disk(self.target):
            os.fsync(self._fd)
            if not _lies_at(self._fd, self.path):
                raise FileNotFoundError(errno.ENOENT, "its temporary file was taken away")
            if sys.platform == "win32":  # it renames no open file
                self._close()
            self.path.replace(self.target)
            _sync_directory(self.target.parent)
            self._close()  # not before: others would take it for one that was given up

    def discard(self) -> None:
        with self._lock:
            ours = self.is_open and (self.is_ours or _lock(self._fd))
            unfinished = ours and _lies_at(self._fd, self.path)
            if sys.platform == "win32":  # it removes no open file
                self._close()
            if unfinished:
                self.path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        if self.is_open:
            _unlock(self._fd)
            os.close(self._fd)
            self._fd = -1


def _beside(target: Path, mark: str) -> Path:
    return target.with_name(f"{_prefix(target)}{mark}{_SUFFIX}")


def _prefix(target: Path) -> str:
    return f".{target.name[:200]}."


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)


def _lock(fd: int) -> bool:
    """Lock a file for as long as it is open; return whether nobody else has."""
    if sys.platform != "win32":
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _unlock(fd: int) -> None:
    if sys.platform != "win32":  # a process that was forked meanwhile has the file open as well
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def _lies_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _discarded(making: asyncio.Future[_Part]) -> None:
    """Remove a part whose download was cancelled while it was being made."""
    if not making.cancelled() and making.exception() is None:
        asyncio.get_running_loop().run_in_executor(None, making.result().discard)


def _write_all(fd: int, pieces: list[Piece]) -> None:
    if hasattr(os, "writev") and pieces:
        written = os.writev(fd, pieces[:_MOST_PIECES])
        if written == sum(map(len, pieces)):
            return
        pieces = [b"".join(pieces)[written:]]
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]


# The kernel takes no more pieces in one writev (IOV_MAX on Linux and macOS).
_MOST_PIECES = 1024


def _remove_leftovers(target: Path, ours: Path) -> None:
    """Remove what killed processes left of this target."""
    prefix = _prefix(target)
    with os.scandir(target.parent) as entries:  # names alone: there may be very many
        names = [entry.name for entry in entries if entry.name.startswith(prefix)]
    for name in names:
        if name.endswith(_SUFFIX) and name != ours.name:
            with suppress(OSError):  # it is gone already, or another process has it (Windows)
                _remove_if_left(target.with_name(name))


def _remove_if_left(path: Path) -> None:
    if sys.platform == "win32":
        path.unlink()
        return
    fd = os.open(path, os.O_RDWR)
    try:
        if _lock(fd) and _lies_at(fd, path):
            path.unlink()
    finally:
        os.close(fd)


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # a directory cannot be opened on Windows
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _has(path: Path, size: int, sha256: str) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


@contextmanager
def _disk(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full; make room" if full else error.strerror or str(error)
        raise DownloadError(f"{target} cannot be written: {why}.") from error


def _inflater(encoding: str) -> Any:
    """Return what undoes an encoding that was not asked for, ``None`` where there is none."""
    if encoding == "identity":
        return None
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: either header is recognised


def _content_range(response: aiohttp.ClientResponse) -> tuple[int, int] | None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else None


def _plain_length(response: aiohttp.ClientResponse) -> int | None:
    encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    return None if encoded else response.content_length


def _validator(response: aiohttp.ClientResponse) -> str:
    """Return what pins the content: a strong ETag (If-Range takes no other), or nothing."""
    etag = response.headers.get("ETag", "")
    encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    return etag if etag.startswith('"') and not encoded else ""
