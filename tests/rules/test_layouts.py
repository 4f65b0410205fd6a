"""Layouts with folders, what they refuse, and names that are cut to fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.filenames import (
    DEFAULT_LAYOUT,
    numbered_track,
    output_path,
    sanitize,
    validate_layout,
    with_folder,
    with_number,
)
from musicgpt_async.errors import InvalidOptionError

FOLDERS = "{folder}/{track} - {stem}.{ext}"


@pytest.mark.parametrize(
    "layout",
    [
        "a\\{stem}.{ext}",
        "{track}\\{stem}.{ext}",
        "C:{stem}.{ext}",
        "c:/x/{stem}.{ext}",
        "{stem}.{ext}/",
        "{stem}.{ext}//",
        "a\0{stem}.{ext}",
        "a\udcff{stem}.{ext}",
        "{folder}/../{stem}.{ext}",
    ],
)
def test_what_is_no_path_on_some_system_is_refused(layout: str) -> None:
    """Backslashes, drive letters, NUL, what is not UTF-8, and a slash with no name after it."""
    with pytest.raises(InvalidOptionError, match="layout"):
        validate_layout(layout)


@pytest.mark.parametrize(
    ("folder", "layout", "expected"),
    [
        ("disc 1", FOLDERS, "disc 1/song - vocals.wav"),
        ("a/b", FOLDERS, "a/b/song - vocals.wav"),
        ("", FOLDERS, "song - vocals.wav"),
        (".", FOLDERS, "song - vocals.wav"),
        ("", "stems/{folder}/{stem}.{ext}", "stems/vocals.wav"),
        ("d", "stems/{folder}/{stem}.{ext}", "stems/d/vocals.wav"),
        ("{stem}", FOLDERS, "{stem}/song - vocals.wav"),
        ("{", "{{x}}{folder}/{stem}.{ext}", "{x}{/vocals.wav"),
        ("../../etc", FOLDERS, "_/_/etc/song - vocals.wav"),
        ("/abs/olute", FOLDERS, "abs/olute/song - vocals.wav"),
        ("C:\\x", FOLDERS, "C__x/song - vocals.wav"),
        ("disc", DEFAULT_LAYOUT, "song - vocals.wav"),
    ],
)
def test_a_folder_is_filled_in_and_never_leads_out(folder: str, layout: str, expected: str) -> None:
    """Its parts are made safe like any name; an empty one leaves no slash behind."""
    filled = with_folder(validate_layout(layout), folder)
    path = output_path(Path("out"), filled, track="song", stem="vocals", ext="wav")
    assert path == Path("out") / expected
    assert with_folder(filled, "another") == filled


@given(
    folder=st.text(max_size=40),
    track=st.text(max_size=300),
    literal=st.text(st.characters(codec="utf-8", exclude_characters="{}\\:/\0"), max_size=300),
    number=st.integers(1, 12_345),
)
def test_every_part_of_a_path_fits_in_255_bytes(
    folder: str, track: str, literal: str, number: int
) -> None:
    """A layout may contain long text: names are cut between characters, extensions are kept."""
    layout = with_folder(f"{{folder}}/x{literal}{{track}}x/x{literal}{{stem}}.{{ext}}", folder)
    path = with_number(
        output_path(Path("out"), layout, track=track, stem="vocals", ext="wav"), number
    )
    assert path.suffix == ".wav"
    assert all(len(part.encode()) <= 255 for part in path.parts)
    assert path.name.endswith(f" ({number}).wav") or number == 1


@given(track=st.text(max_size=300), number=st.integers(2, 999))
def test_a_numbered_track_stays_as_it_is_when_it_is_made_safe(track: str, number: int) -> None:
    """The number is not truncated when the name becomes a path."""
    name = numbered_track(track, number)
    assert sanitize(name, 150) == name or name.startswith("_")
    assert name.endswith(f" ({number})")
    assert numbered_track(track, 1) == track
