"""Compare measured figures with their bounds."""

from __future__ import annotations


class Verdicts:
    """Measured figures and their bounds."""

    def __init__(self) -> None:
        self._lines: list[tuple[bool, str]] = []

    def at_most(self, name: str, measured: float, bound: float) -> None:
        """Record a figure that must not exceed a bound."""
        text = f"{name}: {measured:.2f} (at most {bound:g})"
        self._lines.append((measured <= bound, text))

    def print(self) -> None:
        """Print all figures, and how many are within their bounds."""
        print("\nWhat must hold")
        for holds, text in self._lines:
            print(f"  {'ok    ' if holds else 'MISSED'} {text}")
        print(f"  {sum(holds for holds, _ in self._lines)} of {len(self._lines)} hold")
