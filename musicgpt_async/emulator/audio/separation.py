"""A simple stem separation: masks divide a song's spectrum among its stems.

Percussive and harmonic sounds are separated by their shape in the spectrogram, centre and sides by
comparing channels, and the rest by frequency bands; see `masks.py`. The masks of the children of a
stem add up to the stem's own, and the inverse transform is linear, so the stems add up as well. The
track is processed in blocks, so memory does not grow with its length.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import attrs
import numpy as np
import soundfile
from numpy.lib.stride_tricks import sliding_window_view

from musicgpt_async.emulator.audio.masks import Cells, Floats, Masks

BLOCK = 256
"""Spectral frames per block."""

CONTEXT = 24
"""Frames before and after a block that its masks take into account."""

WINDOW_SECONDS = 0.046
"""Approximate length of a spectral frame, which is a power of two of samples."""

DECODED = "WAV, AIFF, FLAC, Ogg (Vorbis and Opus) and MP3"
"""Common audio formats that libsndfile reads; AAC, and thus M4A, is not one of them."""

MP3_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
"""The sample rates of MP3 in Hz."""


class UndecodableError(Exception):
    """The audio has a format that libsndfile does not read, or is damaged."""


class StoppedError(Exception):
    """The separation was stopped."""


def duration(path: Path) -> float | None:
    """Return the seconds of audio in a file, or None if it cannot be read."""
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError:
        return None
    return float(info.frames / info.samplerate)


def separate(
    source: Path,
    stems: Mapping[str, Path],
    *,
    preprocessing: Sequence[str] = (),
    is_stopped: Callable[[], bool] = lambda: False,
) -> float:
    """Separate a track into WAV files, one for each stem.

    The files are 16 bit; a stem that would exceed full scale is written as 32 bit float, so that
    the files still add up.

    Args:
        source: The track.
        stems: Target files by stem name.
        preprocessing: Options that are applied before.
        is_stopped: Called for each block; true stops the separation.

    Returns:
        The seconds of audio.

    Raises:
        UndecodableError: The source cannot be decoded.
        StoppedError: `is_stopped` returned true.
    """
    split = _Split(source, preprocessing, is_stopped)
    try:
        loud = split.write(stems, "PCM_16")
        if loud:
            split.write({stem: stems[stem] for stem in loud}, "FLOAT")
    except soundfile.LibsndfileError as error:
        raise UndecodableError(error.error_string) from error
    if not split.frames:
        raise UndecodableError("it contains no samples")
    return split.frames / split.rate


@attrs.frozen
class Spectrum:
    """A transform to the spectrum and back, which is exact if nothing is changed in between.

    Frames overlap by half; the window is applied in both directions, and its squares add up to one.
    """

    hop: int
    window: Floats
    frequencies: Floats

    @classmethod
    def of(cls, rate: int) -> Self:
        """Return a transform with frames for a sample rate."""
        length = 1 << max(4, round(np.log2(rate * WINDOW_SECONDS)))
        phase = np.arange(length) / length
        return cls(
            hop=length // 2,
            window=np.sin(np.pi * phase).astype(np.float32),
            frequencies=np.fft.rfftfreq(length, 1 / rate).astype(np.float32),
        )

    def forward(self, samples: Floats) -> Cells:
        """Transform samples by channels to frames by channels and bins."""
        frames = sliding_window_view(samples, 2 * self.hop, axis=0)[:: self.hop]
        return np.fft.rfft(frames * self.window, axis=-1).astype(np.complex64, copy=False)

    def backward(self, cells: Cells) -> Floats:
        """Transform back to samples; half a frame at each end is partial."""
        frames = np.fft.irfft(cells, axis=-1).astype(np.float32, copy=False) * self.window
        frames = frames.transpose(0, 2, 1)
        count, length, channels = frames.shape
        out = np.zeros(((count + 1) * self.hop, channels), np.float32)
        out[: -self.hop] += frames[:, : self.hop].reshape(-1, channels)
        out[self.hop :] += frames[:, length - self.hop :].reshape(-1, channels)
        return out


@attrs.define(eq=False)
class _Split:
    """The separation of one track."""

    source: Path
    preprocessing: Sequence[str]
    is_stopped: Callable[[], bool]
    frames: int = 0
    rate: int = 1

    def write(self, stems: Mapping[str, Path], subtype: str) -> list[str]:
        """Write the stems; return the names of those that exceed the full scale of their files."""
        peaks = dict.fromkeys(stems, 0.0)
        with ExitStack() as stack:
            track = stack.enter_context(soundfile.SoundFile(str(self.source)))
            self.frames, self.rate = 0, track.samplerate
            files = {}
            for stem, path in stems.items():
                file = soundfile.SoundFile(str(path), "w", self.rate, track.channels, subtype)
                files[stem] = stack.enter_context(file)
            for block in self._blocks(track, tuple(stems)):
                for stem, samples in block.items():
                    files[stem].write(samples)
                    peaks[stem] = max(peaks[stem], float(np.abs(samples).max(initial=0.0)))
        return [stem for stem, peak in peaks.items() if peak > 1.0] if subtype != "FLOAT" else []

    def _blocks(
        self, track: soundfile.SoundFile, stems: Sequence[str]
    ) -> Iterator[dict[str, Floats]]:
        """Yield the samples of each stem, block by block."""
        spectrum = Spectrum.of(track.samplerate)
        tails = {stem: np.zeros((spectrum.hop, track.channels), np.float32) for stem in stems}
        for samples, valid in self._windows(track, spectrum.hop):
            cells = spectrum.forward(samples)
            masks = Masks(cells, spectrum.frequencies, self.preprocessing)
            inner = slice(CONTEXT, CONTEXT + BLOCK)
            block = {}
            for stem, tail in tails.items():
                out = spectrum.backward(cells[inner] * masks.of(stem)[inner, np.newaxis])
                out[: spectrum.hop] += tail
                tail[:] = out[-spectrum.hop :]
                block[stem] = out[valid]
            yield block

    def _windows(self, track: soundfile.SoundFile, hop: int) -> Iterator[tuple[Floats, slice]]:
        """Yield each block of the track with its context, and the valid part of its result.

        The result of a block lags half a frame behind, so the first block starts that much before
        the track.
        """
        step = BLOCK * hop
        buffer = np.zeros(((BLOCK + 2 * CONTEXT + 1) * hop, track.channels), np.float32)
        fresh = len(buffer) - (CONTEXT + 1) * hop
        start, has_ended = -hop, False
        while not (has_ended and start >= self.frames):
            if self.is_stopped():
                raise StoppedError
            read = track.read(fresh, dtype="float32", always_2d=True)
            self.frames += len(read)
            has_ended = len(read) < fresh
            buffer[:-fresh] = buffer[fresh:].copy() if fresh == step else 0
            buffer[-fresh:] = 0
            buffer[len(buffer) - fresh :][: len(read)] = read
            stop = min(step, self.frames - start) if has_ended else step
            yield buffer, slice(max(0, -start), stop)
            start, fresh = start + step, step


def encode_mp3(wav: Path, mp3: Path) -> None:
    """Encode a stem as MP3, at the nearest rate that MP3 supports and with at most two channels."""
    with soundfile.SoundFile(str(wav)) as source:
        rate = next((r for r in MP3_RATES if r <= source.samplerate), MP3_RATES[-1])
        channels = min(2, source.channels)
        with soundfile.SoundFile(
            str(mp3), "w", rate, channels, format="MP3", compression_level=0.9
        ) as target:
            for block in _resample(source, rate):
                target.write(np.clip(block[:, :channels], -1.0, 1.0))


def _resample(source: soundfile.SoundFile, rate: int) -> Iterator[Floats]:
    """Yield the samples of a file at another rate, by linear interpolation."""
    if source.samplerate == rate:
        yield from source.blocks(1 << 16, dtype="float32", always_2d=True)
        return
    ratio, base, count = source.samplerate / rate, 0, 0
    last = np.zeros((0, source.channels), np.float32)
    for block in source.blocks(1 << 16, dtype="float32", always_2d=True):
        known = np.concatenate([last, block])
        end = base + len(known) - 1
        at = np.arange(count, int(end / ratio) + 1) * ratio - base
        places = np.arange(len(known))
        columns = [np.interp(at, places, known[:, each]) for each in range(source.channels)]
        yield np.stack(columns, axis=1).astype(np.float32)
        count, base, last = count + len(at), end, known[-1:]
