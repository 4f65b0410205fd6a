"""What a dry run expects a batch to cost, and how the summary compares estimate and charge."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import pytest

from musicgpt_async.cli.durations import read_duration
from musicgpt_async.cli.output import Summary
from musicgpt_async.emulator.audio.song import compose

pytestmark = pytest.mark.anyio


def silence(path: Path, seconds: float) -> Path:
    """A WAV of this length."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"\x80" * int(8000 * seconds))
    return path


async def test_a_dry_run_tells_duration_stems_and_price_of_each_track_and_the_sum(
    open_vendor: Any, tmp_path: Path
) -> None:
    """By the plan's rates, minutes begun; what is unknown is said to be."""
    silence(tmp_path / "long.wav", 150)
    silence(tmp_path / "short.wav", 30)
    async with open_vendor() as (vendor, shell):
        shell.track("noise.mp3")
        tracks = ("long.wav", "short.wav", "noise.mp3", "https://example.org/a.mp3")
        command = ("extract", "--out", "o", "--dry-run", "--stem", "vocals", *tracks)
        ended = await shell.run(*command, MUSICGPT_PLAN="pro")
        assert ended.code == 0
        long, short, noise, url = ended.out.splitlines()
        assert "2:30  about $0.0181  vocals" in long
        assert "0:30  about $0.0137  vocals" in short
        assert "unknown duration  unknown price" in noise
        assert "URL  unknown duration  unknown price" in url
        assert "4 tracks would be submitted, for about $0.0318" in ended.err
        assert "(pro, prices of August 2026; 2 more of unknown duration)" in ended.err
        free = await shell.run(*command, "--json")
        assert "(pay as you go," in free.err
        assert [each["price"] for each in free.tracks] == [0.049, 0.037, None, None]
        assert [each["duration"] for each in free.tracks] == [150.0, 30.0, None, None]
        nothing = await shell.run(*command[:-4], "noise.mp3")
        assert "at an unknown price" in nothing.err
        wrong = await shell.run(*command, MUSICGPT_PLAN="gold")
        assert (wrong.code, wrong.out) == (2, "")
        assert not vendor.requests


async def test_a_dry_run_prices_only_what_would_be_submitted(
    open_vendor: Any, tmp_path: Path
) -> None:
    """A track that the journal has is not paid for again, so it is not in the sum."""
    silence(tmp_path / "a.wav", 30)
    async with open_vendor(seconds=0.0) as (_, shell):
        command = ("extract", "--out", "o", "--stem", "vocals", "a.wav")
        assert (await shell.run(*command)).code == 0
        again = await shell.run(*command, "--dry-run")
        assert "0 tracks would be submitted, for nothing" in again.err


@pytest.mark.parametrize("ending", ["flac", "wav"])
def test_durations_are_read_from_the_header(tmp_path: Path, ending: str) -> None:
    """As the file says, without decoding it."""
    assert read_duration(compose(tmp_path / f"a.{ending}", seconds=3)) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no audio at all" * 100])
def test_what_is_no_audio_has_no_duration(tmp_path: Path, content: bytes) -> None:
    """Neither an error nor a guess."""
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert read_duration(path) is None
    assert read_duration(tmp_path / "missing.mp3") is None


async def test_the_summary_compares_estimate_and_charge(open_vendor: Any) -> None:
    """Both sums, and how far the charges were off."""
    async with open_vendor(seconds=0.0) as (_, shell):
        ended = await shell.run("extract", "--out", "o", shell.track("a.mp3"))
        assert ended.code == 0
        assert "0.03 credits charged, 0.03 credits estimated (charged as estimated)" in ended.err


@pytest.mark.parametrize(
    ("compared", "words"),
    [
        ((2.0, 2.5), "2.5 credits charged, 2 credits estimated (charged 25 % more than estimated)"),
        ((2.0, 1.5), "1.5 credits charged, 2 credits estimated (charged 25 % less than estimated)"),
        ((2.0, 2.001), "2 credits charged, 2 credits estimated (charged as estimated)"),
        ((0.0, 2.0), "2 credits charged, 0 credits estimated"),
    ],
)
def test_how_far_the_charges_were_off(compared: tuple[float, float], words: str) -> None:
    """In percent of the estimate, of the tracks that have both."""
    summary = Summary(total=1, began=0.0, done=1, charged=compared[1], compared=compared)
    assert summary.lines(seconds=1.0, estimated=compared[0])[-1] == words
