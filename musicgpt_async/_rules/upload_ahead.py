"""Which upload may start before its slot is free, and how long its end may be held back.

A vendor counts a conversion when the whole form has come in, so that a slot that waits for an
upload is idle. The body can go out ahead, up to its closing boundary, which then meets the slot.

Starting every upload as soon as it can be would fill the uplink with bodies that wait, take the
bandwidth from the next one to be needed, and have servers close what is idle for too long. So an
upload starts ahead when, by the learned durations, its slot may be free at the end of its body, and
will very likely be free within the hold; one at a time, in the order of the queue. Rejected: a
fixed number of uploads ahead (one is too few at ten slots, three too many at one), and the mean
time to the next end (at a spread of 0.6 half of the slots are free before it).

What is held goes out slowly, so that no one on the way takes the connection for dead. A server that
closes it all the same, or refuses before the body is whole, teaches a shorter hold, or none.

No clock is read here: every `now` is monotonic seconds, handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from musicgpt_async._rules.durations import DurationModel

HELD_BACK = 64 * 1024
"""Bytes at the end of a body that go out slowly while it is held."""

_PLANNED_HOLD, _MAX_HOLD = 180.0, 300.0  # seconds: reckoned with, and until a body is given up
_MIN_HOLD = 5.0  # seconds; below that nothing goes ahead
_NEEDED, _USED = 0.005, 0.9  # chances of a slot: at the end of the body, and within the hold
_MIN_GAIN = 0.02  # of a job's duration: an upload shorter than this may wait for its slot
_RATE_STEP, _RATE_WINDOW = 0.3, 1.0  # weight of the latest measurement of the uplink; its seconds


@attrs.frozen
class Running:
    """One job that holds a slot.

    Attributes:
        eta: Seconds from acceptance, as the vendor told; None: it told nothing.
        age: Seconds since it was accepted, or attached where nobody knows.
        age_known: Whether the age is since its acceptance.
    """

    eta: float | None
    age: float
    age_known: bool = True


class Uplink:
    """Measures the bytes a second of all uploads together, in the time that any is under way."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._under_way = 0
        self._bytes = 0
        self._busy, self._since = 0.0, 0.0

    def started(self, *, now: float) -> None:
        """Note that a body begins to go out."""
        self._pass_time(now)
        self._under_way += 1

    def sent(self, count: int, *, now: float) -> None:
        """Note bytes that the transport has taken."""
        self._pass_time(now)
        self._bytes += count
        if self._busy >= _RATE_WINDOW:
            self._measure()

    def stopped(self, *, now: float) -> None:
        """Note that a body is out, up to what is held back, or was broken off."""
        self._pass_time(now)
        self._under_way -= 1
        if self.rate is None and self._busy > 0.0:
            self._measure()

    def _pass_time(self, now: float) -> None:
        if self._under_way:
            self._busy += max(0.0, now - self._since)
        self._since = now

    def _measure(self) -> None:
        rate = self._bytes / self._busy
        self.rate = rate if self.rate is None else self.rate + _RATE_STEP * (rate - self.rate)
        self._bytes, self._busy = 0, 0.0


class UploadAhead:
    """Decides which uploads run ahead of their slots.

    Args:
        durations: How long jobs take, as the schedule of polls learns it.
        uplink: How fast bodies go out.
    """

    def __init__(self, durations: DurationModel, uplink: Uplink) -> None:
        self._durations = durations
        self._uplink = uplink
        self._max_hold = _MAX_HOLD
        self._is_off = False

    @property
    def max_hold(self) -> float:
        """Seconds after which a held body is given up, and sent again later."""
        return self._max_hold

    @property
    def drip(self) -> float:
        """Bytes a second at which what is held back goes out, so that it lasts for the hold."""
        return HELD_BACK / self._max_hold

    def may_start(
        self,
        size: int,
        *,
        free: int,
        uploading: Sequence[int],
        held: int,
        running: Sequence[Running],
    ) -> bool:
        """Return whether the next upload in the queue may start now.

        Args:
            size: Bytes of its body.
            free: Slots that are free.
            uploading: Bytes that are left of each body under way, held ones not among them.
            held: Bodies of which only the end is left.
            running: The jobs that hold slots.
        """
        ahead, rate = len(uploading) + held, self._uplink.rate
        if ahead < free:
            return True
        if self._is_off or not rate or uploading:
            return False  # one at a time: another would take the bandwidth of the next one needed
        seconds = (sum(uploading) + size) / rate
        if not any(seconds > _MIN_GAIN * self._typical(job) for job in running):
            return False
        needed, hold = ahead + 1 - free, min(_PLANNED_HOLD, 0.8 * self._max_hold)
        return (
            self._chance_of_slots(needed, running, within=seconds) >= _NEEDED
            and self._chance_of_slots(needed, running, within=seconds + hold) >= _USED
        )

    def closed(self, *, held_for: float) -> None:
        """Learn that the server closed a body that was held for so many seconds."""
        self._max_hold = min(self._max_hold, 0.8 * held_for)
        self._is_off = self._is_off or self._max_hold < _MIN_HOLD

    def refused_early(self) -> None:
        """Learn that the vendor refuses a full account's body before it is whole."""
        self._is_off = True

    def _typical(self, job: Running) -> float:
        distribution, scale = self._durations.distribution(job.eta, age_known=job.age_known)
        return scale * distribution.quantile(0.5)

    def _chance_of_slots(self, count: int, running: Sequence[Running], *, within: float) -> float:
        """The chance that at least so many of the jobs end within so many seconds."""
        exactly = [1.0] + [0.0] * count  # by how many have ended, the last: that many or more
        for job in running:
            ends = self._durations.chance_of_end(
                job.eta, job.age, within=within, age_known=job.age_known
            )
            exactly[count] += exactly[count - 1] * ends
            for k in range(count - 1, 0, -1):
                exactly[k] += (exactly[k - 1] - exactly[k]) * ends
            exactly[0] *= 1.0 - ends
        return exactly[count]
