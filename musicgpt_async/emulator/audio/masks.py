"""Spectral masks of the stems: the share of each stem in its parent signal.

`SHARES` is the tree of stems. The shares of the children of one parent add up to one in every cell,
so the stems add up to their parent for any music.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from musicgpt_async.emulator.catalogue import SONG

Floats = NDArray[np.float32]
Cells = NDArray[np.complex64]

_TINY = np.float32(1e-9)
_REACH = 8  # neighbouring frames or bins on either side with which a cell is compared
_VOICE = (150.0, 7_000.0)
_TUNED = (180.0, 900.0, 4_000.0)
_DRUMS = (110.0, 220.0, 1_500.0, 5_000.0, 9_000.0)
_GUITARS = (300.0, 500.0, 700.0)
_VOICES = (320.0,)
_ECHO_LAGS = range(6, 22)
_REVERB_LAGS = range(2, 7)


class Masks:
    """The masks of one block of audio, by frames and bins, from 0 to 1.

    Args:
        cells: Spectrum by frames, channels and bins.
        frequencies: Frequencies of the bins in Hz.
        preprocessing: Options that are applied before the stems are separated.
    """

    def __init__(self, cells: Cells, frequencies: Floats, preprocessing: Sequence[str]) -> None:
        middle = cells.mean(axis=1)
        centre, side = np.abs(middle), np.abs(cells - middle[:, np.newaxis]).mean(axis=1)
        loudness = centre + side
        self.frequencies = frequencies
        self.centred: Floats = (centre**2 + _TINY) / (centre**2 + 4 * side**2 + _TINY)
        self.percussive: Floats = _percussive(loudness)
        cleaned = np.ones_like(loudness)
        for option in preprocessing:
            cleaned *= PREPROCESSORS[option](loudness)
        self._masks: dict[str, Floats] = {SONG: cleaned}

    def of(self, stem: str) -> Floats:
        """Return the mask of a stem, or of the song."""
        if stem not in self._masks:
            whole, share = SHARES[stem]
            self._masks[stem] = self.of(whole) * share(self)
        return self._masks[stem]

    def voice(self) -> Floats:
        """Return the mask of voices: harmonic, central, within the range of a voice."""
        band = self.above(_VOICE[0]) - self.above(_VOICE[1])
        return np.float32(0.8) * (1 - self.percussive) * self.centred * band

    def above(self, frequency: float) -> Floats:
        """Return the mask of everything above a frequency, with a soft edge."""
        ratio = (self.frequencies / np.float32(frequency)) ** 6
        return (ratio / (1 + ratio)).astype(np.float32)

    def band(self, edges: Sequence[float], index: int) -> Floats:
        """Return the mask of one of the bands between the edges."""
        lower = self.above(edges[index - 1]) if index else np.ones_like(self.frequencies)
        return lower - self.above(edges[index]) if index < len(edges) else lower


Share = Callable[[Masks], Floats]


def _band(edges: Sequence[float], index: int) -> Share:
    return lambda masks: masks.band(edges, index)


def _central(masks: Masks) -> Floats:
    return 0.25 + 0.5 * masks.centred


def _tuned(index: int, *, central: bool) -> Share:
    """Return the central or the lateral half of a band of the harmonic part."""

    def share(masks: Masks) -> Floats:
        part = _central(masks)
        return masks.band(_TUNED, index) * (part if central else 1 - part)

    return share


SHARES: Mapping[str, tuple[str, Share]] = {
    "vocals": (SONG, lambda masks: masks.voice()),
    "instrumental": (SONG, lambda masks: 1 - masks.voice()),
    "lead_vocal": ("vocals", lambda masks: 0.1 + 0.8 * masks.centred),
    "back_vocal": ("vocals", lambda masks: 0.9 - 0.8 * masks.centred),
    "male_vocal": ("vocals", _band(_VOICES, 0)),
    "female_vocal": ("vocals", _band(_VOICES, 1)),
    "drums": ("instrumental", lambda masks: masks.percussive),
    "kick_drum": ("drums", _band(_DRUMS, 0)),
    "toms": ("drums", _band(_DRUMS, 1)),
    "snare_drum": ("drums", _band(_DRUMS, 2)),
    "ride": ("drums", _band(_DRUMS, 3)),
    "hi_hat": ("drums", _band(_DRUMS, 4)),
    "crash": ("drums", _band(_DRUMS, 5)),
    "tuned": ("instrumental", lambda masks: 1 - masks.percussive),
    "bass": ("tuned", _band(_TUNED, 0)),
    "guitar": ("tuned", _tuned(1, central=False)),
    "piano": ("tuned", _tuned(1, central=True)),
    "keys": ("tuned", _tuned(2, central=False)),
    "strings": ("tuned", _tuned(2, central=True)),
    "winds": ("tuned", _band(_TUNED, 3)),
    "rhythm_guitar": ("guitar", _band(_GUITARS, 0)),
    "acoustic_guitar": ("guitar", _band(_GUITARS, 1)),
    "electric_guitar": ("guitar", _band(_GUITARS, 2)),
    "solo_guitar": ("guitar", _band(_GUITARS, 3)),
}
"""Stem → its parent, and its share of it."""


def _percussive(loudness: Floats) -> Floats:
    """Return how percussive each cell is: spread over frequency rather than over time."""
    roots = np.sqrt(loudness)
    over_time, over_bins = _smooth(roots, 0) ** 4, _smooth(roots, 1) ** 4
    return (over_bins + _TINY) / (over_bins + over_time + 2 * _TINY)


def _smooth(values: Floats, axis: int) -> Floats:
    """Return the moving mean over `_REACH` neighbours on either side."""
    pads = [(0, 0)] * values.ndim
    pads[axis] = (_REACH + 1, _REACH)
    sums = np.cumsum(np.pad(values, pads, mode="edge"), axis=axis, dtype=np.float64)
    width = 2 * _REACH + 1
    by_axis = np.moveaxis(sums, axis, 0)
    means = (by_axis[width:] - by_axis[:-width]) / width
    smooth: Floats = np.moveaxis(means, 0, axis).astype(np.float32)
    return smooth


def _denoise(loudness: Floats) -> Floats:
    """Return a gain that removes steady, broadband noise."""
    sounding = loudness[loudness.any(axis=1)]
    if not len(sounding):
        return np.ones_like(loudness)
    lowest: Floats = np.percentile(sounding, 20, axis=0).astype(np.float32)
    floor = np.minimum(lowest, _smooth(lowest, 0))
    gain: Floats = np.clip(1 - 2 * floor / (loudness + _TINY), 0.1, 1).astype(np.float32)
    return gain


def _without_tail(lags: range) -> Callable[[Floats], Floats]:
    """Return a gain that reduces what is softer than the same bin shortly before."""

    def gain(loudness: Floats) -> Floats:
        before = np.zeros_like(loudness)
        for lag in lags:
            np.maximum(before[lag:], loudness[:-lag], out=before[lag:])
        return np.clip(loudness / (before + _TINY), 0.15, 1).astype(np.float32)

    return gain


PREPROCESSORS: Mapping[str, Callable[[Floats], Floats]] = {
    "Denoise": _denoise,
    "Deecho": _without_tail(_ECHO_LAGS),
    "Dereverb": _without_tail(_REVERB_LAGS),
}
"""The effect of each preprocessing option on the spectrum."""
