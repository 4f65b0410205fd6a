"""Parse the multipart bodies of submits as a stream, and write their audio to files."""

import asyncio
import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import attrs
from aiohttp import BodyPartReader, hdrs, multipart, web

from musicgpt_async.emulator.catalogue import DEFAULT_STEMS, PREPROCESSING, STEMS
from musicgpt_async.emulator.generations import Generation
from musicgpt_async.emulator.vendor import Refusal, Upload, invalid

_HEAD = 4096
_TEXT_FIELDS = ("audio_url", "stems", "preprocessing_options", "webhook_url")
_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})

BLOCK = 1 << 20
"""Bytes per write to disk, on the executor."""


class _UploadFile:
    """The file of one upload; a block is written while the next one is received."""

    def __init__(self, executor: Executor, directory: Path | None) -> None:
        self._executor = executor
        self._directory = directory
        self._file: BinaryIO | None = None
        self._gathered: list[bytes] = []
        self._pending = 0
        self._writing: asyncio.Future[None] | None = None
        self._head = b""
        self.size = 0
        self.path: Path | None = None

    @property
    def fingerprint(self) -> str:
        """A cheap checksum that distinguishes uploads well enough for pseudo-audio."""
        return f"{self.size}-{zlib.crc32(self._head):08x}"

    async def write(self, chunk: bytes) -> None:
        if len(self._head) < _HEAD:
            self._head += chunk[: _HEAD - len(self._head)]
        self.size += len(chunk)
        if self._directory is None:
            return
        self._gathered.append(chunk)
        self._pending += len(chunk)
        if self._pending >= BLOCK:
            await self._flush()

    async def _flush(self) -> None:
        await self._wait()
        blocks, self._gathered, self._pending = self._gathered, [], 0
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(self._executor, self._store, blocks)

    async def _wait(self) -> None:
        """Wait for the current write, which a cancellation does not interrupt."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            if error := self._writing.exception():
                self._writing = None
                raise error

    def _store(self, blocks: list[bytes]) -> None:
        if self._file is None:
            descriptor, name = tempfile.mkstemp(dir=self._directory, prefix="upload-")
            self.path, self._file = Path(name), os.fdopen(descriptor, "wb")
        self._file.writelines(blocks)

    async def close(self, *, keep: bool) -> None:
        if self._directory is None:
            return
        if keep:
            await self._flush()
        await self._wait()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._finish, keep)

    def _finish(self, keep: bool) -> None:
        if self._file is not None:
            self._file.close()
        if self.path is not None and not keep:
            self.path.unlink(missing_ok=True)


@attrs.frozen
class UploadParser:
    """Parser of submits; if `directory` is None, audio is counted and discarded."""

    executor: Executor
    directory: Path | None
    generation: Generation

    async def receive(self, request: web.Request) -> Upload:
        """Return the upload in a submit's body, or raise a `Refusal`."""
        fields: dict[str, str] = {}
        if request.content_type != "multipart/form-data":
            form = await request.post()  # an urlencoded form, which can only have an audio_url
            fields |= {name: value for name, value in form.items() if isinstance(value, str)}
            return self._validate(fields, None, _UploadFile(self.executor, None))
        async with self._sink() as sink:
            name = await self._read(request, sink, fields)
            return self._validate(fields, name, sink)

    async def discard(self, upload: Upload | None) -> None:
        """Delete the audio of an upload that was not accepted."""
        if upload is not None and upload.audio is not None:
            await asyncio.get_running_loop().run_in_executor(self.executor, upload.audio.unlink)

    def _validate(self, fields: dict[str, str], name: str | None, sink: _UploadFile) -> Upload:
        if fields.get("audio_file"):  # an empty string is not a file
            raise invalid(["body", "audio_file"], "Expected UploadFile, received: <class 'str'>")
        url = fields.get("audio_url", "").strip() or None
        if name is None and url is None:
            raise _missing_audio()
        if name is not None and url is not None:
            raise invalid(["body"], "Provide either audio_file or audio_url, not both")
        return Upload(
            fields=fields,
            stems=self._options(fields, "stems", STEMS) or DEFAULT_STEMS,
            preprocessing=self._options(fields, "preprocessing_options", PREPROCESSING),
            webhook_url=_url(fields, "webhook_url"),
            audio_url=_url(fields, "audio_url"),
            file_name=name,
            size=sink.size,
            audio=sink.path,
            fingerprint=sink.fingerprint if name else f"url-{url}",
            eco_mode=self.generation.eco_mode and _eco_mode(fields),
        )

    def _options(
        self, fields: dict[str, str], field: str, allowed: tuple[str, ...]
    ) -> tuple[str, ...]:
        try:
            return _choice(fields, field, allowed)
        except Refusal:
            if self.generation.invalid_options == 422:
                raise
            raise Refusal(self.generation.invalid_options, "Invalid request parameters") from None

    @contextlib.asynccontextmanager
    async def _sink(self) -> AsyncIterator[_UploadFile]:
        sink = _UploadFile(self.executor, self.directory)
        try:
            yield sink
        except BaseException:
            await asyncio.shield(sink.close(keep=False))
            raise

    async def _read(
        self, request: web.Request, sink: _UploadFile, fields: dict[str, str]
    ) -> str | None:
        """Read all parts up to the closing boundary; return the name of the file, if any."""
        name = None
        try:
            async for part in await request.multipart():
                if not isinstance(part, BodyPartReader):
                    raise Refusal(400, "There was an error parsing the body")
                if not _is_file(part):
                    fields[part.name or ""] = (await part.read(decode=True)).decode()
                elif part.name == "audio_file" and part.filename:
                    name = part.filename
                    await _drain(part, sink)
                elif part.name in _TEXT_FIELDS:
                    await part.read()
                    raise invalid(
                        ["body", part.name], "Input should be a valid string", "string_type"
                    )
        except (ValueError, AssertionError) as error:
            raise Refusal(400, "There was an error parsing the body") from error
        await sink.close(keep=True)
        return name


