"""docs/deployment.md and docs/task-queues.md: the commands in them exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from musicgpt_async import Journal, MusicGPTSession
from musicgpt_async.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    for name in ("deployment", "task-queues")
}
BLOCKS = "".join(
    re.findall(r"^```(?:sh|yaml)\n(.*?)^```$", "\n".join(PAGES.values()), re.DOTALL | re.MULTILINE)
)
COMMANDS = re.findall(r"^(?: +command: )?(musicgpt-async .+)$", BLOCKS, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_parse(line: str) -> None:
    """Every line of a shell, and a container's command, is one that the command accepts."""
    command, *_ = app.parse_args(
        shlex.split(line, comments=True)[1:], exit_on_error=False, print_error=False
    )
    assert command is not None


def test_the_sessions_and_journals_can_be_made() -> None:
    """The one-liners of the deployment page are right, and their extras exist."""
    names = {"MusicGPTSession": lambda journal: MusicGPTSession("key", journal=journal)}
    for code in re.findall(
        r"^```python\n(.*?)^```$", PAGES["deployment"], re.DOTALL | re.MULTILINE
    ):
        exec(compile(code, "deployment.md", "exec"), {**names, "Journal": Journal})  # noqa: S102
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    for text in PAGES.values():
        for named in re.findall(r"musicgpt-async\[([\w,]+)\]", text):
            assert set(named.split(",")) <= extras
    table = re.findall(r"\| `(\w+)` \|$", PAGES["deployment"], re.MULTILINE)
    assert set(table) == {"journal", "postgres", "procrastinate"}
