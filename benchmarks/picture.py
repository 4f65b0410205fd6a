"""Draw small plots with two logarithmic axes, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

Axis = tuple[float, float, str, tuple[float, ...]]
"""Lower and upper end, label and ticks."""


class Picture:
    """A small plot with two logarithmic axes."""

    WIDTH, HEIGHT, MARGIN = 760, 520, 64
    POLLS: Axis = (2.0, 200.0, "polls per job", (2, 5, 10, 20, 50, 100, 200))
    DELAY: Axis = (0.2, 30.0, "mean delay, s", (0.2, 0.5, 1, 2, 5, 10, 20))
    COLOURS = ("#0b6e4f", "#c1121f", "#e09f3e", "#335c67", "#7b2d8b")

    def __init__(self, title: str, *, x: Axis = POLLS, y: Axis = DELAY) -> None:
        self._x, self._y = x, y
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.WIDTH} {self.HEIGHT}">',
            "<style>text { font: 13px sans-serif }</style>",
            '<rect width="100%" height="100%" fill="white"/>',
        ]
        self._text(self.WIDTH / 2, 28, title, anchor="middle")
        self._text(self.WIDTH / 2, self.HEIGHT - 14, x[2], anchor="middle")
        self._text(12, 50, y[2])
        self._series = 0
        self._grid()

    def curve(self, name: str, points: Iterable[tuple[float, float]]) -> None:
        """Draw a line through points and add its name to the legend."""
        colour = self._legend(name)
        inside = [self._place(x, y) for x, y in sorted(points) if self._is_inside(x, y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )

    def spot(self, name: str, polls: float, delay: float) -> None:
        """Draw one labelled point."""
        if self._is_inside(polls, delay):
            x, y = self._place(polls, delay)
            self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#444"/>')
            self._text(x - 7, y - 7, name, anchor="end" if x > self.WIDTH / 2 else "start")

    def save(self, path: Path) -> None:
        """Write the plot to a file."""
        path.write_text("\n".join([*self._parts, "</svg>", ""]), encoding="utf-8")

    def _is_inside(self, x: float, y: float) -> bool:
        return self._x[0] <= x <= self._x[1] and self._y[0] <= y <= self._y[1]

    def _place(self, x: float, y: float) -> tuple[float, float]:
        across = math.log(x / self._x[0]) / math.log(self._x[1] / self._x[0])
        up = math.log(y / self._y[0]) / math.log(self._y[1] / self._y[0])
        return (
            self.MARGIN + across * (self.WIDTH - 2 * self.MARGIN),
            self.HEIGHT - self.MARGIN - up * (self.HEIGHT - 2 * self.MARGIN),
        )

    def _grid(self) -> None:
        for value in self._x[3]:
            x, bottom = self._place(value, self._y[0])
            self._line(x, bottom, x, self._place(value, self._y[1])[1])
            self._text(x, bottom + 18, f"{value:g}", anchor="middle")
        for height in self._y[3]:
            left, y = self._place(self._x[0], height)
            self._line(left, y, self._place(self._x[1], height)[0], y)
            self._text(left - 8, y + 4, f"{height:g}", anchor="end")

    def _legend(self, name: str) -> str:
        colour = self.COLOURS[self._series % len(self.COLOURS)]
        y = self.HEIGHT - self.MARGIN - 16 - 18 * self._series
        self._parts.append(
            f'<rect x="{self.MARGIN + 12}" y="{y - 9}" width="14" height="10" fill="{colour}"/>'
        )
        self._text(self.MARGIN + 32, y, name)
        self._series += 1
        return colour

    def _line(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self._parts.append(
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="#ddd"/>'
        )

    def _text(self, x: float, y: float, text: str, *, anchor: str = "start") -> None:
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>')
