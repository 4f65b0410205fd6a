"""`demo`: separates a composed song, measures the stems and writes a report; no key, no network."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import attrs

from musicgpt_async import BatchItem, MusicGPTSession, Outcome
from musicgpt_async.cli import output, streams
from musicgpt_async.cli.run import Run, make_directory
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.text import plain
from musicgpt_async.cli.usage import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Wave = NDArray[np.float64]

SONG = "song.flac"
# Vocals and instrumental make up the song, the others the instrumental.
BAND = ("drums", "bass", "guitar", "piano", "keys", "strings", "winds")
STEMS = ("vocals", "instrumental", *BAND)


async def demonstrate(settings: Settings) -> int:
    """Compose, split and measure a song; return the exit code.

    Raises:
        UsageError: The demo could not start.
    """
    try:
        from musicgpt_async.emulator import Emulator  # noqa: PLC0415 - an extra, slow to import
        from musicgpt_async.emulator.audio.song import compose  # noqa: PLC0415 - the same

        vendor = Emulator(seconds=0.5)
    except ImportError as error:
        raise UsageError(
            'The demo needs numpy and soundfile: pip install "musicgpt-async[emulator]"'
        ) from error
    await anyio.to_thread.run_sync(make_directory, settings.out)
    song = await anyio.to_thread.run_sync(compose, settings.out / SONG)
    found: dict[str, Path] = {}

    async def outcomes(session: MusicGPTSession, _: Run) -> AsyncGenerator[Outcome, None]:
        tracks = [BatchItem(source=song, options={"stems": STEMS})]
        async for outcome in session.extract_many(tracks, settings.out):
            found.update({stem: Path(each["wav"]) for stem, each in output.files(outcome).items()})
            yield outcome

    async with vendor:
        here = attrs.evolve(
            settings, keeps_journal=False, api_key=vendor.api_key, base_url=vendor.base_url
        )
        code = await Run(here, total=1).execute(outcomes)
    if code == 0:
        for line in await anyio.to_thread.run_sync(_report, song, found):
            streams.write_result(line)
        await _write_report(settings)
    return code


async def _write_report(settings: Settings) -> None:
    from musicgpt_async.cli.report import report  # noqa: PLC0415 - an extra, slow to import

    try:
        await report(attrs.evolve(settings, quiet=True))
    except UsageError as error:  # its extra is not installed; the stems are there
        streams.say(str(error))


def _report(song: Path, stems: dict[str, Path]) -> list[str]:
    """Return the paths of the stems, their loudness, and how well they add up."""
    whole = _wave(song)
    waves = {stem: _wave(path) for stem, path in stems.items()}
    rows = [_row("(song)", whole, song)]
    # All are in one folder, which is shown as it was given.
    rows += [_row(stem, wave, song.with_name(stems[stem].name)) for stem, wave in waves.items()]
    instrumental = waves["instrumental"]
    return [
        f"{'STEM':<13}{'PEAK':>10}{'LEVEL':>10}  FILE",
        *rows,
        f"vocals + instrumental = song: {_error(whole, waves, ('vocals', 'instrumental'))}",
        f"{' + '.join(BAND)} = instrumental: {_error(instrumental, waves, BAND)}",
    ]


def _row(stem: str, wave: Wave, path: Path) -> str:
    peak = float(abs(wave).max(initial=0.0))
    level = math.sqrt(float((wave**2).mean()))
    return f"{stem:<13}{_decibels(peak):>10}{_decibels(level):>10}  {plain(str(path))}"


def _decibels(amplitude: float) -> str:
    return f"{20 * math.log10(amplitude):.1f} dB" if amplitude > 0 else "silent"


def _error(whole: Wave, waves: dict[str, Wave], parts: tuple[str, ...]) -> str:
    largest = float(abs(whole - sum(waves[stem] for stem in parts)).max())
    return f"largest error {largest:.6f} of full scale"


def _wave(path: Path) -> Wave:
    import soundfile  # noqa: PLC0415 - an extra

    samples: Wave = soundfile.read(str(path), dtype="float64", always_2d=True)[0]
    return samples
