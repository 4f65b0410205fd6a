"""Synthesize a short demo song: drums, bass, chords and a voice-like lead."""

import hashlib
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

Wave = NDArray[np.float64]

RATE = 44_100
BEAT = 60 / 104
"""Seconds per beat."""

BARS = int(16 * BEAT * RATE)
"""Samples of the four bars that the song repeats."""

CHORDS = ((57, 60, 64, 67), (53, 57, 60, 64), (48, 55, 60, 64), (55, 59, 62, 69))
"""The chords of the four bars, as MIDI notes: Am7, Fmaj7, C, G."""

MELODY = (
    (0.0, 1.5, 69), (1.5, 0.5, 72), (2.0, 1.5, 76), (3.5, 0.5, 74),
    (4.0, 2.0, 72), (6.0, 1.0, 69), (7.0, 1.0, 67),
    (8.0, 1.5, 67), (9.5, 0.5, 69), (10.0, 1.0, 72), (11.0, 1.0, 76),
    (12.0, 2.5, 74), (14.5, 0.5, 71), (15.0, 1.0, 67),
)  # fmt: skip
"""The lead of the four bars: beat, length in beats, MIDI note."""

_FORMANTS = ((800.0, 1.0, 90.0), (1_200.0, 0.6, 110.0), (2_700.0, 0.25, 170.0))


def compose(path: Path | str, *, seconds: float = 20.0) -> Path:
    """Synthesize a song and write it as FLAC, WAV, OGG or MP3, by the suffix of `path`.

    The song is stereo at 44.1 kHz and repeats four bars of about nine seconds. Equal lengths give
    equal songs.
    """
    path = Path(path)
    frames = int(seconds * RATE)
    song = np.zeros((frames, 2))
    verse = _verse()
    for begin in range(0, frames, BARS):
        end = min(frames, begin + len(verse))
        song[begin:end] += verse[: end - begin]
    _add(song, 0, _crash(), gain=0.15, pan=-0.3)
    song *= 0.8 / max(0.8, float(np.abs(song).max(initial=0.0)))
    fade = min(frames, RATE // 2)
    song[frames - fade :] *= np.linspace(1, 0, fade)[:, np.newaxis]
    soundfile.write(str(path), song.astype(np.float32), RATE)
    return path


def tone(path: Path, seed: str, *, seconds: float = 3.0) -> None:
    """Write a WAV with a plain tone; the seed determines its pitch."""
    pitch = 45 + hashlib.sha256(seed.encode()).digest()[0] % 36
    wave = 0.5 * np.sin(2 * np.pi * _hertz(pitch) * _time(seconds))
    soundfile.write(str(path), wave.astype(np.float32), RATE, format="WAV")


def _verse() -> Wave:
    """Return the four bars, and the tail of the sounds that outlast them."""
    song = np.zeros((BARS + 2 * RATE, 2))
    for bar, chord in enumerate(CHORDS):
        _add(song, bar * 4, _pad(chord), gain=0.10, pan=-0.5)
        for beat in range(8):
            _add(song, bar * 4 + beat / 2, _pluck(chord[beat % 4] + 12), gain=0.16, pan=0.6)
        for when, step in ((0, 0), (1.5, 0), (2, 7), (3, 0), (3.5, 12)):
            _add(song, bar * 4 + when, _bass(chord[0] - 24 + step), gain=0.30)
    for beat in range(16):
        _add(song, beat, _snare() if beat % 2 else _kick(), gain=0.45)
        _add(song, beat + 0.5, _hat(), gain=0.15, pan=0.3)
    for when, length, note in MELODY:
        _add(song, when, _voice(note, length * BEAT), gain=0.34)
    return song


def _add(song: Wave, beat: float, wave: Wave, *, gain: float, pan: float = 0.0) -> None:
    """Mix a sound in at a beat; `pan` is -1 for left to 1 for right."""
    begin = int(beat * BEAT * RATE)
    end = min(len(song), begin + len(wave))
    if end > begin:
        sides = np.array([np.sqrt((1 - pan) / 2), np.sqrt((1 + pan) / 2)])
        song[begin:end] += gain * wave[: end - begin, np.newaxis] * sides * np.sqrt(2)


def _hertz(note: float) -> float:
    return float(440 * 2 ** ((note - 69) / 12))


def _time(seconds: float) -> Wave:
    return np.arange(int(seconds * RATE)) / RATE


def _noise(seconds: float, seed: int) -> Wave:
    return np.random.default_rng(seed).standard_normal(int(seconds * RATE))


def _swell(time: Wave, attack: float, release: float) -> Wave:
    """Return an envelope that rises at the start and falls at the end."""
    rise: Wave = np.minimum(1, time / attack)
    fall: Wave = np.minimum(1, (time[-1] - time) / release)
    return rise * fall


def _harmonics(phase: Wave, gains: tuple[float, ...]) -> Wave:
    total = np.zeros_like(phase)
    for number, gain in enumerate(gains, start=1):
        total += gain * np.sin(number * phase)
    return total


def _pad(chord: tuple[int, ...]) -> Wave:
    time = _time(4 * BEAT)
    total = np.zeros_like(time)
    for note in chord:
        for bend in (-0.06, 0.06):
            total += _harmonics(2 * np.pi * _hertz(note + bend) * time, (1, 0.4, 0.25, 0.1))
    return 0.3 * total * _swell(time, 0.15, 0.3)


def _pluck(note: int) -> Wave:
    time = _time(0.9)
    body = _harmonics(2 * np.pi * _hertz(note) * time, (1, 0.5, 0.33, 0.2, 0.12))
    return body * np.exp(-5 * time) * np.minimum(1, time / 0.002)


def _bass(note: int) -> Wave:
    time = _time(0.9 * BEAT)
    body = _harmonics(2 * np.pi * _hertz(note) * time, (1, 0.45, 0.15))
    return body * np.exp(-2 * time) * _swell(time, 0.005, 0.05)


def _kick() -> Wave:
    time = _time(0.3)
    drop: Wave = np.sin(2 * np.pi * (48 * time - 7 * np.exp(-18 * time)))
    return drop * np.exp(-11 * time)


def _snare() -> Wave:
    time = _time(0.22)
    rattle = 0.7 * _noise(0.22, 1) * np.exp(-18 * time)
    return rattle * 0.6 + np.sin(2 * np.pi * 190 * time) * np.exp(-25 * time) * 0.7


def _hat() -> Wave:
    time = _time(0.09)
    return np.diff(_noise(0.09, 2), prepend=0.0) * np.exp(-55 * time)


def _crash() -> Wave:
    time = _time(1.6)
    return np.diff(_noise(1.6, 3), prepend=0.0) * np.exp(-2.5 * time)


def _voice(note: int, seconds: float) -> Wave:
    """Return a tone with vibrato whose overtones have the formants of the vowel "ah"."""
    time = _time(seconds)
    depth = 0.012 * np.minimum(1, time / 0.35)
    pitch = _hertz(note) * (1 + depth * np.sin(2 * np.pi * 5.4 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    count = int(5_000 / _hertz(note))
    gains = [_vowel(number * _hertz(note)) / number**0.5 for number in range(1, count + 1)]
    return _harmonics(phase, tuple(gains)) * _swell(time, 0.06, 0.12)


def _vowel(frequency: float) -> float:
    peaks = [gain / (1 + ((frequency - f) / width) ** 2) for f, gain, width in _FORMANTS]
    return 0.08 + sum(peaks)
