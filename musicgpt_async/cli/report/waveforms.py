"""What audio looks like: its loudest sample and its level in each of many equal parts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
import soundfile
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PARTS = 480
"""Parts that a file is divided into; a waveform is rarely drawn twice as many pixels wide."""

BLOCK = 1 << 16
"""Frames in memory at a time."""

MP3_BLOCK = 1 << 22
"""Of an MP3: libsndfile begins each block of one with some 40 ms of silence."""

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""What amplitudes are written in, a character each."""

SILENCE = 1e-3
"""Amplitudes below are not blown up."""


@attrs.frozen(eq=False)
class Waveform:
    """A file's outline.

    Attributes:
        seconds: Its length.
        peaks: The largest amplitude in each part, over all channels; 1 is full scale.
        levels: The root mean square in each part.
    """

    seconds: float
    peaks: Floats
    levels: Floats

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Read a file block by block; ``None`` for what cannot be decoded, or has no samples."""
        try:
            # As bytes: a name need not be UTF-8, and soundfile encodes text strictly.
            name = os.fsencode(path) if os.name == "posix" else str(path)
            with soundfile.SoundFile(name) as sound:
                if not sound.frames:
                    return None
                return cls(sound.frames / sound.samplerate, *_outline(sound))
        except (soundfile.SoundFileError, OSError):
            return None

    def encode(self, top: float) -> str:
        """Return the outline in two characters a part: all peaks, then all levels.

        They are square roots, which show a quiet stem beside a loud one as one hears it.

        Args:
            top: The amplitude that the largest digit represents.
        """
        heights = np.sqrt(np.concatenate([self.peaks, self.levels]) / top)
        scaled = heights * (len(DIGITS) - 1)
        return "".join(DIGITS[each] for each in np.clip(scaled.round(), 0, 63).astype(int))


def top_of(waveforms: Iterable[Waveform | None]) -> float:
    """Return the amplitude to draw waves against, so that they can be compared."""
    return max(
        [SILENCE, *(float(waveform.peaks.max()) for waveform in waveforms if waveform is not None)]
    )


def _outline(sound: Any) -> tuple[Floats, Floats]:
    total, at = sound.frames, 0
    parts = min(PARTS, total)
    peaks, squares, counts = np.zeros(parts), np.zeros(parts), np.ones(parts)
    block_size = MP3_BLOCK if sound.format == "MP3" else BLOCK
    buffer = np.empty((min(block_size, total), sound.channels), np.float32)
    while at < total and len(block := sound.read(out=buffer[: total - at])):
        end = at + len(block)
        for part in range(at * parts // total, (end - 1) * parts // total + 1):
            # The first frame of a part is the first that its number divides out for.
            first, after = (-(-each * total // parts) for each in (part, part + 1))
            samples = block[max(first, at) - at : after - at].reshape(-1)
            peaks[part] = max(peaks[part], samples.max(), -samples.min())
            squares[part] += np.dot(samples, samples)
            counts[part] = (after - first) * sound.channels
        at = end
    levels = np.sqrt(squares / counts)
    return np.nan_to_num(peaks, posinf=0.0), np.nan_to_num(levels, posinf=0.0)
