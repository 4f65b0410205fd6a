"""The pages of the documentation: their code runs, their commands parse, their names exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
from factories.page_runner import PageRunner
from factories.pages import PAGES, README, ROOT, Block, blocks, read

from musicgpt_async import ExtractionJob
from musicgpt_async.cli.app import app
from musicgpt_async.cli.states import TrackState
from musicgpt_async.emulator import Emulator, Fault

DOCS = [page for page in PAGES if page != README]

# Sections whose code needs more than a session, and the tests that run it.
RUN_IN = {
    "bots: The common part": "integrations/test_discord.py",
    "bots: Discord": "integrations/test_discord.py",
    "bots: Telegram": "integrations/test_aiogram.py",
    "services: FastAPI": "integrations/test_fastapi.py",
    "services: aiohttp": "integrations/test_aiohttp.py",
    "testing: In your own tests": "test_testing.py",
}
# Pages that have tests of their own, if they are there.
PAGES_RUN_IN = {"task-queues": "integrations/test_task_queues.py"}
# What calls the functions that a page only defines.
THEN = {
    "batches": "await extract_folder(Path('album'))",
    "webhooks": "await main()",
    "observability": "await traced(['song.flac'])",
    "testing": "await lose_a_response()",
}


@pytest.fixture(autouse=True)
def _loop_is_never_blocked() -> None:
    """A reader's own code may block the loop for a moment, as a glob does: no guard here."""


