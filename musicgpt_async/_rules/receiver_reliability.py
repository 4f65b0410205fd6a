"""How far one webhook receiver can be relied on, learned from the jobs that end.

Two things decide what a poll is worth while a webhook is expected: how likely its delivery does not
come, and how late it comes after the end.

The chance of loss has two causes. The receiver may be *silent*: its public URL leads nowhere, or a
proxy in front of it has died, and no delivery comes until that is mended. Or single deliveries are
*dropped*, at a rate of their own. They are told apart as in a hidden Markov model of two states:
one arrival proves that the receiver is not silent, one loss makes it the more likely, the less is
dropped otherwise, and before each job it may have fallen silent with a small chance. It begins in
doubt, so that a receiver that nothing was heard from costs no more than polling does.

A delivery that comes after a poll has seen the end still counts as arrived, and tells the delay.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import attrs

_SILENT_AT_FIRST = 0.95  # chance that a receiver that was never heard from is silent
_FALLS_SILENT = 0.0002  # chance for each job that a receiver stops receiving
_DROPPED, _PRIOR = 0.02, 1.0  # deliveries dropped, of so many, before anything was seen
_DECAY = 0.99  # of what was seen, for each job
_DELAY_AT_FIRST, _DELAY_STEP = 0.5, 0.2  # seconds; weight of one job in the learned delay
_MAX_DELAY = 60.0  # seconds; what comes later says nothing of the next one
_SURELY_SILENT = 0.9  # chance from which a silence is worth a word
_MAX_MISSING = 256  # jobs whose delivery may still come
_MISSES, _GRACE, _MISSES_AT_ONCE = 3, 5.0, 8  # jobs; seconds after their end; jobs


@attrs.frozen
class _Missing:
    low: float
    high: float
    dropped: float


class ReceiverReliability:
    """The learned chance and delay of the deliveries to one receiver."""

    def __init__(self) -> None:
        self._silent = _SILENT_AT_FIRST
        self._dropped = 0.0
        self._arrived = 0.0
        self._missing: dict[Hashable, _Missing] = {}
        self._heard_at = -math.inf
        self._reported = False
        self.delay = _DELAY_AT_FIRST

    @property
    def loss(self) -> float:
        """The chance that a job's delivery does not come."""
        return self._silent + (1.0 - self._silent) * self._drop_rate

    @property
    def _drop_rate(self) -> float:
        return (_DROPPED + self._dropped) / (_PRIOR + self._dropped + self._arrived)

    def arrived(self, *, now: float, within: float) -> None:
        """Learn from a delivery that came before a poll saw the end.

        Args:
            now: monotonic seconds, at which it came.
            within: seconds before that at which the job was not finished yet.
        """
        self._arrive(now, 0.0, within)

    def missed(self, key: Hashable, *, low: float, high: float) -> None:
        """Learn from a job that a poll saw ended, and whose delivery has not come.

        Args:
            key: names the delivery if it comes later.
            low: monotonic seconds, when the job was not finished yet.
            high: monotonic seconds, when the job was finished.
        """
        dropped = self._drop_rate * (1.0 - self._silent)
        silent = self._silent / (self._silent + dropped)
        self._silent = silent + (1.0 - silent) * _FALLS_SILENT
        self._decay()
        self._dropped += 1.0 - silent
        self._missing[key] = _Missing(low, high, 1.0 - silent)
        if len(self._missing) > _MAX_MISSING:
            del self._missing[next(iter(self._missing))]

    def arrived_late(self, key: Hashable, *, now: float) -> None:
        """Learn from a delivery for a job that has ended; ignored unless it was missed."""
        missing = self._missing.pop(key, None)
        if missing is not None:
            self._dropped = max(self._dropped - missing.dropped, 0.0)
            self._arrive(now, now - missing.high, now - missing.low)

    def has_fallen_silent(self, *, now: float) -> bool:
        """Whether enough deliveries are missing in a row to say so; true once for each silence."""
        ends = [each.high for each in self._missing.values() if each.high > self._heard_at]
        overdue = sum(end + _GRACE <= now for end in ends)
        is_enough = overdue >= _MISSES or len(ends) >= _MISSES_AT_ONCE
        if self._reported or not is_enough or self._silent < _SURELY_SILENT:
            return False
        self._reported = True
        return True

    def _arrive(self, now: float, shortest: float, longest: float) -> None:
        """Count an arrival whose delay was between two bounds, in seconds."""
        self._silent = _FALLS_SILENT
        self._decay()
        self._arrived += 1.0
        self._heard_at, self._reported = max(now, self._heard_at), False
        sample = min(max(self.delay, shortest), longest, _MAX_DELAY)
        self.delay += _DELAY_STEP * (max(sample, 0.0) - self.delay)

    def _decay(self) -> None:
        self._dropped *= _DECAY
        self._arrived *= _DECAY
