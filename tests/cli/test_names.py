from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.anyio

DRY = ("--dry-run", "--json", "--no-journal")


async def test_stems_are_typed_as_people_type_them(shell: Any) -> None:
    """Several in one text or one each, in any case: the same request; preprocessing likewise."""
    shell.track("song.wav")
    typed = [
        ("--stem", "vocals", "--stem", "drums"),
        ("-s", "Vocals, DRUMS,"),
        ("--stem=VOCALS,drums", "-s", "drums"),
    ]
    options = ("--preprocess", "denoise,DEREVERB")
    ended = await shell.together(
        *(shell.run("extract", "song.wav", *stems, *options, *DRY) for stems in typed)
    )
    for each in ended:
        assert each.code == 0, each.err
        (track,) = each.tracks
        assert track["stems"] == ["vocals", "drums"]
        assert track["preprocessing"] == ["Denoise", "Dereverb"]


async def test_a_list_names_stems_in_any_case_too(shell: Any) -> None:
    """A row's names are matched as the command line's are."""
    shell.track("song.wav")
    rows = "source,stems,preprocessing\nsong.wav,Vocals BASS,deecho\n"
    (shell.directory / "list.csv").write_text(rows)
    (track,) = (await shell.run("extract", "--list", "list.csv", *DRY)).tracks
    assert (track["stems"], track["preprocessing"]) == (["vocals", "bass"], ["Deecho"])
