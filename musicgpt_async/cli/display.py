"""Which screen suits the stream that people look at."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from musicgpt_async.cli.progress import ProgressModel
from musicgpt_async.cli.screen import Screen, Totals


def make_screen(
    progress: ProgressModel, totals: Callable[[], Totals], *, quiet: bool, shares_terminal: bool
) -> Screen:
    """Return moving bars where they can be drawn, else lines.

    Args:
        progress: The tracks on their way.
        totals: Returns the batch's numbers.
        quiet: Whether only failures are told.
        shares_terminal: Whether something else is written to the terminal, into the bars.
    """
    is_plain = not sys.stderr.isatty() or os.environ.get("TERM", "") in ("dumb", "unknown")
    if quiet or is_plain or shares_terminal:
        return Screen(quiet=quiet)
    from musicgpt_async.cli.live import LiveScreen  # noqa: PLC0415 - rich, where it is needed

    return LiveScreen(progress, totals)
