"""What a benchmark was asked for, beside what it measured."""

from __future__ import annotations


class Verdicts:
    """The figures that were asked for, beside what was measured."""

    def __init__(self) -> None:
        self._lines: list[tuple[bool, str]] = []

    def at_most(self, what: str, measured: float, bound: float) -> None:
        """Note a figure that must not exceed a bound."""
        text = f"{what}: {measured:.2f} (at most {bound:g})"
        self._lines.append((measured <= bound, text))

    def print(self) -> None:
        """Print them all, and how many hold."""
        print("\nWhat must hold")
        for holds, text in self._lines:
            print(f"  {'ok    ' if holds else 'MISSED'} {text}")
        print(f"  {sum(holds for holds, _ in self._lines)} of {len(self._lines)} hold")
