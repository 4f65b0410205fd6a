"""The documentation as tests read it: its pages, and the blocks of code on them."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))

_HEADING_OR_BLOCK = re.compile(
    r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@attrs.frozen
class Block:
    """One block of code.

    Attributes:
        page: The file that it is in.
        section: The heading above it.
        language: As it is marked.
        code: Its lines.
        line: The line of the page on which it begins.
    """

    page: Path
    section: str
    language: str
    code: str
    line: int

    @property
    def place(self) -> str:
        """The page and section, for a test's name."""
        return f"{self.page.stem}: {self.section}"


def read(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text("utf-8")


def blocks(page: Path, language: str, section: str | None = None) -> list[Block]:
    """Return the blocks of a page in one language, of one section if it is named."""
    text, found, heading = read(page), [], ""
    for match in _HEADING_OR_BLOCK.finditer(text):
        heading = match["heading"] or heading
        if match["language"] == language and section in (None, heading):
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Block(page, heading, language, match["code"], line))
    return found


def headings(page: Path) -> list[str]:
    """Return the headings of a page; lines in its code are none."""
    return [
        match["heading"] for match in _HEADING_OR_BLOCK.finditer(read(page)) if match["heading"]
    ]


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
