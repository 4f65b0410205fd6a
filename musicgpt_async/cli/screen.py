"""What stderr shows while tracks are processed."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import anyio
import attrs

from musicgpt_async.cli import streams
from musicgpt_async.cli.states import TrackState
from musicgpt_async.cli.text import plain

RENDER_INTERVAL = 0.125  # seconds between two renderings
CLOSE_TIMEOUT = 2.0  # seconds for the last rendering
MAX_CAUSES = 20  # different causes of retries that are shown
_REPR = re.compile(r"""\w+\((["'])(.*)\1\)""")
# The attribute of a log record in which stamina and the library keep the cause of a retry.
_CAUSE = "stamina.caused_by"


@attrs.frozen
class Totals:
    """The current numbers of the batch."""

    done: int = 0
    failed_by_state: Mapping[TrackState, int] = attrs.field(factory=dict)
    total: int = 0
    seconds: float = 0.0
    credits: float = 0.0


class Screen:
    """Lines on stderr, one after the other.

    A thread renders them, so that a stopped terminal or a pipe that is not read cannot block an
    upload. If rendering fails, it ends, and the work continues without output.

    Args:
        quiet: Whether to leave out retries.
    """

    shows_progress = False

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._lines: deque[tuple[str, str]] = deque()
        self._rendering = threading.Lock()
        self._is_lost = False

    def say(self, text: str, style: str = "") -> None:
        """Show a line at the next rendering."""
        if not self._is_lost:
            self._lines.append((text, style))

    def snapshot(self) -> None:
        """Take a snapshot of the state; called in the event loop."""

    @asynccontextmanager
    async def shown(self, *, verbose: bool = False) -> AsyncIterator[None]:
        """Render for the duration of the block.

        Args:
            verbose: Whether to show all of the library's log, and not its warnings alone.
        """
        self._guarded(self._open)
        retries = logging.NullHandler() if self._quiet else _RetryLines(self)
        handlers = [
            ("musicgpt_async", _LogLines(self, verbose=verbose)),
            ("musicgpt_async", retries),
            ("stamina", retries),
        ]
        for name, handler in handlers:
            logging.getLogger(name).addHandler(handler)
        library = logging.getLogger("musicgpt_async")
        level_before = library.level
        if verbose:
            library.setLevel(logging.DEBUG)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._render_periodically)
                yield
                tasks.cancel_scope.cancel()
        finally:
            library.setLevel(level_before)
            for name, handler in handlers:
                logging.getLogger(name).removeHandler(handler)
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await streams.run_in_thread(partial(self._guarded, self._close))

    async def _render_periodically(self) -> None:
        while not self._is_lost:
            await anyio.sleep(RENDER_INTERVAL)
            self.snapshot()
            await streams.run_in_thread(partial(self._guarded, self._paint))

    def _guarded(self, write: Callable[[], None]) -> None:
        with self._rendering:
            if self._is_lost:
                return
            try:
                write()
            except streams.FAILURES:
                self._is_lost = True
                self._lines.clear()

    def _open(self) -> None:
        """Begin."""

    def _paint(self) -> None:
        """Show the lines that are waiting; called in a thread."""
        while self._lines:
            text, _ = self._lines.popleft()
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _close(self) -> None:
        """Show what is left; called in a thread."""
        self._paint()


class _LogLines(logging.Handler):
    """Shows the library's warnings, or all of its log, as lines without tracebacks."""

    def __init__(self, screen: Screen, *, verbose: bool) -> None:
        super().__init__(logging.DEBUG if verbose else logging.WARNING)
        self._screen = screen
        self._verbose = verbose

    def emit(self, record: logging.LogRecord) -> None:
        if not self._verbose and hasattr(record, _CAUSE):
            return
        text = plain(record.getMessage())
        if self._verbose:
            moment = time.strftime("%H:%M:%S", time.localtime(record.created))
            text = f"{moment} {record.levelname} {record.name}: {text}"
        self._screen.say(text, "yellow" if record.levelno >= logging.WARNING else "dim")


class _RetryLines(logging.Handler):
    """Shows retries, each cause once; stamina's own message is not a sentence."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen
        self._reported: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, _CAUSE):
            return
        cause = _REPR.sub(r"\2", str(getattr(record, _CAUSE)))
        if cause not in self._reported and len(self._reported) < MAX_CAUSES:
            self._reported.add(cause)
            self._screen.say(f"{plain(cause)} Retrying.", "yellow")
