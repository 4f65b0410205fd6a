from __future__ import annotations

import io
import itertools
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicgpt_async.emulator import STEM_GROUPS, STEMS
from musicgpt_async.emulator.audio.masks import SHARES
from musicgpt_async.emulator.audio.separation import (
    StoppedError,
    UndecodableError,
    encode_mp3,
    separate,
)

BOUND = 1e-3
RATE = 44_100


def split(source: Path, folder: Path, stems: Any = STEMS, **options: Any) -> dict[str, Any]:
    """The stems of a track, read back from their files."""
    paths = {stem: folder / f"{stem}.wav" for stem in stems}
    separate(source, paths, **options)
    return {stem: soundfile.read(str(path), always_2d=True)[0] for stem, path in paths.items()}


def assert_families_add_up(song: Any, stems: dict[str, Any]) -> None:
    """Assert that the children of each stem add up to it within the bound."""
    wholes = {"song": song, **stems}
    for whole, families in STEM_GROUPS.items():
        for family in families:
            error = np.abs(sum(wholes[part] for part in family) - wholes[whole]).max()
            assert error < BOUND, f"{family} is {error} off {whole}"


def noise(seconds: float, channels: int, *, rate: int = RATE, peak: float = 0.9) -> Any:
    """Noise that swells and fades, with a tone and clicks in it, other in each channel."""
    count = int(seconds * rate)
    time = np.arange(count)[:, np.newaxis] / rate
    sound = np.random.default_rng(7).standard_normal((count, channels)) * np.sin(3 * time) ** 2
    sound += 2 * np.sin(2 * np.pi * 440 * time + np.arange(channels))
    sound[:: rate // 4] += 20
    return sound * peak / np.abs(sound).max()


def test_the_families_are_those_of_the_catalogue() -> None:
    """Every stem has a mask, and its parent is the one in the catalogue."""
    assert set(SHARES) == {*STEMS, "tuned"}
    for whole, families in STEM_GROUPS.items():
        for part in itertools.chain.from_iterable(families):
            assert SHARES[part][0] in {whole, "tuned"}


def test_the_parts_of_the_song_add_up(song: Path, tmp_path: Path) -> None:
    """All 23 stems of the composed song add up, family by family, to it; none is silent."""
    whole, _ = soundfile.read(str(song), always_2d=True)
    stems = split(song, tmp_path)
    assert_families_add_up(whole, stems)
    assert all(np.abs(stem).max() > 0.005 for stem in stems.values())


@pytest.mark.parametrize(
    ("rate", "channels", "name"),
    [
        (8_000, 1, "a.wav"),
        (22_050, 2, "a.ogg"),
        (44_100, 1, "a.flac"),
        (44_100, 2, "a.mp3"),
        (48_000, 6, "a.wav"),
        (96_000, 2, "a.flac"),
        (11_111, 3, "a.wav"),
    ],
)
def test_any_rate_and_number_of_channels(
    tmp_path: Path, rate: int, channels: int, name: str
) -> None:
    """Mono or more, any rate and format that soundfile reads: length kept, parts adding up."""
    source = tmp_path / name
    soundfile.write(str(source), noise(2, channels, rate=rate), rate)
    whole, _ = soundfile.read(str(source), always_2d=True)
    stems = split(source, tmp_path)
    assert {stem.shape for stem in stems.values()} == {whole.shape}
    assert_families_add_up(whole, stems)


@pytest.mark.parametrize("frames", [1, 1023, 1024, 1025, 256 * 1024 - 1, 256 * 1024, 300_000])
def test_any_length(tmp_path: Path, frames: int) -> None:
    """A track of one sample, and ones that end at, before and after the edges of a block."""
    source = tmp_path / "a.wav"
    soundfile.write(str(source), noise(8, 1)[:frames], RATE)
    whole, _ = soundfile.read(str(source), always_2d=True)
    stems = split(source, tmp_path, ("vocals", "instrumental"))
    assert stems["vocals"].shape == (frames, 1)
    assert np.abs(stems["vocals"] + stems["instrumental"] - whole).max() < BOUND


def test_a_part_that_exceeds_full_scale_is_not_clipped(tmp_path: Path) -> None:
    """A stem that is louder than 16 bits allow is written as float and still adds up."""
    count = 2 * RATE
    time = np.arange(count) / RATE
    square = np.sign(np.sin(2 * np.pi * 100 * time)) * 0.999
    source = tmp_path / "a.wav"
    soundfile.write(str(source), np.stack([square, square], axis=1), RATE)
    whole, _ = soundfile.read(str(source), always_2d=True)
    stems = split(source, tmp_path)
    loud = [stem for stem in STEMS if np.abs(stems[stem]).max() > 1]
    assert loud
    for stem in STEMS:
        subtype = soundfile.info(str(tmp_path / f"{stem}.wav")).subtype
        assert subtype == ("FLOAT" if stem in loud else "PCM_16")
    assert_families_add_up(whole, stems)


def test_parts_are_separated(tmp_path: Path) -> None:
    """A low tone is bass, clicks are drums, a tone of the middle is sung by a voice."""
    time = np.arange(4 * RATE) / RATE
    low, sung = np.sin(2 * np.pi * 70 * time), np.sin(2 * np.pi * 700 * time)
    clicks = np.zeros_like(time)
    clicks[:: RATE // 2] = 1
    source = tmp_path / "a.wav"
    for sound, where in ((low, "bass"), (sung, "vocals"), (clicks, "drums")):
        soundfile.write(str(source), 0.8 * sound, RATE)
        stems = split(source, tmp_path, ("bass", "vocals", "drums", "piano", "winds"))
        energy = {stem: float((samples**2).sum()) for stem, samples in stems.items()}
        assert max(energy, key=lambda stem: energy[stem]) == where


def echo(sound: Any, delay: float, gain: float) -> Any:
    """A sound that comes back once."""
    late = np.zeros_like(sound)
    late[int(delay * RATE) :] = gain * sound[: -int(delay * RATE)]
    return sound + late


def test_denoise_takes_out_hiss(tmp_path: Path) -> None:
    """Steady hiss between the notes falls by half at least, the notes stay."""
    time = np.arange(6 * RATE) / RATE
    hiss = 0.02 * np.random.default_rng(1).standard_normal(len(time))
    note = 0.5 * np.sin(2 * np.pi * 500 * time) * (time % 2 < 1)
    before, after = preprocessed(tmp_path, note + hiss, "Denoise")
    pause = slice(int(1.3 * RATE), int(1.7 * RATE))
    sounding = slice(int(0.3 * RATE), int(0.7 * RATE))
    assert rms(after[pause]) < 0.5 * rms(before[pause])
    assert rms(after[sounding]) > 0.9 * rms(before[sounding])


def test_deecho_turns_echoes_down(tmp_path: Path) -> None:
    """What comes back a third of a second later comes back softer."""
    time = np.arange(4 * RATE) / RATE
    blip = 0.5 * np.sin(2 * np.pi * 500 * time) * (time % 2 < 0.1)
    before, after = preprocessed(tmp_path, echo(blip, 0.33, 0.5), "Deecho")
    returned = slice(int(2.33 * RATE), int(2.43 * RATE))
    assert rms(after[returned]) < 0.7 * rms(before[returned])


def test_dereverb_shortens_the_tail(tmp_path: Path) -> None:
    """Decaying sounds decay faster; sustained sounds do not change."""
    time = np.arange(4 * RATE) / RATE
    fading = 0.5 * np.sin(2 * np.pi * 500 * time) * np.exp(-8 * (time % 2))
    before, after = preprocessed(tmp_path, fading, "Dereverb")
    tail = slice(int(2.2 * RATE), int(2.6 * RATE))
    assert rms(after[tail]) < 0.6 * rms(before[tail])
    steady = 0.5 * np.sin(2 * np.pi * 500 * time)
    before, after = preprocessed(tmp_path, steady, "Dereverb")
    middle = slice(RATE, 3 * RATE)
    assert rms(after[middle]) > 0.95 * rms(before[middle])


def rms(sound: Any) -> float:
    """How loud a sound is."""
    return float(np.sqrt((sound**2).mean()))


def preprocessed(folder: Path, sound: Any, option: str) -> tuple[Any, Any]:
    """A sound, and the sum of its two halves after preprocessing."""
    source = folder / "a.wav"
    soundfile.write(str(source), sound, RATE)
    stems = split(source, folder, ("vocals", "instrumental"), preprocessing=[option])
    return sound, (stems["vocals"] + stems["instrumental"])[:, 0]


@pytest.mark.alone
def test_memory_does_not_grow_with_the_track(tmp_path: Path) -> None:
    """Ten times the length takes no more memory."""
    source = tmp_path / "a.wav"
    soundfile.write(str(source), noise(120, 1, rate=8_000), 8_000)
    split(source, tmp_path, ("vocals",))
    peaks = []
    for seconds in (12, 120):
        soundfile.write(str(source), noise(seconds, 1, rate=8_000), 8_000)
        tracemalloc.start()
        separate(source, {"drums": tmp_path / "d.wav", "bass": tmp_path / "b.wav"})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("content", [b"", b"no audio", b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_audio_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    """Anything that cannot be decoded is an UndecodableError that names no path."""
    source = tmp_path / "a.wav"
    source.write_bytes(content)
    with pytest.raises(UndecodableError) as raised:
        separate(source, {"drums": tmp_path / "drums.wav"})
    assert str(tmp_path) not in str(raised.value)


def test_a_separation_can_be_called_off(song: Path, tmp_path: Path) -> None:
    """The separation stops between two blocks when `is_stopped` returns true."""
    responses = iter([False, True])
    with pytest.raises(StoppedError):
        separate(song, {"bass": tmp_path / "b.wav"}, is_stopped=lambda: next(responses))


@pytest.mark.parametrize(
    ("rate", "channels", "told"),
    [
        (44_100, 2, 44_100),
        (8_000, 1, 8_000),
        (96_000, 2, 48_000),
        (37_800, 6, 32_000),
        (4_000, 1, 8_000),
    ],
)
def test_mp3_of_any_stem(tmp_path: Path, rate: int, channels: int, told: int) -> None:
    """An MP3 sounds as long and as high as the WAV, at a rate that MP3 knows."""
    wav, mp3 = tmp_path / "a.wav", tmp_path / "a.mp3"
    time = np.arange(3 * rate) / rate
    tone = np.repeat(0.5 * np.sin(2 * np.pi * 440 * time)[:, np.newaxis], channels, axis=1)
    soundfile.write(str(wav), tone, rate)
    encode_mp3(wav, mp3)
    sound, rate = soundfile.read(str(mp3), always_2d=True)
    assert (rate, sound.shape[1]) == (told, min(2, channels))
    assert abs(len(sound) / rate - 3) < 0.2
    spectrum = np.abs(np.fft.rfft(sound[rate : 2 * rate, 0]))
    assert abs(int(spectrum.argmax()) - 440) <= 2


@pytest.mark.anyio
async def test_end_to_end(open_account: Any, song: Path) -> None:
    """A song that is sent comes back as WAV stems that add up and MP3s of the same length."""
    stems = ["vocals", "instrumental"]
    whole, rate = soundfile.read(str(song), always_2d=True)
    async with open_account(separate=True) as me:
        conversion = await me.extract(song, stems=json.dumps(stems))
        assert conversion["conversion_duration"] == 6.0
        assert conversion["conversion_cost"] == 0.15
        assert me.vendor.credits == pytest.approx(10_000 - 0.15)
        parts, lengths = [], []
        for stem in stems:
            for field, kept in (("audio_url_wav", parts), ("audio_url", lengths)):
                reply = await me.call("GET", json.loads(conversion[field])[stem])
                kept.append(soundfile.read(io.BytesIO(reply.body), always_2d=True)[0])
    assert np.abs(sum(parts) - whole).max() < BOUND
    assert all(abs(len(sound) - 6 * rate) < 5000 for sound in lengths)


@pytest.mark.anyio
async def test_audio_that_cannot_be_decoded_fails(open_account: Any) -> None:
    """A text file by the name of a song ends in ERROR, with a reason and free of charge."""
    async with open_account(separate=True) as me:
        conversion = await me.extract(b"This is no music.", name="song.flac")
        assert conversion["status"] == "ERROR"
        assert conversion["status_msg"].startswith("The audio could not be decoded")
        assert me.vendor.credits == 10_000


@pytest.mark.alone
@pytest.mark.anyio
async def test_the_emulator_ends_amid_a_separation(open_account: Any, tmp_path: Path) -> None:
    """Leaving the block calls off what is being split, and nothing is left on disk."""
    source = tmp_path / "long.flac"
    soundfile.write(str(source), noise(120, 1, rate=8_000), 8_000)
    stems = json.dumps(STEMS)
    async with open_account(separate=True) as me:
        begin = time.monotonic()
        await me.extract(source, stems=stems)
        whole = time.monotonic() - begin
        await me.submit(source, stems=stems)
        folder = me.vendor.submissions[0].upload.audio.parent
        begin = time.monotonic()
    assert time.monotonic() - begin < whole / 2
    assert not folder.exists()
