"""Names that distinguish tracks with the same title."""

from __future__ import annotations

from pathlib import Path

from musicgpt_async.cli.sources import is_url
from musicgpt_async.cli.text import plain

MAX_TITLES = 10_000  # the latest ones; more would take memory without bound


class Namesakes:
    """Names tracks by their titles, and by folder and file once a title comes twice."""

    def __init__(self) -> None:
        self._sources: dict[str, str | None] = {}  # None: several tracks have the title

    def add(self, title: str, source: str) -> None:
        """Remember a track.

        Args:
            title: Its title.
            source: Its path or URL; empty if it has none.
        """
        first = self._sources.setdefault(title, source)
        if first != source:
            self._sources[title] = None
        if len(self._sources) > MAX_TITLES:
            del self._sources[next(iter(self._sources))]

    def name(self, title: str, source: str) -> str:
        """Return what a track is called."""
        return plain(self.distinguish(title, source))

    def distinguish(self, title: str, source: str) -> str:
        """Return what a track is called, with characters that a terminal should not get."""
        is_unique = self._sources.get(title, source) is not None
        return title if is_unique or not source else _shorten(source)


def _shorten(source: str) -> str:
    """Return a URL, or the folder and name of a file."""
    return source if is_url(source) else str(Path(*Path(source).parts[-2:]))
