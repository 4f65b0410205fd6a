"""An event loop whose clock runs faster than the real one."""

from __future__ import annotations

import asyncio
import selectors


class HastyLoop(asyncio.SelectorEventLoop):
    """Waits for its share of the real time, wherever it waits.

    Args:
        speed: Its seconds in a real one.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        super().__init__(_HastySelector(speed))

    def time(self) -> float:
        """Return the seconds of its own clock."""
        return super().time() * self._speed


class _HastySelector(selectors.DefaultSelector):
    """Waits for its share of the real time."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for files, as long as the loop's clock says."""
        return super().select(None if timeout is None else timeout / self._speed)
