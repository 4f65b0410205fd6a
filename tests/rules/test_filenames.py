from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from musicgpt_async._rules.filenames import (
    DEFAULT_LAYOUT,
    collision_key,
    output_path,
    sanitize,
    validate_layout,
    with_number,
)
from musicgpt_async.errors import InvalidOptionError

HOSTILE = [
    "",
    ".",
    "..",
    "...",
    "../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "C:\\x",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb\r\t",
    " ",
    ". .",
    "~",
    "~root",
    "-rf",
    "CON",
    "nul.txt",
    "com1",
    "LPT9.wav",
    "aux.tar.gz",
    "name.",
    "name ",
    "a:b",
    'x"y',
    "<a>|b?*",
    "\u202egpj.exe",
    "\u200b",
    "\ud800",
    "\x7f\x80",
    "e\u0301",
    "\u2028\u2029",
    "歌" * 300,
    "🎵" * 300,
    "x" * 5000,
    "e\u0301" * 5000,
    "{track}",
    "%s",
    "$HOME",
]
NAMES = st.text(max_size=300) | st.sampled_from(HOSTILE)


def is_one_component(name: str) -> bool:
    """Return whether a name is a single path component, here and on Windows."""
    return (
        bool(name)
        and name not in (".", "..")
        and not set('/\\\0:*?"<>|') & set(name)
        and Path(name).name == name
        and PureWindowsPath(name).name == name
    )


@given(NAMES)
@example("a" * 199 + "é")
@example("a" * 200 + ".")
@example("CON .txt")
def test_any_name_becomes_one_component(name: str) -> None:
    """Any name of a stem becomes one path component that is short enough for a disk."""
    made = sanitize(name)
    assert is_one_component(made)
    assert len(made.encode()) <= 255
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in made)
    assert not made.endswith((".", " "))


@given(NAMES)
def test_a_safe_name_stays_as_it_is(name: str) -> None:
    """What was made safe once is not changed again."""
    assert sanitize(sanitize(name)) == sanitize(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vocals", "vocals"),
        ("Прив é", "Прив é"),
        ("歌🎵", "歌🎵"),
        ("e\u0301", "é"),
        ("AC/DC", "AC_DC"),
        ("..", "_"),
        ("", "_"),
        ("...and so on", "...and so on"),
        ("con", "_con"),
        ("NUL.wav", "_NUL.wav"),
        ("console", "console"),
        ("  spaced  ", "spaced"),
        ("end. . .", "end"),
    ],
)
def test_names_keep_what_can_be_kept(name: str, expected: str) -> None:
    """Unicode stays, composed; only what would hurt is replaced."""
    assert sanitize(name) == expected


@given(track=NAMES, stem=NAMES, ext=st.sampled_from(["wav", "mp3", "../x", ""]))
@pytest.mark.parametrize("layout", [DEFAULT_LAYOUT, "{track}/{stem}.{ext}", "{stem}{ext}"])
def test_no_name_leads_out_of_the_directory(layout: str, track: str, stem: str, ext: str) -> None:
    """Track, stem and ending together stay as many parts deep as the layout says."""
    directory = Path("/music/out")
    path = output_path(directory, layout, track=track, stem=stem, ext=ext)
    below = path.relative_to(directory)
    assert len(below.parts) == layout.count("/") + 1
    assert all(is_one_component(part) for part in below.parts)


@given(track=NAMES, stem=NAMES)
@example(track="x" * 300, stem="y" * 300)
def test_every_name_fits_on_a_disk(track: str, stem: str) -> None:
    """A long track with a long stem is still one name of 255 bytes, its temporary name too."""
    path = output_path(Path("out"), DEFAULT_LAYOUT, track=track, stem=stem, ext="wav")
    assert len(with_number(path, 12).name.encode()) <= 255 - len("..01234567.part")


@given(track=NAMES, stem=st.text(max_size=12))
@example(track="x" * 300, stem="acoustic_guitar")
@example(track="歌" * 300, stem="acoustic_guitar")
def test_names_work_on_a_real_file_system(track: str, stem: str) -> None:
    """A file with the name can be created, and is found in the directory and not elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        inside = Path(directory) / "out"
        inside.mkdir()
        path = output_path(inside, DEFAULT_LAYOUT, track=track, stem=stem, ext="wav")
        path.write_bytes(b"sound")
        assert [each.name for each in inside.iterdir()] == [path.name]
        assert [each.name for each in Path(directory).iterdir()] == ["out"]


def test_a_field_in_a_name_is_not_filled_in() -> None:
    """A track called "{stem}" is called so."""
    path = output_path(Path(), DEFAULT_LAYOUT, track="{stem}", stem="{ext}", ext="wav")
    assert path == Path("{stem} - {ext}.wav")


@pytest.mark.parametrize(
    "layout",
    [
        DEFAULT_LAYOUT,
        "{stem}.{ext}",
        "{track}/{stem}.{ext}",
        "a/b/{stem}/{track}.{ext}",
        "{{{stem}}}.{ext}",
    ],
)
def test_layouts_that_keep_files_apart_are_taken(layout: str) -> None:
    """Fields in any order, with directories."""
    assert validate_layout(layout) == layout


@pytest.mark.parametrize(
    "layout",
    [
        "",
        "{track}.{ext}",
        "{stem}",
        "{stem}.{ext}.{other}",
        "{stem.__class__}.{ext}",
        "{stem[0]}.{ext}",
        "{}.{stem}.{ext}",
        "{0}{stem}.{ext}",
        "../{stem}.{ext}",
        "a/../../{stem}.{ext}",
        "{track}/../{stem}.{ext}",
        "/abs/{stem}.{ext}",
        "\\abs\\{stem}.{ext}",
        "{stem}.{ext",
        "{stem}.ext}",
    ],
)
def test_layouts_that_lead_out_or_mix_files_are_refused(layout: str) -> None:
    """Unknown fields, no stem or no ending, broken braces, and every way out."""
    with pytest.raises(InvalidOptionError, match="layout"):
        validate_layout(layout)


@pytest.mark.parametrize("layout", ["{stem:d}.{ext}", "{stem!x}.{ext}", "{stem:.1}.{ext}"])
def test_a_layout_that_cannot_be_filled_in_is_refused_at_once(layout: str) -> None:
    """A format that fails, or cuts names so that two stems share one, is seen before any job."""
    with pytest.raises(InvalidOptionError):
        validate_layout(layout)


@pytest.mark.parametrize(
    ("layout", "track", "other", "alike"),
    [
        (DEFAULT_LAYOUT, "song", "song", True),
        (DEFAULT_LAYOUT, "song", "SONG", True),
        (DEFAULT_LAYOUT, "a/b", "a:b", True),
        (DEFAULT_LAYOUT, "song", "another", False),
        ("{stem}.{ext}", "song", "another", True),
        ("{track}/{stem}.{ext}", "song", "another", False),
        (DEFAULT_LAYOUT, "\udc80", "\udc81", True),
    ],
)
def test_tracks_share_a_place_whose_files_have_the_same_names(
    layout: str, track: str, other: str, alike: bool
) -> None:
    """The layout decides whether two tracks would overwrite each other in one directory."""
    one, two = (collision_key(Path("out"), layout, track=each) for each in (track, other))
    assert (one == two) is alike
    assert one != collision_key(Path("elsewhere\udc80"), layout, track=track)


def test_a_second_file_of_a_name_gets_a_number() -> None:
    """The first keeps its name; the ending stays."""
    path = Path("out/a - vocals.wav")
    assert with_number(path, 1) == path
    assert with_number(path, 2) == Path("out/a - vocals (2).wav")
