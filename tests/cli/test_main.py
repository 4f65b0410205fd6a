from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from musicgpt_async._version import __version__
from musicgpt_async.cli import main


@pytest.mark.anyio
async def test_a_missing_extra_is_one_clear_line(shell: Any, tmp_path: Path) -> None:
    """Without cyclopts the command says what to install, and ends with 2."""
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "cyclopts.py").write_text("raise ModuleNotFoundError(name='cyclopts')")
    ended = await shell.run("--version", PYTHONPATH=str(missing))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert 'pip install "musicgpt-async[cli]"' in ended.err


@pytest.mark.anyio
async def test_version_and_help(shell: Any) -> None:
    """--version is the version alone; --help names every command and the variables."""
    version, told = (
        each.out for each in await shell.together(shell.run("--version"), shell.run("--help"))
    )
    assert version == f"{__version__}\n"
    commands = ("extract", "resume", "jobs", "doctor", "emulate", "demo", "--install-completion")
    assert all(command in told for command in (*commands, "MUSICGPT_API_KEY"))


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that does not exist ends with 2 and the names of those that do."""
    assert main(["extrac"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "extract" in said.err