@pytest.fixture
def directory(song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's working directory, with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "album").mkdir()
    for name in ("song.flac", "one.flac", "album/one.flac", "album/two.flac"):
        shutil.copy(song, tmp_path / name)
    trustme.CA().cert_pem.write_to_path("company-ca.pem")
    return tmp_path


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
        return number


def _runnable(page: Path) -> list[Block]:
    if page.stem in PAGES_RUN_IN:
        return []
    return [block for block in blocks(page, "python") if block.place not in RUN_IN]


@pytest.mark.anyio
@pytest.mark.musicgpt(parallel=None, polls_per_minute=None)
@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    "page", [each for each in DOCS if _runnable(each)], ids=lambda each: each.stem
)
async def test_the_code_of_a_page_runs(
    page: Path, musicgpt_emulator: Emulator, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block of a page runs against the emulator, in order, in one namespace."""
    monkeypatch.setenv("WEBHOOK_SECRET", "of the test")
    runner = PageRunner(musicgpt_emulator, port)
    runnable = _runnable(page)
    if page.stem == "money":
        lost = [block for block in runnable if "session.bind" in block.code]
        runnable = [block for block in runnable if block not in lost]
        await _bind_a_lost_job(runner, lost)
    await runner.run(runnable, then=THEN.get(page.stem, ""))


async def _bind_a_lost_job(runner: PageRunner, lost: list[Block]) -> None:
    """Run the block that binds a job, for a job whose response was lost."""
    runner.vendor.script(Fault("submit", "drop_before_answer"))
    then = "from musicgpt_async import SubmissionUnknownError\n"
    then += "lost = session.submit('song.flac')\n"
    then += "try:\n    await lost\nexcept SubmissionUnknownError:\n    job_id = lost.id"
    await runner.run([], then=then)
    runner.names["task_id"] = runner.vendor.submissions[0].task_id
    await runner.run(lost, then="assert (await job).task_id == task_id")


def test_code_that_runs_elsewhere_exists() -> None:
    """The sections that another test runs are on the pages, and the tests are there."""
    places = {block.place for page in DOCS for block in blocks(page, "python")}
    assert set(RUN_IN) <= places
    files = [*RUN_IN.values(), *(PAGES_RUN_IN.get(page.stem, "") for page in DOCS)]
    assert all((ROOT / "tests" / file).exists() for file in files)


def _commands() -> list[Any]:
    lines = [
        (f"{page.stem}: {line}", line)
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.code.splitlines()
        if line.startswith("musicgpt-async ")
    ]
    return [pytest.param(line, id=name) for name, line in dict(lines).items()]


@pytest.mark.parametrize("line", _commands())
def test_a_command_line_parses(line: str) -> None:
    """The command accepts every command line on a page."""
    arguments = shlex.split(line, comments=True)[1:]
    command, *_ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert command is not None


def test_options_exist() -> None:
    """Every option that the text of a page names is one of the command's."""
    options = {"--help", "--version", "--install-completion", "--pool"}  # the last is Celery's
    for command in app:
        if not command.startswith("-"):
            for argument in app[command].assemble_argument_collection():
                options.update(argument.names)
    named = {
        (page.stem, option)
        for page in PAGES
        for option in re.findall(r"`(?:musicgpt-async [^`]*?)?(--[a-z-]+)", read(page))
    }
    assert [each for each in sorted(named) if each[1] not in options] == []


def test_extras_exist() -> None:
    """Whatever a page installs is an extra of the package, and the quickstart lists them all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    for page in PAGES:
        for named in re.findall(r"musicgpt-async\[([\w,]+)\]", read(page)):
            assert set(named.split(",")) <= extras, page
    listed = re.findall(r"^\| `(\w+)` \| ", read(ROOT / "docs" / "quickstart.md"), re.MULTILINE)
    assert set(listed) == extras


def test_nox_sessions_exist() -> None:
    """The internals list the sessions of noxfile.py, all of them, and pages name no other."""
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    sessions = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("session" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    internals = read(ROOT / "docs" / "internals.md")
    table = internals[internals.index("| session | does |") :]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sessions
    for page in PAGES:
        assert set(re.findall(r"noxfile\.py -s (\w+)", read(page))) <= sessions, page


def test_the_table_of_the_handle_is_true() -> None:
    """Each attribute and method that the quickstart's table names is one of the handle's."""
    text = read(ROOT / "docs" / "quickstart.md")
    table = text[text.index("| `await job`") : text.index("`cancel()` stops tracking")]
    names = re.findall(r"`(?:await job\.|job\.)?(\w+)(?:\(.*?\))?`", table)
    handle = {*dir(ExtractionJob), *(field.name for field in attrs.fields(ExtractionJob))}
    assert {"task_id", "eta", "events", "cancel", "download", "accepted"} <= set(names)
    assert [each for each in names if each not in handle | {"job", "Extraction"}] == []


def test_the_list_is_one(directory: Path) -> None:
    """The command understands the list on the page of batches, piped in as it says there."""
    (block,) = (each for each in blocks(ROOT / "docs" / "batches.md", "text"))
    done = subprocess.run(
        [sys.executable, "-m", "musicgpt_async.cli", "extract", "--list", "-", "--dry-run"],
        input=block.code,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 tracks would be submitted" in done.stderr


@pytest.mark.usefixtures("musicgpt_emulator")
def test_the_json_has_the_documented_fields(directory: Path) -> None:
    """Each field of the example of `--json` is in what the command prints, of the same kind."""
    (example,) = blocks(ROOT / "docs" / "commands.md", "json")
    program = [sys.executable, "-m", "musicgpt_async.cli", "extract", "song.flac", "--json"]
    done = subprocess.run(
        [*program, "--stem", "vocals"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    documented, printed = json.loads(example.code), json.loads(done.stdout)
    assert list(printed) == list(documented)
    for name, value in documented.items():
        assert type(printed[name]) is type(value), name
    for name in ("track", "source", "ok", "state", "stems", "format", "in_work"):
        assert printed[name] == documented[name], name
    assert printed["files"].keys() == documented["files"].keys()


def test_the_states_of_the_command_are_listed() -> None:
    """The command reference explains each state that the command shows, and no other."""
    commands = read(ROOT / "docs" / "commands.md")
    table = commands[commands.index("| state | meaning |") : commands.index("`jobs --failed`")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [str(each) for each in TrackState]


def test_the_commands_are_listed() -> None:
    """The command reference begins with a table of all commands."""
    commands = read(ROOT / "docs" / "commands.md").partition("## Environment")[0]
    listed = re.findall(r"^\| `(\w+)` \|", commands, re.MULTILINE)
    assert sorted(listed) == sorted(name for name in app if not name.startswith("-"))


def test_the_errors_named_are_the_librarys() -> None:
    """Every class of error that a page names is one that the library raises."""
    import musicgpt_async  # noqa: PLC0415 - its names are what is looked for

    builtin = {"TimeoutError", "ConnectionError", "ValueError", "PermissionError", "OSError"}
    for page in PAGES:
        named = set(re.findall(r"`(\w+Error)`", read(page))) - builtin
        assert named <= set(musicgpt_async.__all__), page
