from __future__ import annotations

import asyncio
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from musicgpt_async._version import __version__
from musicgpt_async.cli import event_loop, main


@pytest.mark.anyio
async def test_a_missing_extra_is_one_clear_line(shell: Any, tmp_path: Path) -> None:
    """Without cyclopts the command says what to install, and ends with 2."""
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "cyclopts.py").write_text("raise ModuleNotFoundError(name='cyclopts')")
    ended = await shell.run("extract", "song.wav", PYTHONPATH=str(missing))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert 'pip install "musicgpt-async[cli]"' in ended.err


@pytest.mark.anyio
async def test_versions_are_told_without_extras_too(open_vendor: Any, tmp_path: Path) -> None:
    """`--version` and `doctor` show versions, extras and paths, and need no extra themselves."""
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "cyclopts.py").write_text("raise ModuleNotFoundError(name='cyclopts')")
    async with open_vendor() as (_, shell):
        told = await shell.together(
            shell.run("--version"),
            shell.run("--version", PYTHONPATH=str(missing)),
            shell.run("doctor", PYTHONPATH=str(missing)),
        )
    assert [each.code for each in told] == [0, 0, 0]
    assert told[0].out == told[1].out
    assert "the key is accepted" in told[2].out
    for each in told:
        assert sys.executable in each.out
        assert f"aiohttp {metadata.version('aiohttp')}" in each.out
        assert re.search(
            r"^extra +cli: installed \(.*cyclopts .*sqlalchemy ", each.out, re.MULTILINE
        )


@pytest.mark.anyio
async def test_verbose_shows_the_log(open_vendor: Any) -> None:
    """With -v the library's log is on stderr, with its loggers, and never the key."""
    async with open_vendor(seconds=0.1, api_key="very-secret") as (_, shell):
        options = ("--no-journal", "-s", "bass", "--plan", "pro")
        track = shell.track("song.wav")
        loud, plain = await shell.together(
            shell.run("extract", track, "-v", "--out", "a", *options),
            shell.run("extract", track, "--out", "b", *options),
        )
    assert (loud.code, plain.code) == (0, 0)
    assert re.search(r"^\d\d:\d\d:\d\d DEBUG musicgpt_async\.\S+: ", loud.err, re.MULTILINE)
    assert "very-secret" not in loud.err
    assert "DEBUG" not in plain.err


@pytest.mark.anyio
async def test_version_and_help(shell: Any) -> None:
    """--version begins with the version; --help names every command and the variables."""
    version, told = (
        each.out for each in await shell.together(shell.run("--version"), shell.run("--help"))
    )
    assert version.startswith(f"musicgpt-async {__version__}\n")
    commands = ("extract", "resume", "fetch", "jobs", "report", "doctor", "emulate", "demo")
    lines = told.splitlines()
    first = [next(iter(line.strip("│ ").split()), "") for line in lines]
    found = [first.index(name) for name in commands]
    assert found == sorted(found)  # in the order that they are used in
    assert all(word in told for word in ("--install-completion", "MUSICGPT_API_KEY"))


@pytest.mark.anyio
async def test_help_imports_no_session(shell: Any) -> None:
    """`--help` starts at once: it imports no HTTP client, database or event loop."""
    ended = await shell.run("--help", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in ended.err.splitlines()}
    assert ended.code == 0
    assert "cyclopts" in imported
    assert imported.isdisjoint({"aiohttp", "anyio", "sqlalchemy", "uvloop"})


def test_commands_run_on_uvloop() -> None:
    """A command runs on uvloop if that is installed."""
    uvloop = pytest.importorskip("uvloop")

    async def check() -> int:
        return int(isinstance(asyncio.get_running_loop(), uvloop.Loop))

    assert event_loop.run(check) == 1


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that does not exist ends with 2 and the names of those that do."""
    assert main(["extrac"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "extract" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extract", "song.wav", "--out"], "--out requires an argument"),
        (["fetch"], "TASK_IDS is missing"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing option and a missing value have different messages."""
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
