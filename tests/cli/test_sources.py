from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from musicgpt_async.cli.sources import (
    READ_AHEAD,
    GeneratedFiles,
    TrackRequest,
    TrackSources,
    iter_lazily,
    why_not_audio,
)

LAYOUT = "{track} - {stem}.{ext}"


def sources(*named: Path, out: Path, layout: str = LAYOUT) -> TrackSources:
    """Sources that are named on the command line."""
    return TrackSources(
        named=[str(name) for name in named],
        list_file=None,
        stems=(),
        preprocessing=(),
        generated=GeneratedFiles(out, layout),
    )


@pytest.mark.anyio
async def test_tracks_are_taken_as_they_are_needed() -> None:
    """Of a hundred thousand tracks no more than a handful is read ahead, and stopping stops."""
    taken = 0
    got: list[str] = []

    def many() -> Iterator[TrackRequest]:
        nonlocal taken
        for taken in range(1, 100_001):
            yield TrackRequest(source=f"{taken}.wav")

    with anyio.fail_after(60):
        async for item in iter_lazily(many(), stopped=lambda: len(got) == 100):
            got.append(str(item.source))
            assert taken <= len(got) + READ_AHEAD
    assert len(got) == 100


@pytest.mark.parametrize(
    ("name", "layout", "generated"),
    [
        ("song - vocals.wav", LAYOUT, True),
        ("song - back_vocal (2).mp3", LAYOUT, True),
        ("song - take two.wav", LAYOUT, False),
        ("song.wav", LAYOUT, False),
        ("song/vocals.wav", "{track}/{stem}.{ext}", True),
        ("song/vocals (12).wav", "{track}/{stem}.{ext}", True),
        ("song/song.wav", "{track}/{stem}.{ext}", False),
        ("drums/my song.wav", "{stem}/{track}.{ext}", True),
        ("demos/my song.wav", "{stem}/{track}.{ext}", False),
    ],
)
def test_stems_of_earlier_runs_are_known_by_their_names(
    tmp_path: Path, name: str, layout: str, *, generated: bool
) -> None:
    """A file in the output directory that the layout could have named is no track."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for place in (out, elsewhere):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(b"RIFF")
    assert GeneratedFiles(out, layout).is_generated(out / name) is generated
    assert not GeneratedFiles(out, layout).is_generated(elsewhere / name)
    found = {request.source for request in sources(out, elsewhere, out=out, layout=layout).tracks()}
    assert found == {str(elsewhere / name)} | (set() if generated else {str(out / name)})


def test_what_cannot_be_read_is_warned_of_once(tmp_path: Path) -> None:
    """A named file that is a stem of an earlier run is left out with a warning."""
    stem = tmp_path / "song - bass.wav"
    track = tmp_path / "song.wav"
    for path in (stem, track):
        path.write_bytes(b"RIFF")
    warnings: list[str] = []
    chosen = TrackSources(
        named=[str(stem), str(track)],
        list_file=None,
        stems=(),
        preprocessing=(),
        generated=GeneratedFiles(tmp_path, LAYOUT),
        warn=warnings.append,
    )
    assert chosen.validate() == 1
    assert len(list(chosen.tracks())) == 1
    assert [str(stem) in warning for warning in warnings] == [True]


def test_a_placeholder_of_a_large_file_is_not_audio(tmp_path: Path) -> None:
    """What git leaves in place of a song that was not fetched is reported before it is sent."""
    pointer, song = tmp_path / "a.flac", tmp_path / "b.flac"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n", "utf-8")
    song.write_bytes(b"fLaC" + bytes(60))
    assert why_not_audio(str(pointer)) == "it is text, not audio"
    assert why_not_audio(str(song)) is None
