"""Where the result files come from: a real separation, or a pretence for load tests."""

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
"""What a pretended duration goes by: the bytes of a second of MP3 at 128 kbit/s."""

PSEUDO_STEM_BYTES = 64 * 1024
"""The size of a pretended stem where none is set."""


class UnreadableAudioError(Exception):
    """The audio cannot be decoded; the text becomes the conversion's status_msg."""


class StemRenderer(Protocol):
    """Makes the files of a conversion."""

    async def duration(self, audio: Path | None, size: int) -> float | None:
        """The seconds of audio received; None where they are not known before the work."""

    async def prepare(self, submission: Submission, audio: Path | None, size: int) -> float:
        """Do the work of a conversion and tell the seconds of audio it was."""

    async def file(self, submission: Submission, stem: str, suffix: str) -> Path:
        """The file of one stem; `suffix` is ".wav" or ".mp3"."""


class _RunOnce:
    """Runs work for each key at most once, off the event loop, whoever asks and how often."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._made: dict[Any, asyncio.Future[Any]] = {}

    async def run(self, key: Any, work: Callable[..., Any], *args: Any) -> Any:
        if key not in self._made:
            loop = asyncio.get_running_loop()
            self._made[key] = loop.run_in_executor(self._executor, work, *args)
        return await asyncio.shield(self._made[key])


class NoiseRenderer:
    """Stems that are noise of a set size, the same for the same audio and stem name."""

    def __init__(self, directory: Path, executor: Executor, stem_bytes: int | None) -> None:
        self._directory = directory
        self._once = _RunOnce(executor)
        self._size = PSEUDO_STEM_BYTES if stem_bytes is None else stem_bytes

    async def duration(self, audio: Path | None, size: int) -> float | None:  # noqa: ARG002
        """What the size would last as an MP3."""
        return size / PSEUDO_BYTES_PER_SECOND if size else None

    async def prepare(self, submission: Submission, audio: Path | None, size: int) -> float:  # noqa: ARG002
        """Nothing but refuse an empty file: the stems are made when they are fetched."""
        if not size:
            raise UnreadableAudioError("The audio is empty")
        return size / PSEUDO_BYTES_PER_SECOND

    async def file(self, submission: Submission, stem: str, suffix: str) -> Path:
        """A file that the conversions of the same audio share."""
        seed = f"{submission.upload.fingerprint} {stem}"
        name = hashlib.sha256(seed.encode()).hexdigest()[:32] + suffix
        path = self._directory / name
        await self._once.run(name, _write_pseudo, path, seed, self._size)
        return path


def _write_pseudo(path: Path, seed: str, size: int) -> None:
    pseudo.write(path, seed=seed, size=size)


class SeparatingRenderer:
    """Stems that add up to the song, as `separation.py` splits it."""

    def __init__(self, directory: Path, executor: Executor) -> None:
        self._directory = directory
        self._executor = executor
        self._once = _RunOnce(executor)
        self._separation = require_separation()
        self._is_stopped = False

    def stop(self) -> None:
        """Call off the separations under way."""
        self._is_stopped = True

    async def duration(self, audio: Path | None, size: int) -> float | None:
        """The duration that the file's header tells."""
        if audio is None or not size:
            return None
        loop = asyncio.get_running_loop()
        length: float | None = await loop.run_in_executor(
            self._executor, self._separation.duration, audio
        )
        return length

    async def prepare(self, submission: Submission, audio: Path | None, size: int) -> float:
        """Split the audio into the WAV files of the stems asked for."""
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
                f"{self._separation.DECODED}; the real MusicGPT may know more."
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
        """The stem's file; an MP3 is encoded when it is first asked for."""
        wav = self._directory / submission.conversion_id / f"{stem}.wav"
        if suffix == ".wav":
            return wav
        path = wav.with_suffix(suffix)
        await self._once.run(path, self._separation.encode_mp3, wav, path)
        return path


def require_separation() -> ModuleType:
    """The separation, or an ImportError that names the extra it takes."""
    try:
        from musicgpt_async.emulator.audio import separation  # noqa: PLC0415  numpy is an extra
    except ImportError as error:
        raise ImportError(
            "the emulator's separation needs numpy and soundfile: "
            'pip install "musicgpt-async[emulator]" (or Emulator(separate=False))'
        ) from error
    return separation
