"""An event loop that shortens waits but not work."""

from __future__ import annotations

import asyncio
import selectors
import time


class AcceleratedEventLoop(asyncio.SelectorEventLoop):
    """An event loop whose waits take a fraction of the real time.

    Only waits are accelerated. If computing time were too, a delay of a busy machine would look
    like minutes, and the timeouts under test would expire.

    Args:
        speed: Seconds of the loop's clock per real second of waiting.
    """

    def __init__(self, speed: float) -> None:
        self._waits = _AcceleratedSelector(speed)
        super().__init__(self._waits)

    def time(self) -> float:
        """Return the time of the loop's own clock in seconds."""
        return super().time() + self._waits.skipped


class _AcceleratedSelector(selectors.DefaultSelector):
    """A selector that shortens its timeouts, and counts the seconds that it skipped."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed
        self.skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for files, with a timeout in seconds of the loop's clock."""
        share = None if timeout is None else timeout / self._speed
        began = time.monotonic()
        found = super().select(share)
        waited = time.monotonic() - began
        # If the machine delayed the call, count no more than the requested timeout.
        counted = waited if share is None else min(waited, share)
        self.skipped += counted * (self._speed - 1)
        return found
