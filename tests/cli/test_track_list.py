from __future__ import annotations

from pathlib import Path

import pytest

from musicgpt_async.cli import track_list
from musicgpt_async.cli.usage import UsageError


def read(path: Path, text: str) -> list[track_list.ListRow]:
    """Write a list and read it."""
    path.write_text(text)
    with track_list.open_list(path) as list_:
        assert list_ is not None
        return list(track_list.rows(list_))


def test_a_plain_list_has_a_path_or_url_a_line(tmp_path: Path) -> None:
    """Blank lines are skipped, and a comma in the first file's name makes it no header."""
    (tmp_path / "Earth, Wind.flac").touch()
    text = "\ufeffEarth, Wind.flac\n\na b.wav\r\nhttps://example.com/c.mp3?a=1,2"
    found = read(tmp_path / "list.txt", text)
    assert [row.source for row in found] == [
        "Earth, Wind.flac", "a b.wav", "https://example.com/c.mp3?a=1,2",
    ]  # fmt: skip
    assert all(row.stems is row.preprocessing is row.eco_mode is row.label is None for row in found)
    assert found[1].location.endswith("line 3")


@pytest.mark.parametrize("text", ["song.wav,bass\n", "stems,label\nbass,x\n", "stems\nbass\n", ""])
def test_a_header_with_a_mistake_is_not_taken_for_a_path(tmp_path: Path, text: str) -> None:
    """A first line that looks like a table without a source is refused, with two suggestions."""
    with pytest.raises(UsageError, match=r"no column 'source'.* each line is the path"):
        read(tmp_path / "list.csv", text)


def test_eco_mode_is_said_for_each_track(tmp_path: Path) -> None:
    """CSV words and JSON booleans; an empty cell leaves it to the command line."""
    table = "source,eco_mode\na.wav,true\nb.wav,No\nc.wav,\n"
    assert [row.eco_mode for row in read(tmp_path / "a.csv", table)] == [True, False, None]
    lines = '{"source": "a.wav", "eco_mode": true}\n{"source": "b.wav"}\n'
    assert [row.eco_mode for row in read(tmp_path / "a.jsonl", lines)] == [True, None]
    with pytest.raises(UsageError, match=r"line 2: eco_mode is true or false, not 'perhaps'"):
        read(tmp_path / "b.csv", "source,eco_mode\na.wav,perhaps\n")
    with pytest.raises(UsageError, match=r"eco_mode is true or false, not '1'"):
        read(tmp_path / "b.jsonl", '{"source": "a.wav", "eco_mode": 1}\n')
