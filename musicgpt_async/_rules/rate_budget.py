"""The account's looks a minute.

Looks are paced evenly, a wake may burst, and no window of a minute ever holds more looks than the
budget. A 429 pauses all looks and lowers the estimate.
"""

from __future__ import annotations

import math
from collections import deque

FREE_POLLS_PER_MINUTE = 20.0
"""What every plan allows at least (MusicGPT docs, rate limits)."""

_NEVER = math.inf


class Budget:
    """Looks a minute: paced, never exceeded in any window, learned where nobody said."""

    _WINDOW = 61.0  # a minute, and a second that the network may shift a look by

    def __init__(self, polls_per_minute: float | None, tick: float) -> None:
        if polls_per_minute is not None and not polls_per_minute >= 1.0:
            raise ValueError(f"polls_per_minute must be at least 1, not {polls_per_minute}")
        self._configured = polls_per_minute
        self.estimate = polls_per_minute or FREE_POLLS_PER_MINUTE
        self._tick = tick
        self._growth = 2.0  # by every answer, until the first 429
        self._recent: deque[float] = deque()
        self._paced_at = -_NEVER
        self._paused_until = -_NEVER
        self._throttles = 0

    def next_allowed_at(self, *, share: float = 1.0) -> float:
        """The moment from which one more look fits into this share of a minute's."""
        at_most = max(1.0, share * self.estimate)
        if len(self._recent) + 1 <= at_most:
            return self._paused_until
        return max(self._recent[-int(at_most)] + self._WINDOW, self._paused_until)

    def next_paced_at(self, *, share: float) -> float:
        """The moment from which the next ordinary look fits in."""
        return max(self._paced_at, self.next_allowed_at(share=share))

    def record(self, now: float) -> None:
        """Count a look."""
        self._recent.append(now)
        while self._recent[0] <= now - self._WINDOW:
            self._recent.popleft()

    def pace(self, now: float, *, share: float) -> None:
        """Keep the next ordinary look at its distance; what a tick cost is caught up."""
        self._paced_at = max(self._paced_at, now - self._tick) + self.interval(share=share)

    def interval(self, *, share: float = 1.0) -> float:
        """Seconds between two looks at an even pace."""
        return self._WINDOW / max(1.0, share * self.estimate)

    @property
    def paused_until(self) -> float:
        """The end of the pause that the last 429 enforced."""
        return self._paused_until

    def on_throttled(self, now: float, retry_after: float | None) -> None:
        """Pause, and lower the estimate: what the last minute held was too much."""
        if now >= self._paused_until:
            held = sum(1 for at in self._recent if at > now - 60.0)
            self.estimate = max(1.0, 0.3 * self.estimate, min(0.9 * self.estimate, 0.95 * held))
            self._growth = 0.02 if self._configured is None else 0.1
            self._throttles += 1
        pause = 10.0 * 2.0 ** (min(self._throttles, 4) - 1)
        if retry_after is not None and not math.isnan(retry_after):
            pause = retry_after
        self._paused_until = max(self._paused_until, now + min(max(pause, 1.0), 60.0))

    def on_success(self, now: float) -> None:
        """Note a real answer: the next pause begins short again."""
        if now >= self._paused_until:
            self._throttles = 0

    def grow(self, ceiling: float) -> None:
        """Raise the estimate, up to what is given or else `ceiling`."""
        limit = ceiling if self._configured is None else self._configured
        if self.estimate < limit:
            self.estimate = min(self.estimate + self._growth, limit)
