"""A wake-up call for one waiter."""

from __future__ import annotations

import asyncio
import math


class Wakeup:
    """Set from anywhere in the loop; setting it twice before it is waited for counts once.

    Components set it for each poll and each job, so it is made of the loop's own parts.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf  # kept, because uvloop's handles do not always have it
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the waiter, now or when it next waits."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def set_at(self, at: float | None) -> None:
        """Wake the waiter at a moment of the loop's clock, unless it is woken earlier."""
        if at is not None and at < self._timer_at:
            self._clear_timer()
            self._timer = asyncio.get_running_loop().call_at(at, self.set)
            self._timer_at = at

    async def wait(self, until: float | None = None) -> None:
        """Wait until it is set, or until a moment of the loop's clock."""
        self.set_at(until)
        try:
            if not self._is_set:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        finally:
            self._waiter = None
            self._clear_timer()
        self._is_set = False

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf
