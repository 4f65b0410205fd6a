"""What people see on stderr while tracks are on their way."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import attrs

from musicgpt_async.cli.text import plain

# Seconds between two paintings.
PAUSE = 0.125
# Different causes of retries that are told.
MOST_CAUSES = 20
_REPR = re.compile(r"""\w+\((["'])(.*)\1\)""")


@attrs.frozen
class Totals:
    """The numbers of the whole batch, as they stand."""

    done: int = 0
    failed: int = 0
    total: int = 0
    seconds: float = 0.0
    credits: float = 0.0


class Screen:
    """Lines on stderr, one after the other.

    Painting happens in a thread: a terminal that is stopped, or a pipe that nobody reads, holds up
    no upload.

    Args:
        quiet: Whether what is tried again is not worth a word.
    """

    shows_progress = False

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._lines: deque[tuple[str, str]] = deque()
        self._painting = threading.Lock()

    def say(self, text: str, style: str = "") -> None:
        """Show a line when there is time."""
        self._lines.append((text, style))

    def paint(self) -> None:
        """Show what was said; called in a thread."""
        with self._painting:
            while self._lines:
                text, _ = self._lines.popleft()
                sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def look(self) -> None:
        """Take a picture of how things stand; called in the event loop."""

    def open(self) -> None:
        """Begin."""

    def close(self) -> None:
        """Show what is left."""
        self.paint()

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Paint for as long as the block lasts."""
        self.open()
        retries = logging.NullHandler() if self._quiet else _RetryLines(self)
        handlers = {"musicgpt_async": _LogLines(self), "stamina": retries}
        for name, handler in handlers.items():
            logging.getLogger(name).addHandler(handler)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._repaint)
                yield
                tasks.cancel_scope.cancel()
        finally:
            for name, handler in handlers.items():
                logging.getLogger(name).removeHandler(handler)
            self.close()

    async def _repaint(self) -> None:
        while True:
            await anyio.sleep(PAUSE)
            self.look()
            await anyio.to_thread.run_sync(self.paint)


class _LogLines(logging.Handler):
    """Shows the library's warnings as lines, without tracebacks."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(plain(record.getMessage()), "yellow")


class _RetryLines(logging.Handler):
    """Says what is tried again by itself, each cause once; stamina's own words are no sentence."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        error = str(getattr(record, "stamina.caused_by", ""))
        cause = _REPR.sub(r"\2", error)
        if cause not in self._told and len(self._told) < MOST_CAUSES:
            self._told.add(cause)
            self._screen.say(f"{plain(cause)} It is tried again.", "yellow")
