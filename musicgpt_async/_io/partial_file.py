"""The temporary file of a download: locked, hashed, and renamed when it is complete.

Only one process holds the lock at a time. If that process dies, the kernel releases it; a waiting
process then finds the complete file, or downloads it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from musicgpt_async.errors import DownloadError

if sys.platform != "win32":
    import fcntl

Chunk = bytes | memoryview

_HEAD = 512
_SUFFIX = ".part"
# Longest name in bytes on common file systems.
_MAX_NAME_BYTES = 255
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


@attrs.define
class PartialFile:
    """A temporary file. Its methods block, so they run on the executor.

    After a cancellation the last write may still run there; an internal mutex keeps the file open
    for it.

    Attributes:
        target: The final path.
        path: The temporary path, equal in every process that downloads the same content there.
        is_locked: Whether this process holds the lock.
        is_committed: Whether another process completed the file while this one waited.
    """

    target: Path
    path: Path
    _fd: int
    _digest: Any
    is_locked: bool = False
    is_committed: bool = False
    size: int = 0
    head: bytes = b""
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    @classmethod
    def create(cls, target: Path, content_key: str, digest: bool) -> PartialFile:
        with _map_disk_errors(target):
            path = _sibling(
                target, hashlib.sha256(content_key.encode(errors="replace")).hexdigest()[:8]
            )
            if sys.platform == "win32":  # other processes cannot remove or rename an open file
                path = _sibling(target, secrets.token_hex(4))
            try:
                fd = _open_partial(path)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                fd = _open_partial(path)
            part = cls(target, path, fd, hashlib.sha256() if digest else None)
        try:
            part.try_lock()
        except BaseException:
            part.discard()
            raise
        return part

    def try_lock(self) -> None:
        """Acquire the lock, unless another process holds it."""
        with self._lock, _map_disk_errors(self.target):
            while not self.is_locked and self.is_open and self._is_free():
                if _is_same_file(self._fd, self.path):
                    os.ftruncate(self._fd, 0)  # left by a process that died; its links have expired
                    _remove_leftovers(self.target, self.path)
                    self.is_locked = True
                elif _is_same_file(self._fd, self.target):
                    self._adopt_committed()
                else:  # its holder has removed it
                    self._close()
                    self._fd = _open_partial(self.path)

    def _is_free(self) -> bool:
        try:
            return _lock(self._fd)
        except OSError:  # a file system without locks: use a name that no other process has
            if not os.fstat(self._fd).st_size:
                self.path.unlink(missing_ok=True)
            self._close()
            self.path = _sibling(self.target, secrets.token_hex(4))
            self._fd = _open_partial(self.path)
            return True

    def _adopt_committed(self) -> None:
        self.is_locked = self.is_committed = True
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

    def content_digest(self) -> str:
        """Return the digest of the bytes written so far."""
        with self._lock, _map_disk_errors(self.target), os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            try:
                return hashlib.file_digest(file, "sha256").hexdigest()
            finally:
                file.seek(0, os.SEEK_END)  # both descriptors share one position

    def append(self, chunks: list[Chunk]) -> None:
        with self._lock, _map_disk_errors(self.target):
            _write_all(self._fd, chunks)
            for chunk in chunks if self._digest else ():
                self._digest.update(chunk)
            for chunk in chunks if len(self.head) < _HEAD else ():
                self.head += chunk[: _HEAD - len(self.head)]
            self.size += sum(map(len, chunks))

    def restart(self) -> None:
        with self._lock, _map_disk_errors(self.target):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self.size, self.head = 0, b""
            self._digest = self._digest and hashlib.sha256()

    def commit(self) -> None:
        """Flush the complete file to disk and rename it to its target, atomically.

        The order makes the file complete or absent after a crash: content, then name, then
        directory.
        """
        with self._lock, _map_disk_errors(self.target):
            os.fsync(self._fd)
            if not _is_same_file(self._fd, self.path):
                raise FileNotFoundError(errno.ENOENT, "its temporary file was removed")
            if sys.platform == "win32":  # which cannot rename an open file
                self._close()
            self.path.replace(self.target)
            _sync_directory(self.target.parent)
            self._close()  # not earlier: without the lock another process would take it over

    def discard(self) -> None:
        with self._lock:
            own = self.is_open and (self.is_locked or _lock(self._fd))
            unfinished = own and _is_same_file(self._fd, self.path)
            if sys.platform == "win32":  # which cannot remove an open file
                self._close()
            if unfinished:
                self.path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        if self.is_open:
            _unlock(self._fd)
            os.close(self._fd)
            self._fd = -1


def _sibling(target: Path, mark: str) -> Path:
    return target.with_name(f"{_prefix(target)}{mark}{_SUFFIX}")


def _prefix(target: Path) -> str:
    # "." and ".01234567.part" are added; the name is cut between characters.
    room = _MAX_NAME_BYTES - len(f"..{'0' * 8}{_SUFFIX}")
    return f".{os.fsencode(target.name)[:room].decode(errors='ignore')}."


def _open_partial(path: Path) -> int:
    """Open a temporary file. Its name is predictable, so symbolic links and pipes are refused."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file; remove it")
    return fd


