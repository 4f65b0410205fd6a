"""An album through the default command, on vendors with MP3 alone and with both formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

TRACKS = ("one.flac", "two.flac", "three.flac")


def endings(out: Path) -> dict[str, int]:
    """How many files there are of each format."""
    found = [path.suffix for path in out.iterdir() if not path.name.startswith(".")]
    return {ending: found.count(ending) for ending in sorted(set(found))}


@pytest.mark.parametrize(
    ("generation", "ending", "words"), [(1, ".wav", "WAV"), (2, ".mp3", "MP3")]
)
async def test_an_album_comes_whole_by_the_default_command(
    open_vendor: Any, tmp_path: Path, generation: int, ending: str, words: str
) -> None:
    """Every stem of every track is there, the command says in which format, and exits with 0."""
    async with open_vendor(generation=generation, seconds=0.0) as (vendor, shell):
        album = [shell.track(f"album/{name}") for name in TRACKS]
        ended = await shell.run("extract", "--out", "stems", album[0].parent)
        assert ended.code == 0, ended.err
        assert endings(tmp_path / "stems") == {ending: 12}
        assert ended.err.count(f"(4 files, {words}") == 3
        assert len(vendor.submissions) == 3
        report = await shell.run("report", "stems")
        assert report.code == 0
        page = (tmp_path / "stems" / "report.html").read_text("utf-8")
        assert page.count(f", {words}, ") == 12


async def test_another_format_of_an_album_is_not_paid_for_again(
    open_vendor: Any, tmp_path: Path
) -> None:
    """Both formats, then one alone: the same command in another format submits nothing."""
    async with open_vendor(seconds=0.0) as (vendor, shell):
        album = [shell.track(f"album/{name}") for name in TRACKS]
        command = ("extract", "--out", "stems", album[0].parent)
        assert (await shell.run(*command, "--format", "mp3")).code == 0
        assert endings(tmp_path / "stems") == {".mp3": 12}
        assert (await shell.run(*command)).code == 0
        assert endings(tmp_path / "stems") == {".mp3": 12, ".wav": 12}
        again = await shell.run(*command, "--format", "both")
        assert again.code == 0
        assert again.err.count("(8 files, WAV and MP3") == 3
        assert len(vendor.submissions) == 3


async def test_both_on_a_vendor_with_mp3_alone_brings_the_mp3s(
    open_vendor: Any, tmp_path: Path
) -> None:
    """`--format both` takes what there is; `resume` afterwards has nothing left to do."""
    async with open_vendor(generation=2, seconds=0.0) as (_, shell):
        track = shell.track("song.mp3")
        assert (await shell.run("extract", "--out", "stems", "--format", "both", track)).code == 0
        assert endings(tmp_path / "stems") == {".mp3": 4}
        assert "nothing to resume" in (await shell.run("resume", "--out", "stems")).err


async def test_an_explicit_format_goes_before_what_the_journal_remembers(
    open_vendor: Any, tmp_path: Path
) -> None:
    """A vendor without WAVs fails `--format wav`; `resume --format mp3` brings the stems."""
    async with open_vendor(generation=2, seconds=0.0) as (vendor, shell):
        track = shell.track("song.mp3")
        strict = await shell.run("extract", "--out", "stems", "--format", "wav", track)
        assert strict.code == 1
        assert "no WAV of" in strict.err
        remembered = await shell.run("resume", "--out", "stems")
        assert remembered.code == 1
        assert "no WAV of" in remembered.err
        assert (await shell.run("resume", "--out", "stems", "--format", "mp3")).code == 0
        assert endings(tmp_path / "stems") == {".mp3": 4}
        listed = await shell.run("jobs", "--out", "stems", "--json")
        assert [(job["format"], len(job["files"])) for job in listed.tracks] == [("mp3", 4)]
        assert "nothing to resume" in (await shell.run("resume", "--out", "stems")).err
        assert len(vendor.submissions) == 1
