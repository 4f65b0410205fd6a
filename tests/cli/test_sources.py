from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from musicgpt_async.cli.sources import HANDFUL, OwnFiles, Sources, Wanted, taken_by_need

LAYOUT = "{track} - {stem}.{ext}"


def sources(*named: Path, out: Path, layout: str = LAYOUT) -> Sources:
    """Sources that are named on the command line."""
    return Sources(
        named=[str(name) for name in named],
        list_file=None,
        stems=(),
        preprocessing=(),
        own=OwnFiles(out, layout),
    )


@pytest.mark.anyio
async def test_tracks_are_taken_as_they_are_needed() -> None:
    """Of a hundred thousand tracks no more than a handful is read ahead, and stopping stops."""
    taken = 0
    got: list[str] = []

    def many() -> Iterator[Wanted]:
        nonlocal taken
        for taken in range(1, 100_001):
            yield Wanted(source=f"{taken}.wav")

    with anyio.fail_after(60):
        async for item in taken_by_need(many(), stopped=lambda: len(got) == 100):
            got.append(str(item.source))
            assert taken <= len(got) + HANDFUL
    assert len(got) == 100


@pytest.mark.parametrize(
    ("name", "layout", "own"),
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
    tmp_path: Path, name: str, layout: str, *, own: bool
) -> None:
    """A file in the output directory that the layout could have named is no track."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for place in (out, elsewhere):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(b"RIFF")
    assert OwnFiles(out, layout).made(out / name) is own
    assert not OwnFiles(out, layout).made(elsewhere / name)
    found = {wanted.source for wanted in sources(out, elsewhere, out=out, layout=layout).tracks()}
    assert found == {str(elsewhere / name)} | (set() if own else {str(out / name)})


def test_what_cannot_be_read_is_warned_of_once(tmp_path: Path) -> None:
    """A named file that is a stem of an earlier run is left out with a warning."""
    stem = tmp_path / "song - bass.wav"
    track = tmp_path / "song.wav"
    for path in (stem, track):
        path.write_bytes(b"RIFF")
    warnings: list[str] = []
    chosen = Sources(
        named=[str(stem), str(track)],
        list_file=None,
        stems=(),
        preprocessing=(),
        own=OwnFiles(tmp_path, LAYOUT),
        warn=warnings.append,
    )
    assert chosen.checked() == 1
    assert len(list(chosen.tracks())) == 1
    assert [str(stem) in warning for warning in warnings] == [True]
