"""Plots of the tables and of the simulations, by matplotlib, as SVG for the README and the docs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import attrs
import matplotlib as mpl
from comparison import OURS, Table
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

OWN_COLOUR, OTHER_COLOUR = "#0b6e4f", "#9aa5b1"
# Texts stay texts, and the same figures give the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "musicgpt-async", "font.size": 9})


def save(figure: Figure, path: Path) -> None:
    """Write a figure without the date and the version that would change it each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})


def plot_table(table: Table, path: Path, columns: Iterable[str] = ()) -> None:
    """Plot bars of some columns of a table: medians, with whiskers from the least to the most.

    Args:
        table: What was measured.
        path: Where the plot goes.
        columns: Their headings; the first column by default.
    """
    chosen = list(columns) or [table.columns[0].name]
    height = 0.9 + 0.26 * len(table.rounds)
    figure = Figure(figsize=(1.5 + 3.1 * len(chosen), height), layout="constrained")
    figure.suptitle(table.title, fontsize=10)
    for axes, column in zip(
        figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0], chosen, strict=True
    ):
        _plot_bars(axes, table, column)
    save(figure, path)


def _plot_bars(axes: Any, table: Table, column: str) -> None:
    spec = next(each.spec for each in table.columns if each.name == column)
    for row, name in enumerate(table.rounds):
        figure = table.figure(name, column)
        if math.isnan(figure.median):
            axes.barh(row, 0.0)
            continue
        low, high, median = min(figure.values), max(figure.values), figure.median
        colour = OWN_COLOUR if name.startswith(OURS) else OTHER_COLOUR
        whisker = [[median - low], [high - median]]
        axes.barh(row, median, height=0.7, color=colour, xerr=whisker, ecolor="#222")
        place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{median:{spec}}", (high, row), **place)
    axes.set_yticks(range(len(table.rounds)), list(table.rounds))
    axes.set_ylim(len(table.rounds) - 0.4, -0.6)
    axes.set_xlabel(column)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)


@attrs.frozen
class Axis:
    """A logarithmic axis."""

    low: float
    high: float
    name: str
    ticks: tuple[float, ...]


POLLS = Axis(2.0, 200.0, "polls per job", (2, 5, 10, 20, 50, 100, 200))
DELAY = Axis(0.2, 30.0, "mean delay, s", (0.2, 0.5, 1, 2, 5, 10, 20))


class Plot:
    """Curves on two logarithmic axes."""

    def __init__(self, title: str, *, x: Axis = POLLS, y: Axis = DELAY) -> None:
        self._figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        self._axes = self._figure.subplots()
        self._axes.set_title(title, fontsize=10)
        for axis, set_scale, set_limits, ticks in (
            (x, self._axes.set_xscale, self._axes.set_xlim, self._axes.xaxis),
            (y, self._axes.set_yscale, self._axes.set_ylim, self._axes.yaxis),
        ):
            set_scale("log")
            set_limits(axis.low, axis.high)
            ticks.set_major_locator(FixedLocator(axis.ticks))
            ticks.set_minor_locator(NullLocator())
            ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ticks.set_label_text(axis.name)
        self._axes.grid(color="#ddd")
        self._axes.spines[["top", "right"]].set_visible(False)

    def curve(self, name: str, points: Iterable[tuple[float, float]]) -> Self:
        """Draw a line through points, with its name in the legend."""
        xs, ys = zip(*sorted(points), strict=True)
        self._axes.plot(xs, ys, label=name, linewidth=1.8)
        return self

    def spot(self, name: str, x: float, y: float) -> None:
        """Draw one point with its name beside it."""
        self._axes.plot([x], [y], "o", color="#444", markersize=4)
        self._axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)

    def save(self, path: Path) -> None:
        """Write the plot."""
        self._axes.legend(frameon=False, fontsize=8)
        save(self._figure, path)