def _is_file(part: BodyPartReader) -> bool:
    """Return whether a part has a file name, which may be empty."""
    disposition = part.headers.get(hdrs.CONTENT_DISPOSITION)
    _, parameters = multipart.parse_content_disposition(disposition)
    return any(name in parameters for name in ("filename", "filename*"))


async def _drain(part: BodyPartReader, sink: _UploadFile) -> None:
    while chunk := await part.read_chunk(BLOCK):
        await sink.write(chunk)


def _missing_audio() -> Refusal:
    return Refusal(422, "Either audio_url or audio_file must be provided.")


def _eco_mode(fields: dict[str, str]) -> bool:
    """Return the value of the field, parsed as FastAPI parses a boolean."""
    word = fields.get("eco_mode", "").strip().lower() or "false"
    if word not in _TRUE | _FALSE:
        raise invalid(["body", "eco_mode"], "Input should be a valid boolean", "bool_parsing")
    return word in _TRUE


def _choice(fields: dict[str, str], field: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the value of a field with a JSON list of names in `allowed`."""
    text = fields.get(field, "").strip()
    try:
        names = json.loads(text) if text else []
    except ValueError:
        raise invalid(["body", field], "Invalid JSON", "json_invalid") from None
    if not isinstance(names, list):
        raise invalid(["body", field], "Input should be a valid list", "list_type")
    for index, name in enumerate(names):
        if name not in allowed:
            expected = ", ".join(f"'{each}'" for each in allowed)
            raise invalid(["body", field, str(index)], f"Input should be {expected}", "enum")
    return tuple(dict.fromkeys(names))


def _url(fields: dict[str, str], field: str) -> str | None:
    text = fields.get(field, "").strip()
    if not text:
        return None
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise invalid(["body", field], "Input should be a valid URL", "url_parsing")
    return text
