"""Decide which upload may start before its slot is free, and how long its end may be held back.

MusicGPT counts a conversion when it has received the complete form, so a slot that waits for an
upload is idle. The body may therefore be sent ahead, except for its closing boundary, which waits
for the slot.

If every upload started as soon as possible, waiting bodies would fill the uplink, take bandwidth
from the upload that is needed next, and be closed by servers after an idle timeout. An upload
therefore starts ahead only if, by the learned durations, its slot may be free at the end of its
body and is very likely free within the hold; one upload at a time, in the order of the queue.
Rejected: a fixed number of uploads ahead (one is too few for ten slots, three are too many for
one), and the mean time to the next end (at a spread of 0.6, half of the slots are free before it).

The last bytes of a held body are sent slowly, so that no proxy closes the connection as idle. If a
server closes it anyway, or refuses before the body is complete, the hold is shortened or disabled.

No clock is read here: every `now` is passed in, in monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from musicgpt_async._rules.durations import DurationModel

HELD_BACK = 64 * 1024
"""Bytes at the end of a body that are sent slowly while it is held."""

_PLANNED_HOLD, _MAX_HOLD = 180.0, 300.0  # seconds: for the decision, and until a body is aborted
_MIN_HOLD = 5.0  # seconds; below that no upload runs ahead
_NEEDED, _USED = 0.005, 0.9  # least probability of a slot: at the body's end, and within the hold
_MIN_GAIN = 0.02  # share of a job's duration: a shorter upload is not worth running ahead
_RATE_STEP, _RATE_WINDOW = 0.3, 1.0  # weight of the latest measurement of the uplink; its seconds


@attrs.frozen
class Running:
    """One job that holds a slot.

    Attributes:
        eta: MusicGPT's estimate in seconds from acceptance, or ``None``.
        age: Seconds since acceptance, or since ``attach`` if the time of acceptance is unknown.
        age_known: Whether `age` counts from acceptance.
    """

    eta: float | None
    age: float
    age_known: bool = True


class Uplink:
    """The measured rate of all uploads together, while at least one is in progress.

    Attributes:
        rate: Bytes per second, or ``None`` before the first measurement.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._under_way = 0
        self._bytes = 0
        self._busy, self._since = 0.0, 0.0

    def started(self, *, now: float) -> None:
        """Record the start of an upload."""
        self._pass_time(now)
        self._under_way += 1

    def sent(self, count: int, *, now: float) -> None:
        """Record bytes that were written to the transport."""
        self._pass_time(now)
        self._bytes += count
        if self._busy >= _RATE_WINDOW:
            self._measure()

    def stopped(self, *, now: float) -> None:
        """Record that a body was sent up to what is held back, or was aborted."""
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
    """Decision which uploads run ahead of their slots.

    Args:
        durations: The durations that the schedule of polls learns.
        uplink: The measured upload rate.
    """

    def __init__(self, durations: DurationModel, uplink: Uplink) -> None:
        self._durations = durations
        self._uplink = uplink
        self._max_hold = _MAX_HOLD
        self._is_off = False

    @property
    def max_hold(self) -> float:
        """Seconds after which a held body is aborted, to be sent again later."""
        return self._max_hold

    @property
    def drip(self) -> float:
        """Bytes per second at which a held body is continued, so that it lasts for the hold."""
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
            free: Number of free slots.
            uploading: Remaining bytes of each upload in progress, held bodies excluded.
            held: Number of bodies of which only the end is left.
            running: The jobs that hold slots.
        """
        ahead, rate = len(uploading) + held, self._uplink.rate
        if ahead < free:
            return True
        if self._is_off or not rate or uploading:
            return False  # a second upload would take bandwidth from the one that is needed next
        seconds = (sum(uploading) + size) / rate
        if not any(seconds > _MIN_GAIN * self._typical(job) for job in running):
            return False
        needed, hold = ahead + 1 - free, min(_PLANNED_HOLD, 0.8 * self._max_hold)
        return (
            self._chance_of_slots(needed, running, within=seconds) >= _NEEDED
            and self._chance_of_slots(needed, running, within=seconds + hold) >= _USED
        )

    def closed(self, *, held_for: float) -> None:
        """Shorten the hold: the server closed a body after it was held for `held_for` seconds."""
        self._max_hold = min(self._max_hold, 0.8 * held_for)
        self._is_off = self._is_off or self._max_hold < _MIN_HOLD

    def refused_early(self) -> None:
        """Disable running ahead: MusicGPT refuses uploads of a full account before their end."""
        self._is_off = True

    def _typical(self, job: Running) -> float:
        distribution, scale = self._durations.distribution(job.eta, age_known=job.age_known)
        return scale * distribution.quantile(0.5)

    def _chance_of_slots(self, count: int, running: Sequence[Running], *, within: float) -> float:
        """Return the probability that at least `count` of the jobs end within `within` seconds.

        A Poisson binomial distribution, built job by job.
        """
        exactly = [1.0] + [0.0] * count  # exactly[k]: k jobs have ended; the last: `count` or more
        for job in running:
            ends = self._durations.chance_of_end(
                job.eta, job.age, within=within, age_known=job.age_known
            )
            exactly[count] += exactly[count - 1] * ends
            for k in range(count - 1, 0, -1):
                exactly[k] += (exactly[k - 1] - exactly[k]) * ends
            exactly[0] *= 1.0 - ends
        return exactly[count]
