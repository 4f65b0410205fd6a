from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.fingerprint import compute_fingerprint

NAMES = st.lists(st.sampled_from(["vocals", "drums", "bass", "piano"]), unique=True)


@given(location=st.text(), version=st.text(), stems=NAMES, preprocessing=NAMES)
def test_the_same_track_with_the_same_options_is_the_same(
    location: str, version: str, stems: list[str], preprocessing: list[str]
) -> None:
    """The order of stems and options makes no difference, nor does their container."""
    one = compute_fingerprint(location, version, stems=stems, preprocessing=preprocessing)
    assert one == compute_fingerprint(
        location, version, stems=set(stems), preprocessing=tuple(reversed(preprocessing))
    )
    assert len(one) == 64


@pytest.mark.parametrize(
    "other",
    [
        ("b.wav", "1", ["vocals"], []),
        ("a.wav", "2", ["vocals"], []),
        ("a.wav", "1", ["drums"], []),
        ("a.wav", "1", ["vocals", "drums"], []),
        ("a.wav", "1", [], []),
        ("a.wav", "1", ["vocals"], ["Denoise"]),
        ("a.wav", "1", [], ["vocals"]),
        ("a.wav1", "", ["vocals"], []),
        ("", "a.wav1", ["vocals"], []),
    ],
)
def test_anything_else_is_another(other: tuple[str, str, list[str], list[str]]) -> None:
    """Place, content, stems and options each count, and none runs into the next."""
    location, version, stems, preprocessing = other
    assert compute_fingerprint(
        "a.wav", "1", stems=["vocals"], preprocessing=[]
    ) != compute_fingerprint(location, version, stems=stems, preprocessing=preprocessing)


def test_a_file_name_that_is_no_utf_8_has_a_fingerprint() -> None:
    """File names with surrogates, as the disk has them, distinguish tracks."""
    names = ["caf\udce9.wav", "caf\udce8.wav", "café.wav"]
    assert len({compute_fingerprint(name, "1", stems=[], preprocessing=[]) for name in names}) == 3
