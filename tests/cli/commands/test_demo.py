from __future__ import annotations

import re
from typing import Any

import pytest

pytestmark = pytest.mark.anyio


async def test_it_needs_no_key_and_its_stems_add_up(shell: Any) -> None:
    """A song, nine stems, which add up to within 1e-3 of full scale, and a report are made."""
    ended = await shell.run("demo", "--out", "here", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    errors = [float(each) for each in re.findall(r"largest error (\d\.\d+)", ended.out)]
    assert len(errors) == 2
    assert max(errors) < 1e-3
    stems = list((shell.directory / "here").glob("song - *.wav"))
    assert len(stems) == 9
    assert all(f"  here/{path.name}" in ended.out for path in stems)
    assert len(re.findall(r"-\d+\.\d dB", ended.out)) == 20
    assert "here/report.html" in ended.out
    assert (shell.directory / "here" / "report.html").is_file()
