"""Bars of a table's first column, written as SVG for the documentation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from contest import OURS, Table

WIDTH, LEFT, ROW, TOP = 760, 210, 26, 64
OWN, OTHER = "#0b6e4f", "#9aa5b1"


def draw(tables: Sequence[Table], directory: Path) -> None:
    """Draw every table that compares this library with others."""
    for table in tables:
        if OURS in table.rounds and len(table.rounds) > 1:
            name = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
            (directory / f"{name}.svg").write_text(bars(table), encoding="utf-8")


def bars(table: Table) -> str:
    """Return a bar chart of a table: medians, with whiskers from minimum to maximum."""
    column = table.columns[0].name
    figures = {name: table.figure(name, column) for name in table.rounds}
    figures = {name: each for name, each in figures.items() if not math.isnan(each.median)}
    scale = (WIDTH - LEFT - 90) / max(max(each.values) for each in figures.values())
    height = TOP + ROW * len(figures) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
        "<style>text { font: 13px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-weight="bold">{escape(table.title)}</text>',
        f'<text x="{LEFT}" y="46">{escape(column)}: median, minimum and maximum</text>',
    ]
    for row, (name, figure) in enumerate(figures.items()):
        y, end = TOP + ROW * row, LEFT + scale * figure.median
        low, high = (LEFT + scale * each for each in (min(figure.values), max(figure.values)))
        colour = OWN if name.startswith(OURS) else OTHER
        spec = table.columns[0].spec
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="20" fill="{colour}"/>',
            f'<path d="M{low:.1f} {y + 10} H{high:.1f}" stroke="#222"/>',
            f'<text x="{max(end, high) + 6:.1f}" y="{y + 15}">{figure.median:{spec}}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