def _lock(fd: int) -> bool:
    """Lock an open file; return False if another process holds the lock."""
    if sys.platform != "win32":
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _unlock(fd: int) -> None:
    if sys.platform != "win32":  # a child that was forked meanwhile has the file open too
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _write_all(fd: int, chunks: list[Chunk]) -> None:
    if hasattr(os, "writev") and chunks:
        written = os.writev(fd, chunks[:_MAX_BUFFERS])
        if written == sum(map(len, chunks)):
            return
        chunks = [b"".join(chunks)[written:]]
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]


# Most buffers in one writev (IOV_MAX on Linux and macOS).
_MAX_BUFFERS = 1024


def _remove_leftovers(target: Path, own: Path) -> None:
    """Remove temporary files of this target that killed processes have left."""
    prefix = _prefix(target)
    for name in _list_partial_files(target.parent):
        if name.startswith(prefix) and name != own.name:
            with suppress(OSError):  # it was removed already, or is open elsewhere (Windows)
                _remove_if_left(target.with_name(name))


@attrs.frozen
class _Listing:
    """The temporary files that were in a directory.

    Attributes:
        names: Theirs alone.
        expires_at: On the monotonic clock, in seconds.
    """

    names: tuple[str, ...]
    expires_at: float


_listings: dict[Path, _Listing] = {}
_MAX_LISTINGS = 64  # directories
# A directory of 400,000 stems takes 0.2 s to list, and is not listed again for each of them.
_MAX_LISTING_SHARE = 0.05  # of the time since the last listing


def _list_partial_files(directory: Path) -> tuple[str, ...]:
    listing = _listings.get(directory)
    if listing is not None and time.monotonic() < listing.expires_at:
        return listing.names
    started = time.thread_time()
    with os.scandir(directory) as entries:  # names alone: there may be very many
        names = tuple(entry.name for entry in entries if entry.name.endswith(_SUFFIX))
    spent = time.thread_time() - started
    if len(_listings) >= _MAX_LISTINGS:
        _listings.clear()
    _listings[directory] = _Listing(names, time.monotonic() + spent / _MAX_LISTING_SHARE)
    return names


def _remove_if_left(path: Path) -> None:
    if sys.platform == "win32":
        path.unlink()
        return
    fd = os.open(path, os.O_RDWR | _FLAGS)
    try:
        if _lock(fd) and _is_same_file(fd, path):
            path.unlink()
    finally:
        os.close(fd)


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # Windows cannot open a directory
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def matches(path: Path, size: int, sha256: str) -> bool:
    """Return whether a file with this content exists; then what was left of it is removed."""
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            is_same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        if is_same:  # a process may have been killed that downloaded it a second time
            _remove_leftovers(path, path)
    except OSError:
        return False
    return is_same


@contextmanager
def _map_disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space" if full else error.strerror or str(error)
        raise DownloadError(f"{target} cannot be written: {reason}.") from error
