"""What type checkers say to users: a misspelt name is an error before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from musicgpt_async import Preprocessing, PreprocessingName, Stem, StemName

PROGRAM = """
from musicgpt_async import MusicGPTSession, Stem

async def main(session: MusicGPTSession, text: str) -> None:
    session.submit("a.wav", stems=["vocals", Stem.DRUMS], preprocessing=["Denoise"])
    session.submit("a.wav", stems=("vocals", Stem(text)))
    await session.extract("a.wav", "out", stems=["bass"])
    session.extract_many(["a.wav"], "out", stems={"bass"})
    session.submit("a.wav", stems=["vocal"])  # wrong
    session.submit("a.wav", stems="vocals")  # wrong
    session.submit("a.wav", preprocessing=["denoise"])  # wrong
    session.extract_many(["a.wav"], "out", stems=["drum"])  # wrong
"""
WRONG = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line]


def test_the_names_are_those_of_the_enums() -> None:
    """Literals and enums name the same stems and options, in the same order."""
    assert list(get_args(StemName)) == [str(stem) for stem in Stem]
    assert list(get_args(PreprocessingName)) == [str(each) for each in Preprocessing]


def test_mypy_reports_what_is_misspelt(tmp_path: Path) -> None:
    """Of a program's calls mypy refuses those with a wrong name, and no other."""
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = (
        sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent",
        f"--cache-dir={tmp_path}", "program.py",
    )  # fmt: skip
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = ended.stdout.splitlines()
    errors = {int(line.split(":")[1]) for line in lines if ": error: " in line}
    assert sorted(errors) == WRONG, ended.stdout
