from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicgpt_async.emulator.audio.song import compose, tone


@pytest.mark.parametrize("name", ["song.flac", "song.wav"])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 12.5])
def test_a_song_has_the_length_and_format_asked_for(
    tmp_path: Path, name: str, seconds: float
) -> None:
    """It is stereo, 44.1 kHz, neither silent nor clipped, in the format of its suffix."""
    path = compose(tmp_path / name, seconds=seconds)
    sound, rate = soundfile.read(str(path), always_2d=True)
    assert soundfile.info(str(path)).format == path.suffix[1:].upper()
    assert (rate, sound.shape) == (44_100, (int(seconds * 44_100), 2))
    assert 0.3 < np.abs(sound).max() <= 0.81


def test_a_song_is_the_same_each_time(tmp_path: Path) -> None:
    """Two compositions of the same length do not differ by a byte."""
    one, two = compose(tmp_path / "1.flac", seconds=4), compose(tmp_path / "2.flac", seconds=4)
    assert one.read_bytes() == two.read_bytes()


def test_a_song_has_the_requested_length(tmp_path: Path) -> None:
    """The four bars are repeated: there is music at the end of half a minute, too."""
    sound, rate = soundfile.read(str(compose(tmp_path / "s.wav", seconds=30)))
    for second in range(28):
        assert np.abs(sound[second * rate : (second + 1) * rate]).max() > 0.1


def test_a_tone_is_chosen_by_its_seed(tmp_path: Path) -> None:
    """The same seed gives the same tone, another one another."""
    contents = []
    for number, seed in enumerate(("a", "b", "a")):
        tone(tmp_path / f"{number}.wav", seed)
        contents.append((tmp_path / f"{number}.wav").read_bytes())
    assert contents[0] == contents[2] != contents[1]
