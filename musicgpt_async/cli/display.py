"""The choice between live bars and plain lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from musicgpt_async.cli.namesakes import Namesakes
from musicgpt_async.cli.progress import ProgressModel
from musicgpt_async.cli.screen import Screen, Totals


def make_screen(
    progress: ProgressModel,
    totals: Callable[[], Totals],
    namesakes: Namesakes,
    *,
    quiet: bool,
    shares_terminal: bool,
) -> Screen:
    """Return moving bars if the terminal can show them, else plain lines.

    Args:
        progress: The active tracks.
        totals: Returns the batch's numbers.
        namesakes: Distinguishes tracks of the same title.
        quiet: Whether to report failures only.
        shares_terminal: Whether results are written to the same terminal, between the bars.
    """
    is_plain = not sys.stderr.isatty() or os.environ.get("TERM", "") in ("dumb", "unknown")
    if quiet or is_plain or shares_terminal:
        return Screen(quiet=quiet)
    from musicgpt_async.cli.live import LiveScreen  # noqa: PLC0415 - rich, if it is needed

    return LiveScreen(progress, totals, namesakes)
