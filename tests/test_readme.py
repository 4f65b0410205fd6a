"""The README: its code runs, its pictures and signatures are the library's, its links lead on."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

from musicgpt_async import ExtractionJob, MusicGPTSession, Stem, WebhookReceiver
from musicgpt_async._rules import lifecycle
from musicgpt_async.emulator import Emulator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")

# Where a section's code is run: here, or in a file that has what it needs.
RUN_IN = {
    "The library in ten lines": "test_readme.py",
    "Batches": "test_readme.py",
    "Observability": "test_readme.py",
    "The emulator": "test_readme.py",
    "In your own tests": "test_testing.py",
    "In a FastAPI service": "integrations/test_fastapi.py",
    "In an aiohttp application": "integrations/test_aiohttp.py",
    "In a bot": "integrations/test_discord.py",
}


@attrs.frozen
class Block:
    """One block of code.

    Attributes:
        section: The heading above it.
        language: As it is marked.
        code: Its lines.
    """

    section: str
    language: str
    code: str


def _blocks() -> list[Block]:
    found = re.finditer(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    blocks, section = [], ""
    for match in found:
        section = match[1] or section
        if match[2]:
            blocks.append(Block(section, match[2], match[3]))
    return blocks


def _python(section: str) -> str:
    return "".join(
        block.code for block in _blocks() if (block.section, block.language) == (section, "python")
    )


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


def test_every_block_of_python_is_run_somewhere() -> None:
    """A section with code that no test knows of fails here."""
    sections = {block.section for block in _blocks() if block.language == "python"}
    assert sections == set(RUN_IN)
    assert all((ROOT / "tests" / file).exists() for file in RUN_IN.values())


@pytest.mark.musicgpt(separate=True)
def test_the_ten_lines_bring_the_stems(musicgpt_emulator: Emulator, directory: Path) -> None:
    """The first program of the README, pasted into a file, splits a real song."""
    printed = _run(_python("The library in ten lines"), directory)
    (submission,) = musicgpt_emulator.submissions
    assert submission.stems == ("vocals", "drums")
    assert submission.preprocessing == ("Denoise",)
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
    code = "import asyncio\nfrom pathlib import Path\nfrom musicgpt_async import MusicGPTSession\n"
    code += _python("Batches") + "\nasyncio.run(batch(Path()))\n"
    first, second = _run(code, directory), _run(code, directory)
    assert len(musicgpt_emulator.submissions) == 2
    assert sorted(first.splitlines()) == sorted(second.splitlines())
    assert len(list((directory / "stems").glob("*.wav"))) == 2


@pytest.mark.usefixtures("musicgpt_emulator")
def test_the_observed_batch_tells_its_spans(directory: Path) -> None:
    """The example tells OpenTelemetry's global provider of each job and its phases."""
    code = f"""
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
{_python("Observability")}
asyncio.run(observed(["song.flac"]))
print(*[span.name for span in spans.get_finished_spans()])
"""
    printed = _run(code, directory).splitlines()
    names = "musicgpt.upload musicgpt.wait musicgpt.job musicgpt.download"
    assert printed == ["song.flac None", names]


def test_the_emulator_loses_an_answer_and_nothing_is_sent_twice(directory: Path) -> None:
    """The emulator's example runs with no account and no environment."""
    code = _python("The emulator") + "\nimport asyncio\nasyncio.run(tried_out())\n"
    _run(code, directory, MUSICGPT_API_KEY="", MUSICGPT_BASE_URL="")


def test_the_list_is_one(directory: Path) -> None:
    """The command understands the README's list, piped in as the README says."""
    (list_,) = (block.code for block in _blocks() if block.language == "csv")
    shutil.copy(directory / "song.flac", directory / "one.flac")
    program = [sys.executable, "-m", "musicgpt_async.cli", "extract"]
    done = subprocess.run(
        [*program, "--list", "-", "--out", "o", "--dry-run"],
        input=list_,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 tracks would be submitted" in done.stderr


def test_the_picture_of_a_job_is_made_from_the_table() -> None:
    """What stands between the markers is what diagram() draws."""
    (picture,) = re.findall(
        r"<!-- lifecycle -->\n```mermaid\n(.*?)\n```\n<!-- /lifecycle -->", README, re.DOTALL
    )
    assert picture == lifecycle.diagram()


def test_links_lead_to_what_is_there() -> None:
    """Relative links are files of the project, and links within the page are its headings."""
    headings = {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)}
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("https://"):
            assert (ROOT / link.partition("#")[0]).exists(), link
    assert "LICENSE" in links


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("session.submit", MusicGPTSession.submit),
        ("job.download", ExtractionJob.download),
        ("WebhookReceiver", WebhookReceiver.__init__),
    ],
)
def test_signatures_are_the_librarys(name: str, function: Any) -> None:
    """A signature that the README spells out is the function's own."""
    own = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    spelled = str(inspect.Signature(own)).replace("'", '"')
    assert f"{name}{spelled}" in README


def test_what_is_said_of_a_handle_is_true() -> None:
    """Each attribute and method that the table of the handle names exists, and 23 are the stems."""
    table = README[README.index("| `await job`") : README.index("`session.attach(task_id)`")]
    names = re.findall(r"`(?:await job\.|job\.)?(\w+)(?:\(.*?\))?`", table)
    handle = {*dir(ExtractionJob), *(field.name for field in attrs.fields(ExtractionJob))}
    told = {"task_id", "eta", "events", "cancel", "download", "accepted", "credit_estimate"}
    assert told <= set(names)
    assert [each for each in names if each not in handle | _OTHER_NAMES] == []
    assert f"{len(Stem)} stems" in README


# Names in the handle's table that are not the handle's own.
_OTHER_NAMES = {"job", "Extraction", "stems", "cost", "duration", "raw", "format"}


def test_extras_exist() -> None:
    """Whatever the README installs is an extra of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = re.findall(r"musicgpt-async\[([\w,]+)\]", README)
    assert named
    for extras in named:
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_chores_exist() -> None:
    """The chores that the README lists are noxfile.py's, all of them."""
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    chores = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("session" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    (listed,) = re.findall(r"lists the chores: (.+?)\. ", README, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == chores
    shell = [block.code for block in _blocks() if block.language == "sh"]
    assert set(re.findall(r"noxfile\.py -s (\w+)", "".join(shell))) <= chores


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`musicgpt-async (\w+)", README))))
def test_commands_exist(command: str) -> None:
    """Every command that the README names has a help page."""
    program = [sys.executable, "-m", "musicgpt_async.cli", command, "--help"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert command in done.stdout
