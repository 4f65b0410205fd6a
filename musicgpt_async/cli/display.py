"""Which screen suits the stream that people look at."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from musicgpt_async.cli.progress import Board
from musicgpt_async.cli.screen import Screen, Totals


def screen_for(board: Board, totals: Callable[[], Totals], *, quiet: bool) -> Screen:
    """Return moving bars where stderr is a terminal, lines elsewhere or where it is quiet."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM", "") in ("dumb", "unknown"):
        return Screen()
    from musicgpt_async.cli.live import LiveScreen  # noqa: PLC0415 - rich, where it is needed

    return LiveScreen(board, totals)
