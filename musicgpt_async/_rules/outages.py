"""How long leases hold after the server that keeps them was away.

While it is away no owner can renew its lease. When it is back, those who come first must not take
the jobs of those who come later: for as long as a lease, the leases that held when the outage began
hold still.
"""

from __future__ import annotations

import math


class Outage:
    """Whether a server is away, as far as one of its users knows.

    Args:
        lease: Seconds that a lease holds.
        now: Monotonic seconds, here and below.
    """

    def __init__(self, lease: float, *, now: float) -> None:
        self._lease = lease
        self._is_away = False
        self._last_seen = now
        self._began = now
        self._honored_until = -math.inf

    def on_fault(self, *, now: float) -> bool:
        """Note that the server is away; return whether that is new."""
        if self._is_away:
            return False
        if self.grace(now=now) == 0.0:
            self._began = self._last_seen
        self._is_away, self._honored_until = True, math.inf
        return True

    def on_success(self, *, now: float) -> bool:
        """Note that the server is there; return whether that is new."""
        was_away, self._is_away, self._last_seen = self._is_away, False, now
        if was_away:
            self._honored_until = now + self._lease
        return was_away

    def grace(self, *, now: float) -> float:
        """Return for how many seconds a lease holds after it ran out."""
        return now - self._began if now < self._honored_until else 0.0
