"""Directories of stems, their journals, and the report made of them."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs

from musicgpt_async import Journal
from musicgpt_async.cli.settings import JOURNAL
from musicgpt_async.emulator.audio.separation import separate
from musicgpt_async.emulator.audio.song import compose
from musicgpt_async.models import JobRecord

# Seconds after which something hangs.
HANG = 60
HOSTILE = "<script>document.title='hacked'</script> \"#1\" 100%25? ünï 夜"
# File names on Linux may hold all but the slash.
HOSTILE_FILE = HOSTILE.replace("/", "\N{DIVISION SLASH}")
STEMS = ("vocals", "drums", "bass", "instrumental")


@attrs.define
class Parsed(HTMLParser):
    """What an HTML file holds: its elements with their attributes, and its text."""

    elements: list[tuple[str, dict[str, str | None]]] = attrs.field(factory=list)
    text: str = ""

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.text += data

    def all(self, class_: str) -> list[Mapping[str, str | None]]:
        """The attributes of all elements of a class."""
        return [found for _, found in self.elements if class_ in (found.get("class") or "").split()]


def read(directory: Path) -> Parsed:
    """Read a directory's report."""
    parsed = Parsed()
    parsed.feed((directory / "report.html").read_text("utf-8"))
    return parsed


def stem_files(directory: Path, track: str, *, seconds: float, song: str | None = None) -> None:
    """Compose a song and split it for real."""
    path = compose(directory / (song or f"{track}.flac"), seconds=seconds)
    separate(path, {stem: directory / f"{track} - {stem}.wav" for stem in STEMS})


def record(name: str, **values: Any) -> JobRecord:
    """Make a record of a job."""
    return JobRecord(
        **{"id": name, "fingerprint": name, "source": f"/nowhere/{name}.wav", **values}
    )


async def with_journal(directory: Path, *records: JobRecord) -> None:
    """Write a journal."""
    async with Journal(directory / JOURNAL) as journal:
        for each in records:
            await journal._add_or_get(each, force=True)
