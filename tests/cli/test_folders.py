"""``{folder}`` in --layout: the path of a track below the directory that was named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

ARGUMENTS = ("--layout", "{folder}/{track} - {stem}.{ext}", "-s", "bass", "--plan", "pro")


async def test_discs_of_an_album_stay_apart(open_vendor: Any) -> None:
    """Tracks of one name below one directory keep its folders; a second run finds them there."""
    async with open_vendor(seconds=0.05) as (vendor, shell):
        for name in ("album/disc 1/01.wav", "album/disc 2/01.wav", "album/00.wav", "single.wav"):
            shell.track(name)
        for _ in range(2):
            ended = await shell.run("extract", "album", "single.wav", "--out", "album", *ARGUMENTS)
            assert ended.code == 0, ended.err
        stems = list(Path(shell.directory, "album").rglob("* - bass.*"))
        assert sorted(str(path.relative_to(shell.directory)) for path in stems) == [
            "album/00 - bass.wav", "album/disc 1/01 - bass.wav", "album/disc 2/01 - bass.wav",
            "album/single - bass.wav",
        ]  # fmt: skip
        assert len(vendor.submissions) == 4


@pytest.mark.parametrize("layout", ["{stem}.{ext}/", "a\\{stem}.{ext}", "C:{stem}.{ext}"])
async def test_a_layout_that_is_no_path_is_refused_before_anything_is_sent(
    layout: str, shell: Any
) -> None:
    """One sentence says what is wrong with it."""
    shell.track("song.wav")
    ended = await shell.run("extract", "song.wav", "--out", "o", "--layout", layout)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "layout" in ended.err
