"""Parse and open sources: paths, URLs, bytes, file objects and streams."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path, PurePath
from typing import Any, Protocol

import attrs

from musicgpt_async._io.content import InFile, InMemory, InReader, ReadableTrack, spool
from musicgpt_async._rules.filenames import name_in_url
from musicgpt_async.errors import InvalidOptionError


class BinaryReader(Protocol):
    """A binary file object, an upload of a web framework or an aiofiles handle."""

    def read(self, size: int, /) -> bytes | Awaitable[bytes]:
        """Return up to ``size`` bytes from the current position, ``b""`` at the end."""


AudioSource = (
    str
    | os.PathLike[str]
    | bytes
    | BinaryReader
    | AsyncIterable[bytes]
    | tuple[str, bytes]
    | tuple[str, BinaryReader]
    | tuple[str, AsyncIterable[bytes]]
)
"""A path, an http(s) URL, bytes, anything with ``read()`` or an async iterable of bytes.

All but paths and URLs can have a name: ``("song.mp3", data)``.
"""

DEFAULT_NAME = "audio"  # file name of a source that has none
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # "C://" is a drive


@attrs.frozen
class Track:
    """A parsed source that is not opened yet.

    Attributes:
        name: File name to send.
        location: Absolute path or URL; empty if another process cannot read it again.
        content: The data to send; ``None`` for a URL, which MusicGPT downloads.
    """

    name: str
    location: str
    content: Path | bytes | BinaryReader | AsyncIterable[bytes] | None = attrs.field(repr=False)

    @property
    def title(self) -> str:
        """The name without its extension."""
        return PurePath(self.name).stem or DEFAULT_NAME


def parse_source(source: AudioSource, *, label: str | None = None) -> Track:
    """Return a source as a track, without reading it.

    Args:
        source: The source, with or without a name.
        label: The caller's name for it.

    Raises:
        InvalidOptionError: The source has a type or a URL that cannot be submitted.
    """
    if isinstance(source, str) and (scheme := _SCHEME.match(source)):
        return _parse_url(source, scheme[1].lower())
    if isinstance(source, (str, os.PathLike)):
        plain = os.fsdecode(source)
        path = Path(os.path.abspath(plain))  # noqa: PTH100 - Path.absolute() keeps the ".."
        return Track(path.name, str(path), path)
    content: Any = source
    name: Any = None
    if isinstance(source, tuple) and len(source) == 2:
        name, content = source
        if not isinstance(name, str):
            raise _cannot_submit(source)
    if isinstance(content, (bytearray, memoryview)):
        content = bytes(content)
    if isinstance(content, io.TextIOBase) or hasattr(content, "encoding"):
        raise InvalidOptionError(
            "A file in text mode cannot be submitted; open it in binary mode: open(path, 'rb')."
        )
    if not isinstance(content, (bytes, AsyncIterable)) and not _is_reader(content):
        raise _cannot_submit(source)
    if name is None:
        name = _find_name(content) or label or DEFAULT_NAME
    return Track(PurePath(name).name or DEFAULT_NAME, "", content)


def _parse_url(source: str, scheme: str) -> Track:
    if scheme not in ("http", "https"):
        raise InvalidOptionError(
            f"{source[:200]!r} cannot be submitted: MusicGPT downloads http and https URLs only."
        )
    if not _is_printable(source):
        raise InvalidOptionError(f"{source[:200]!r} is not a URL (it has a control character).")
    return Track(_name_from_url(source), source, None)


def _cannot_submit(source: object) -> InvalidOptionError:
    return InvalidOptionError(
        f"A {type(source).__name__} cannot be submitted. Use a path, an http(s) URL, bytes, a "
        "binary file object or an async iterable of bytes; all but the first two can have a "
        'name: ("song.mp3", data).'
    )


def _is_reader(content: object) -> bool:
    return callable(getattr(content, "read", None)) and not isinstance(content, type)


def _find_name(content: object) -> str | None:
    """Return the file name of a file object or an upload, or ``None``."""
    names = (getattr(content, attribute, None) for attribute in ("filename", "name"))
    return next((name for name in names if isinstance(name, str) and name), None)


def _is_printable(url: str) -> bool:
    """Return whether a URL has no control characters, which could split a field or a log line."""
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in url)


def _name_from_url(url: str) -> str:
    try:
        return name_in_url(url) or DEFAULT_NAME
    except ValueError as error:
        raise InvalidOptionError(f"{url[:200]!r} is not a URL ({error}).") from error


@asynccontextmanager
async def open_track(track: Track, executor: Executor) -> AsyncIterator[ReadableTrack | None]:
    """Open the content of a track for the duration of its submission; ``None`` for a URL.

    Raises:
        SourceError: The source cannot be read, or is empty.
    """
    content = track.content
    async with AsyncExitStack() as stack:
        if content is None:
            yield None
        elif isinstance(content, bytes):
            yield await InMemory.of(track.name, content, executor)
        elif isinstance(content, Path):
            file = await InFile.open(track.name, content, executor)
            stack.push_async_callback(file.aclose)
            yield file
        elif reader := await InReader.open(track.name, content, executor):
            yield reader
        else:
            path = await spool(track.name, content, executor, stack)
            # The temporary file's own times say nothing about the stream.
            file = attrs.evolve(await InFile.open(track.name, path, executor), version="")
            stack.push_async_callback(file.aclose)
            yield file
