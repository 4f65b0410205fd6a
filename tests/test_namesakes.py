"""Tracks of one name: the number is the track's, and the same in every run."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories.sessions import connected

from musicgpt_async import BatchItem
from musicgpt_async.emulator import Emulator, Fault, FaultContext

pytestmark = pytest.mark.anyio

STEMS = ("bass", "drums")


def names(directory: Path) -> list[str]:
    """The files below a directory."""
    return sorted(str(each.relative_to(directory)) for each in directory.rglob("*.*"))


async def test_all_files_of_a_namesake_bear_the_tracks_number(
    vendor: Emulator, tmp_path: Path
) -> None:
    """Stems of one track stay together, and a track that is called "song (2)" gets another."""
    tracks = [
        (f"{name}.mp3", f"{number}".encode() * 9000)
        for number, name in enumerate(("song", "song", "song (2)", "song"))
    ]
    async with connected(vendor) as session:
        for track in tracks:
            await session.submit(track, stems=STEMS).download(tmp_path)
    expected = ["song", "song (2)", "song (2) (2)", "song (3)"]
    assert names(tmp_path) == sorted(
        f"{track} - {stem}.wav" for track in expected for stem in STEMS
    )


async def test_namesakes_are_numbered_in_the_order_of_the_batch(tmp_path: Path) -> None:
    """Whichever is finished first: the same batch makes the same files in every run."""

    def is_first(occasion: FaultContext) -> bool:
        return occasion.upload is not None and occasion.upload.size == 9000

    slow = Fault("submit", "slow_answer", seconds=0.6, when=is_first)
    files: dict[tuple[int, int | None], str] = {}
    finished: list[int | None] = []
    for run in range(2):
        tracks = [("song.mp3", bytes(9000 + number)) for number in range(3)]
        async with (
            Emulator(seconds=0.05, separate=False, faults=[slow] if run else []) as vendor,
            connected(vendor) as session,
        ):
            out = tmp_path / str(run)
            async for outcome in session.extract_many(tracks, out, stems=["bass"]):
                assert outcome.job is not None
                finished.append(outcome.job._job.record.size)
                files[run, outcome.job._job.record.size] = Path(str(outcome.files["bass"])).name
    assert finished[3:] != sorted(finished[3:])
    for number, name in enumerate(("song", "song (2)", "song (3)")):
        assert files[0, 9000 + number] == files[1, 9000 + number] == f"{name} - bass.wav"


async def test_folders_keep_the_discs_of_an_album_apart(vendor: Emulator, tmp_path: Path) -> None:
    """``{folder}`` is set per item, empty for a track without one, and kept in the journal."""
    items = [
        BatchItem(source=("01.mp3", b"a" * 9000), folder="disc 1"),
        BatchItem(source=("01.mp3", b"b" * 9000), folder="disc 2"),
        BatchItem(source=("01.mp3", b"c" * 9000)),
    ]
    layout = "{folder}/{track} - {stem}.{ext}"
    for _ in range(2):
        async with connected(vendor, tmp_path / "journal", layout=layout) as session:
            async for outcome in session.extract_many(items, tmp_path / "out", stems=["bass"]):
                assert outcome.error is None
    assert names(tmp_path / "out") == [
        "01 - bass.wav", "disc 1/01 - bass.wav", "disc 2/01 - bass.wav",
    ]  # fmt: skip
