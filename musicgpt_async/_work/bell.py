"""A bell that wakes one sleeper."""

from __future__ import annotations

import asyncio
import math


class Bell:
    """Rung from anywhere in the loop; ringing it twice before it is heard counts once.

    Its rooms ring it for each look and each job, so it is made of the loop's own parts.
    """

    def __init__(self) -> None:
        self._rung = False
        self._alarm: asyncio.Handle | None = None
        self._alarm_at = math.inf  # uvloop's handles do not always tell
        self._sleeper: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake the sleeper, now or when it next lies down."""
        self._rung = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def set(self, at: float | None) -> None:
        """Ring at a moment of the loop's clock, unless it is set for an earlier one."""
        if at is not None and at < self._alarm_at:
            self._unset()
            self._alarm = asyncio.get_running_loop().call_at(at, self.ring)
            self._alarm_at = at

    async def wait(self, until: float | None = None) -> None:
        """Sleep until the bell rings, or until a moment of the loop's clock."""
        self.set(until)
        try:
            if not self._rung:
                self._sleeper = asyncio.get_running_loop().create_future()
                await self._sleeper
        finally:
            self._sleeper = None
            self._unset()
        self._rung = False

    def _unset(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, math.inf
