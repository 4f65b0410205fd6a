"""The account's budget of polls per minute.

Polls are paced evenly; polls that a webhook causes may come in a burst. No window of one minute
ever holds more polls than the budget. A 429 pauses all polls and lowers the estimate.

The estimate moves as TCP's congestion window does (Jacobson, "Congestion avoidance and control",
1988): it grows fast until the first 429, is then cut by a factor, and grows slowly.

Sessions that share an account also need a grant of the account for each poll: see `Spacing`. What
one of them learns is saved for all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import attrs

FREE_POLLS_PER_MINUTE = 20.0
"""The limit of the smallest plan (MusicGPT docs, rate limits)."""

_NEVER = math.inf


_WINDOW = 61.0  # seconds: a minute, and one second of jitter in the network
_BURST_SHARE = 0.06  # of a minute's polls, that may go ahead of the even pace


@attrs.frozen
class Spacing:
    """How far apart the polls of an account's processes are granted: the generic cell rate.

    The account keeps one number, the moment from which the next poll is due at an even pace. A poll
    is granted from `burst` seconds before that moment on, and moves it on by `interval`. So a
    window of a minute holds (minute + burst) / interval + 1 polls at most, which is the budget.

    Attributes:
        interval: Seconds between two polls at an even pace.
        burst: Seconds that a poll may be ahead of it.
    """

    interval: float
    burst: float

    @classmethod
    def of(cls, polls_per_minute: float) -> Spacing:
        """Return the spacing that keeps to a budget in every window."""
        ahead = _BURST_SHARE * polls_per_minute
        interval = _WINDOW / max(polls_per_minute - ahead - 1.0, 1.0)
        return cls(interval, ahead * interval if polls_per_minute >= 2.0 else 0.0)


class Budget:
    """Polls per minute: evenly paced, bounded in every window, learned unless configured.

    Args:
        polls_per_minute: The account's limit, or ``None`` to learn it.
        tick: Seconds into which the session batches its wake-ups.
    """

    def __init__(self, polls_per_minute: float | None, tick: float) -> None:
        if polls_per_minute is not None and not polls_per_minute >= 1.0:
            raise ValueError(f"polls_per_minute must be at least 1, not {polls_per_minute}")
        self._configured = polls_per_minute
        self.estimate = polls_per_minute or FREE_POLLS_PER_MINUTE
        self._tick = tick
        # Polls per minute, added for each response while the budget is the bottleneck. Until the
        # first 429, two: from 20 to the 500 of the largest plan takes 240 responses, a minute.
        # After it see `on_throttled`: a learned limit has been found, so the estimate creeps (50
        # responses for one poll more); a configured limit is known to exist and is regained faster.
        self._growth = 2.0
        self._recent: deque[float] = deque()
        self._paced_at = -_NEVER
        self._paused_until = -_NEVER
        self._throttles = 0

    def next_allowed_at(self, *, share: float = 1.0) -> float:
        """Return when one more poll fits into this share of the budget, in monotonic seconds."""
        at_most = max(1.0, share * self.estimate)
        if len(self._recent) + 1 <= at_most:
            return self._paused_until
        return max(self._recent[-int(at_most)] + _WINDOW, self._paused_until)

    def next_paced_at(self, *, share: float) -> float:
        """Return when the next evenly paced poll may be sent, in monotonic seconds."""
        return max(self._paced_at, self.next_allowed_at(share=share))

    def record(self, now: float) -> None:
        """Count a poll that is sent now."""
        self._recent.append(now)
        while self._recent[0] <= now - _WINDOW:
            self._recent.popleft()

    def pace(self, now: float, *, share: float) -> None:
        """Schedule the next paced poll one interval later; a delay of up to a tick is made up."""
        self._paced_at = max(self._paced_at, now - self._tick) + self.interval(share=share)

    def interval(self, *, share: float = 1.0) -> float:
        """Return the seconds between two evenly paced polls."""
        return _WINDOW / max(1.0, share * self.estimate)

    @property
    def paused_until(self) -> float:
        """The end of the pause that the last 429 enforced."""
        return self._paused_until

    def dump(self) -> dict[str, Any]:
        """Return what was learned as JSON, to be saved for all sessions of the account."""
        return {
            "configured": self._configured,
            "estimate": self.estimate,
            "growth": self._growth,
            "throttles": self._throttles,
        }

    def load(self, learned: Mapping[str, Any], *, paused_until: float) -> None:
        """Continue from what the account's sessions have learned.

        Args:
            learned: What `dump` returned; empty if nothing was learned yet. What was learned for
                another configured limit is ignored.
            paused_until: The end of the account's pause, in monotonic seconds.
        """
        if learned and self._configured in (None, learned["configured"]):
            self.estimate, self._growth = learned["estimate"], learned["growth"]
            self._throttles = learned["throttles"]
        self._paused_until = paused_until

    def on_throttled(
        self, now: float, retry_after: float | None, *, held: float | None = None
    ) -> None:
        """Pause all polls after a 429 and lower the estimate.

        Args:
            now: Monotonic seconds.
            retry_after: Seconds from the ``Retry-After`` header, or ``None``.
            held: Polls of the last minute from all sessions, or ``None`` for those made here.
        """
        if now >= self._paused_until:  # polls that were in flight together count as one 429
            # What the last minute held was too much, if the budget was used at all. Bounds: at
            # least 10 % down, so that repeated 429s converge; never below 30 % of the estimate,
            # since another client of the account may have caused this one.
            if held is None:
                held = sum(1 for at in self._recent if at > now - 60.0)
            self.estimate = max(1.0, 0.3 * self.estimate, min(0.9 * self.estimate, 0.95 * held))
            self._growth = 0.02 if self._configured is None else 0.1
            self._throttles += 1
        pause = 10.0 * 2.0 ** (min(self._throttles, 4) - 1)
        if retry_after is not None and not math.isnan(retry_after):
            pause = retry_after
        self._paused_until = max(self._paused_until, now + min(max(pause, 1.0), 60.0))

    def on_success(self, now: float) -> None:
        """Reset the length of the next pause after a successful poll."""
        if now >= self._paused_until:
            self._throttles = 0

    def grow(self, ceiling: float) -> None:
        """Raise the estimate, up to the configured budget or else `ceiling`."""
        limit = ceiling if self._configured is None else self._configured
        if self.estimate < limit:
            self.estimate = min(self.estimate + self._growth, limit)
