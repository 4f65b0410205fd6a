"""The README: its code runs, its links lead on, and the package index shows it whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from factories.pages import README, ROOT, anchor, blocks, headings, read

from musicgpt_async import Stem
from musicgpt_async.emulator import Emulator

TEXT = read(README)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LINKS = re.findall(r"\]\(([^)\s]+)\)", TEXT)


def _python() -> tuple[str, str]:
    first, second = (block.code for block in blocks(README, "python"))
    return first, second


def _run(code: str, directory: Path, **environment: str) -> str:
    """Run code as a user's own program; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def directory(song: Path, tmp_path: Path) -> Path:
    """A user's directory, with a song in it."""
    shutil.copy(song, tmp_path / "song.flac")
    return tmp_path


@pytest.mark.musicgpt(separate=True)
def test_the_first_program_brings_the_stems(musicgpt_emulator: Emulator, directory: Path) -> None:
    """The first program of the README, pasted into a file, splits a real song."""
    printed = _run(_python()[0], directory)
    (submission,) = musicgpt_emulator.submissions
    assert submission.stems == ("vocals", "drums")
    assert sorted(path.name for path in (directory / "stems").iterdir()) == [
        "song - drums.wav",
        "song - vocals.wav",
    ]
    assert str(submission.cost) in printed


def test_a_batch_started_again_submits_nothing_twice(
    musicgpt_emulator: Emulator, directory: Path
) -> None:
    """The batch of the README finds tracks in folders below, and its journal remembers them."""
    (directory / "live").mkdir()
    shutil.copy(directory / "song.flac", directory / "live" / "other.flac")
    code = "import asyncio\nfrom musicgpt_async import MusicGPTSession\n"
    code += _python()[1] + "\nasyncio.run(batch(Path()))\n"
    first, second = _run(code, directory), _run(code, directory)
    assert len(musicgpt_emulator.submissions) == 2
    assert sorted(first.splitlines()) == sorted(second.splitlines())
    assert len(list((directory / "stems").glob("*.wav"))) == 8


def test_it_is_short() -> None:
    """Two hundred lines at most; the rest is on the pages of the documentation."""
    assert len(TEXT.splitlines()) <= 200


def test_links_lead_to_what_is_there() -> None:
    """Relative links are files of the project, and their anchors headings of those pages."""
    for link in LINKS:
        if link.startswith("https://"):
            continue
        path, _, name = link.partition("#")
        page = ROOT / path if path else README
        assert page.exists(), link
        if name:
            assert name in {anchor(heading) for heading in headings(page)}, link
    assert "LICENSE" in LINKS


def test_every_page_is_linked() -> None:
    """A reader finds each page of the documentation from the README."""
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    linked = {link.partition("#")[0] for link in LINKS}
    assert pages - linked == {"docs/index.md", "docs/changelog.md"}


def test_the_package_index_gets_absolute_links() -> None:
    """What the package's metadata shows leads to the repository, pictures to their raw files."""
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = TEXT
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) == len(LINKS)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    source = PROJECT["project"]["urls"]["Source"]
    assert f"{source}/raw/main/docs/pictures/report.png" in links
    assert f"{source}/blob/main/docs/quickstart.md" in links


def test_numbers_are_the_librarys() -> None:
    """The README counts the stems and the tested faults as they are, and so does a page."""
    from table import ROWS  # noqa: PLC0415 - the table of another suite

    assert f"{len(Stem)} stems" in TEXT
    assert f"{len(ROWS)} faults" in TEXT
    assert f"{len(ROWS)} faults" in read(ROOT / "docs" / "comparison.md")
