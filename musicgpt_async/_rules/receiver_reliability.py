"""Learn the reliability of one webhook receiver from the jobs that end.

While a webhook is expected, two quantities decide what a poll is worth: the probability that the
delivery is lost, and its delay after the end of the job.

A delivery is lost for one of two causes. Either the receiver is *silent*: its public URL is wrong,
or a proxy in front of it has failed, and no delivery arrives until that is fixed. Or a single
delivery is *dropped*, at a rate of its own. A hidden Markov model with two states separates the
causes: one arrival proves that the receiver is not silent; one loss makes silence more likely, and
the lower the drop rate, the more so; before each job the receiver may have become silent with a
small probability. A new receiver is assumed to be silent, so that it costs no more than polling.

A delivery that arrives after a poll has found the end counts as arrived, and its delay is learned.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import attrs

_INITIAL_SILENCE = 0.95  # probability that a receiver without any delivery so far is silent
_SILENCE_RATE = 0.0002  # probability per job that a receiver becomes silent
_PRIOR_DROPPED, _PRIOR_WEIGHT = 0.02, 1.0  # the prior of the drop rate: dropped, of deliveries
_DECAY = 0.99  # weight that old deliveries keep, per job
_INITIAL_DELAY, _DELAY_STEP = 0.5, 0.2  # seconds; weight of one job in the learned delay
_MAX_DELAY = 60.0  # seconds; a longer delay says nothing about the next one
_REPORTED_SILENCE = 0.9  # probability of silence from which it is reported
_MAX_MISSING = 256  # jobs whose delivery may still arrive
_MISSES, _GRACE, _MISSES_AT_ONCE = 3, 5.0, 8  # jobs; seconds after their end; jobs


@attrs.frozen
class _Missing:
    low: float
    high: float
    dropped: float


class ReceiverReliability:
    """The learned loss and delay of the deliveries to one receiver.

    Attributes:
        delay: Seconds from the end of a job to its delivery.
    """

    def __init__(self) -> None:
        self._silent = _INITIAL_SILENCE
        self._dropped = 0.0
        self._arrived = 0.0
        self._missing: dict[Hashable, _Missing] = {}
        self._heard_at = -math.inf
        self._reported = False
        self.delay = _INITIAL_DELAY

    @property
    def loss(self) -> float:
        """Probability that a job's delivery is lost."""
        return self._silent + (1.0 - self._silent) * self._drop_rate

    @property
    def _drop_rate(self) -> float:
        return (_PRIOR_DROPPED + self._dropped) / (_PRIOR_WEIGHT + self._dropped + self._arrived)

    def arrived(self, *, now: float, within: float) -> None:
        """Learn from a delivery that arrived before a poll found the end.

        Args:
            now: Time of arrival, in monotonic seconds.
            within: Seconds since the job was last known to be unfinished: an upper bound of the
                delay.
        """
        self._arrive(now, 0.0, within)

    def missed(self, key: Hashable, *, low: float, high: float) -> None:
        """Learn from a job that a poll found finished, and whose delivery has not arrived.

        Args:
            key: Identifies the delivery if it arrives later.
            low: Monotonic seconds at which the job was unfinished.
            high: Monotonic seconds at which the job was finished.
        """
        dropped = self._drop_rate * (1.0 - self._silent)
        silent = self._silent / (self._silent + dropped)
        self._silent = silent + (1.0 - silent) * _SILENCE_RATE
        self._decay()
        self._dropped += 1.0 - silent
        self._missing[key] = _Missing(low, high, 1.0 - silent)
        if len(self._missing) > _MAX_MISSING:
            del self._missing[next(iter(self._missing))]

    def arrived_late(self, key: Hashable, *, now: float) -> None:
        """Learn from a delivery for a job that has ended; ignored unless it was counted as lost."""
        missing = self._missing.pop(key, None)
        if missing is not None:
            self._dropped = max(self._dropped - missing.dropped, 0.0)
            self._arrive(now, now - missing.high, now - missing.low)

    def has_fallen_silent(self, *, now: float) -> bool:
        """Return whether to report that deliveries stopped; true once per period of silence."""
        ends = [each.high for each in self._missing.values() if each.high > self._heard_at]
        overdue = sum(end + _GRACE <= now for end in ends)
        is_enough = overdue >= _MISSES or len(ends) >= _MISSES_AT_ONCE
        if self._reported or not is_enough or self._silent < _REPORTED_SILENCE:
            return False
        self._reported = True
        return True

    def _arrive(self, now: float, shortest: float, longest: float) -> None:
        """Count an arrival whose delay was between two bounds, in seconds."""
        self._silent = _SILENCE_RATE
        self._decay()
        self._arrived += 1.0
        self._heard_at, self._reported = max(now, self._heard_at), False
        sample = min(max(self.delay, shortest), longest, _MAX_DELAY)
        self.delay += _DELAY_STEP * (max(sample, 0.0) - self.delay)

    def _decay(self) -> None:
        self._dropped *= _DECAY
        self._arrived *= _DECAY
