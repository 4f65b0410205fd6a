"""Render result files, by a real separation or as noise for load tests."""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from musicgpt_async.emulator.audio import pseudo
from musicgpt_async.emulator.vendor import Submission

PSEUDO_BYTES_PER_SECOND = 16_000
"""Bytes per second of MP3 at 128 kbit/s, from which a duration is estimated."""

PSEUDO_STEM_BYTES = 64 * 1024
"""The default size of a stem of noise, in bytes."""


class UnreadableAudioError(Exception):
    """The audio cannot be decoded; the message becomes the conversion's status_msg."""


class StemRenderer(Protocol):
    """Renderer of the files of a conversion."""

    async def duration(self, audio: Path | None, size: int) -> float | None:
        """Return the seconds of audio received, or None if unknown before the separation."""

    async def prepare(self, submission: Submission, audio: Path | None, size: int) -> float:
        """Carry out a conversion and return its seconds of audio."""

    async def file(self, submission: Submission, stem: str, suffix: str) -> Path:
        """Return the file of one stem; `suffix` is ".wav" or ".mp3"."""


class _RunOnce:
    """Runner of blocking work, at most once per key, on an executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._made: dict[Any, asyncio.Future[Any]] = {}

    async def run(self, key: Any, work: Callable[..., Any], *args: Any) -> Any:
        if key not in self._made:
            loop = asyncio.get_running_loop()
            self._made[key] = loop.run_in_executor(self._executor, work, *args)
        return await asyncio.shield(self._made[key])


class NoiseRenderer:
    """Renderer of noise of a fixed size, which depends on the audio and the stem's name."""

    def __init__(self, directory: Path, executor: Executor, stem_bytes: int | None) -> None:
        self._directory = directory
        self._once = _RunOnce(executor)
        self._size = PSEUDO_STEM_BYTES if stem_bytes is None else stem_bytes

    async def duration(self, audio: Path | None, size: int) -> float | None:  # noqa: ARG002
        """Return the duration of an MP3 of this size."""
        return size / PSEUDO_BYTES_PER_SECOND if size else None

    async def prepare(self, submission: Submission, audio: Path | None, size: int) -> float:  # noqa: ARG002
        """Refuse an empty file; the stems are written when they are downloaded."""
        if not size:
            raise UnreadableAudioError("The audio is empty")
        return size / PSEUDO_BYTES_PER_SECOND

    async def file(self, submission: Submission, stem: str, suffix: str) -> Path:
        """Return a file that all conversions of the same audio share."""
        seed = f"{submission.upload.fingerprint} {stem}"
        name = hashlib.sha256(seed.encode()).hexdigest()[:32] + suffix
        path = self._directory / name
        await self._once.run(name, _write_pseudo, path, seed, self._size)
        return path


def _write_pseudo(path: Path, seed: str, size: int) -> None:
    pseudo.write(path, seed=seed, size=size)


class SeparatingRenderer:
    """Renderer of stems that add up to the song, by `separation.py`."""

    def __init__(self, directory: Path, executor: Executor) -> None:
        self._directory = directory
        self._executor = executor
        self._once = _RunOnce(executor)
        self._separation = require_separation()
        self._is_stopped = False

    def stop(self) -> None:
        """Stop the running separations."""
        self._is_stopped = True

    async def duration(self, audio: Path | None, size: int) -> float | None:
        """Return the duration in the file's header."""
        if audio is None or not size:
            return None
        loop = asyncio.get_running_loop()
        length: float | None = await loop.run_in_executor(
            self._executor, self._separation.duration, audio
        )
        return length

    async def prepare(self, submission: Submission, audio: Path | None, size: int) -> float:
        """Separate the audio into WAV files of the requested stems."""
        if audio is None or not size:
            raise UnreadableAudioError("The audio is empty")
        folder = self._directory / submission.conversion_id
        loop = asyncio.get_running_loop()
        try:
            length: float = await loop.run_in_executor(
                self._executor, self._split, audio, folder, submission
            )
        except self._separation.UndecodableError as error:
            raise UnreadableAudioError(
                f"The audio could not be decoded: {error} The emulator decodes "
                f"{self._separation.DECODED}; the real MusicGPT may support more."
            ) from error
        return length

    def _split(self, audio: Path, folder: Path, submission: Submission) -> float:
        folder.mkdir()
        separate: Callable[..., float] = self._separation.separate
        paths = {stem: folder / f"{stem}.wav" for stem in submission.stems}
        return separate(
            audio,
            paths,
            preprocessing=submission.preprocessing,
            is_stopped=lambda: self._is_stopped,
        )

    async def file(self, submission: Submission, stem: str, suffix: str) -> Path:
        """Return the stem's file; an MP3 is encoded at its first download."""
        wav = self._directory / submission.conversion_id / f"{stem}.wav"
        if suffix == ".wav":
            return wav
        path = wav.with_suffix(suffix)
        await self._once.run(path, self._separation.encode_mp3, wav, path)
        return path


def require_separation() -> ModuleType:
    """Import the separation, or raise an ImportError that names the extra it needs."""
    try:
        from musicgpt_async.emulator.audio import separation  # noqa: PLC0415  numpy is an extra
    except ImportError as error:
        raise ImportError(
            "the emulator's separation needs numpy and soundfile: "
            'pip install "musicgpt-async[emulator]" (or Emulator(separate=False))'
        ) from error
    return separation
