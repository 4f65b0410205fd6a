"""An event loop on which waiting is short and work takes the time it takes."""

from __future__ import annotations

import asyncio
import selectors
import time


class AcceleratedEventLoop(asyncio.SelectorEventLoop):
    """Waits for its share of the real time, wherever it waits.

    Only waiting is accelerated. If all time were, a busy machine would seem to stand still for
    minutes, and the timeouts under test would strike.

    Args:
        speed: Its seconds in a real one.
    """

    def __init__(self, speed: float) -> None:
        self._waits = _AcceleratedSelector(speed)
        super().__init__(self._waits)

    def time(self) -> float:
        """Return the seconds of its own clock."""
        return super().time() + self._waits.skipped


class _AcceleratedSelector(selectors.DefaultSelector):
    """Waits for its share of the real time, and counts the seconds that it did not wait."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed
        self.skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for files, as long as the loop's clock says."""
        share = None if timeout is None else timeout / self._speed
        began = time.monotonic()
        found = super().select(share)
        waited = time.monotonic() - began
        # Held up for longer than it asked for, it has waited no longer by its own clock.
        counted = waited if share is None else min(waited, share)
        self.skipped += counted * (self._speed - 1)
        return found
