"""The live display: one bar for the batch, a line for each active track."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from musicgpt_async.cli.namesakes import Namesakes
from musicgpt_async.cli.progress import ProgressModel, TrackProgress
from musicgpt_async.cli.screen import Screen, Totals
from musicgpt_async.cli.text import count, credit, span

# Columns of a bar, of a state and of a speed or time; titles have the rest.
BAR, STATE, DETAIL = 14, 11, 25
# Columns that are used at most: further apart, a title and its state are hard to read together.
WIDEST = 120
# A terminal of fewer columns shows no bars.
NARROW = 70
# Lines of a terminal that no track is shown on: the batch's own, "more", and the cursor's.
OTHER_LINES = 3
# Columns left free at the end of each line: there a terminal shows the ^C of two interrupts.
ECHO = 4


class _Console(Console):
    """A console that raises BrokenPipeError; rich ends the process instead."""

    def on_broken_pipe(self) -> None:
        """Raise what is being handled."""
        raise  # noqa: PLE0704 - rich calls this while it handles the error


class LiveScreen(Screen):
    """Live bars, with lines above them.

    Args:
        progress: The active tracks.
        totals: Returns the batch's numbers.
        namesakes: Distinguishes tracks of the same title.
    """

    shows_progress = True

    def __init__(
        self, progress: ProgressModel, totals: Callable[[], Totals], namesakes: Namesakes
    ) -> None:
        super().__init__()
        self._progress = progress
        self._totals = totals
        self._namesakes = namesakes
        self._console = _Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def snapshot(self) -> None:
        """Take a snapshot of the state; called in the event loop."""
        self._live.update(self._picture(), refresh=False)

    def _open(self) -> None:
        self._live.start()

    def _paint(self) -> None:
        """Show lines and bars in one write, so that nothing flickers."""
        with self._console:
            self._print_lines()
            self._live.refresh()

    def _close(self) -> None:
        """Remove the bars and leave the lines."""
        with self._console:
            self._live.stop()
            self._print_lines()

    def _print_lines(self) -> None:
        while self._lines:
            text, style = self._lines.popleft()
            self._console.print(Text(text, style, overflow="fold"))

    def _picture(self) -> RenderableType:
        tracks = list(self._progress.active.values())
        room = max(1, self._console.height - OTHER_LINES)
        left = [Text(f"… and {len(tracks) - room} more", "dim")] if len(tracks) > room else []
        if trouble := self._progress.trouble:
            left = [Text(trouble, "yellow", no_wrap=True, overflow="ellipsis")]
        has_bars = self._console.width >= NARROW
        table = self._table(tracks[:room], has_bars=has_bars)
        picture = Group(_overall(self._totals()), table, *left)
        return Constrain(picture, min(WIDEST, self._console.width - ECHO))

    def _table(self, tracks: Sequence[TrackProgress], *, has_bars: bool) -> Table:
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(width=STATE, no_wrap=True, overflow="ellipsis")
        if has_bars:
            table.add_column(width=BAR)
        table.add_column(width=DETAIL, no_wrap=True, justify="right")
        now = time.monotonic()
        for track in tracks:  # before any is named: one title may come twice
            self._namesakes.add(track.title, track.source)
        for track in tracks:
            name = self._namesakes.name(track.title, track.source)
            bar = [_bar(track.share(now))] if has_bars else []
            table.add_row(Text(name), Text(track.state), *bar, Text(track.detail(now)))
        return table


def _overall(totals: Totals) -> RenderableType:
    line = Table.grid(padding=(0, 2, 0, 0), expand=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    ended = totals.done + sum(totals.failed_by_state.values())
    numbers = Text(f"{ended:,}/{count(totals.total, 'track')}", "bold")
    for state, number in totals.failed_by_state.items():
        numbers.append(f"  {number:,} {state}", "red")
    if totals.credits:
        numbers.append(f"  ~{credit(totals.credits)}")
    numbers.append(f"  {span(totals.seconds)}")
    line.add_row(ProgressBar(total=max(1, totals.total), completed=ended), numbers)
    return line


def _bar(share: float | None) -> RenderableType:
    """Return a bar, which pulses if the share that is done is unknown."""
    return ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None)
