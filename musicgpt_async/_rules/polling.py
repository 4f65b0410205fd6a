"""When to look next, for all waiting jobs together.

A job ends at an unknown moment, each look at it costs one of the account's calls a minute, and the
time from the end to the next look is lost. The looks that lose least are not evenly spaced: their
density is proportional to the square root of the hazard, the chance of ending now given that it
has not ended yet (R. E. Barlow, L. C. Hunter and F. Proschan, "Optimum checking procedures",
J. SIAM 11, 1963; J. B. Keller, "Optimum checking schedules for systems subject to random failure",
Management Science 21, 1974). With a price of L seconds a look that density means an interval of
sqrt(2 L / hazard), or, said without the limit of short intervals: *look when the undetected time
expected since the last look reaches L*. That is the rule here. On lognormal durations it costs
within one per cent of the true optimum from five looks a job on.

Three things have to be known for it, and all three are learned:

- **The law of durations** (`durations.Durations`).
- **The price**: what the last looks were worth. Under a tight budget jobs wait past their moment,
  the looks made are worth more, the price rises and spreads all intervals; an idle budget lowers
  it again, down to `price`. So the calls go where the expected undetected time is largest, at
  O(log n) a look, without scanning the jobs.
- **The budget** (`rate_budget.Budget`).

No clock is read here: every `now` is monotonic seconds, handed in.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Hashable
from typing import Generic, TypeAlias, TypeVar

import attrs

from musicgpt_async._rules.durations import Durations, Law
from musicgpt_async._rules.rate_budget import Budget

K = TypeVar("K", bound=Hashable)

_SHORT_JOB = 10.0  # seconds; the undetected time of a shorter one matters the more
_SHORTEST = 0.02  # seconds between two looks at one job, and the least that one is worth
_HAZARD_FLOOR = 5e-5  # ends a second, expected of any job at any age
_NEVER = math.inf


@attrs.define(eq=False)
class _Job(Generic[K]):
    key: K
    eta: float | None
    began: float
    age_known: bool
    safety: bool
    looked: float
    entry: int = 0  # the number of its live place in a heap; 0: in none
    earliest: float = 0.0  # the moment from which an idle budget may serve it
    out: bool = False
    woken: float | None = None  # when a delivery said that it ended, unless a look denied it since
    again: float | None = None  # the moment for a wake that came while it was out


_Heap: TypeAlias = list[tuple[float, int, _Job[K]]]


class Schedule(Generic[K]):
    """One schedule of looks for all waiting jobs of a session.

    Args:
        polls_per_minute: the account's budget; None: learn it, beginning at the free plan's.
        rng: spreads the looks of many processes.
        tick: seconds into which wake-ups are gathered where the budget is larger than one a tick.
        price: seconds of undetected time that a look must be worth, however idle the budget; a
            share of it at jobs of a few seconds.
        durations: how long jobs take, where that is known or shared; None: learn it.
    """

    def __init__(
        self,
        *,
        polls_per_minute: float | None = None,
        rng: random.Random | None = None,
        tick: float = 0.02,
        price: float = 0.05,
        durations: Durations | None = None,
    ) -> None:
        self._budget = Budget(polls_per_minute, tick)
        self._durations = durations or Durations()
        self._rng = rng or random.Random()
        self._tick = tick
        self._least_price = self._price = price
        self._jobs: dict[K, _Job[K]] = {}
        self._looks: _Heap[K] = []
        self._wakes: _Heap[K] = []
        self._numbers = itertools.count(1)
        self._safeties = 0
        self._scarce = False  # a look was worth its price and the budget had no room for it
        self._unaged_at = -_NEVER  # first looks at unknown ages take every second look at most

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, key: object) -> bool:
        return key in self._jobs

    @property
    def polls_per_minute(self) -> float:
        """How many looks a minute the account is believed to allow."""
        return self._budget.estimate

    def add(
        self,
        key: K,
        *,
        now: float,
        eta: float | None,
        age: float | None = 0.0,
        safety: bool = False,
    ) -> None:
        """Begin to look at a job.

        Args:
            key: the job, told back by `due`.
            now: monotonic seconds.
            eta: seconds from acceptance as the vendor told; None or negative: unknown.
            age: seconds since the vendor accepted it; None: nobody knows, so look soon.
            safety: a webhook is expected, so only look where it seems to be lost.
        """
        self.forget(key)
        known = max(eta, 1.0) if eta is not None and 0.0 <= eta < math.inf else None
        began = now - max(age or 0.0, 0.0)
        job = _Job(key, known, began, age is not None, safety, began)
        self._jobs[key] = job
        self._safeties += safety
        if age is None:
            self._unaged_at = max(now, self._unaged_at + 2.0 * self._budget.gap())
            self._push(self._looks, job, self._unaged_at, earliest=now)
        else:
            self._plan(job)

    def next_due(self) -> float | None:
        """The moment of the next look to make; None while there is none."""
        moments = []
        if self._settle(self._wakes):
            moments.append(max(self._wakes[0][0], self._budget.room_at()))
        if self._settle(self._looks):
            share = self._share()
            at = max(self._looks[0][2].earliest, self._budget.paced_at(share=share))
            if self._budget.gap(share=share) < self._tick:
                at = max(at, math.ceil(at / self._tick) * self._tick)
            moments.append(at)
        return min(moments) if moments else None

    def due(self, now: float) -> list[K]:
        """Take the looks to make now; each key is out until it is answered."""
        taken: list[K] = []
        while (
            self._settle(self._wakes) and self._wakes[0][0] <= now and self._budget.room_at() <= now
        ):
            taken.append(self._send(heapq.heappop(self._wakes)[2], now))
        while (
            self._settle(self._looks)
            and self._looks[0][2].earliest <= now
            and self._budget.paced_at(share=self._share()) <= now
        ):
            job = heapq.heappop(self._looks)[2]
            self._learn_price(job, now)
            self._budget.pace(now, share=self._share())
            taken.append(self._send(job, now))
        self._scarce = self._has_due(self._looks, now) or self._has_due(self._wakes, now)
        return taken

    def _has_due(self, heap: _Heap[K], now: float) -> bool:
        return self._settle(heap) and heap[0][2].earliest <= now

    def pending(self, key: K, *, now: float) -> None:
        """Note a look that saw no end, or failed: the next one is scheduled."""
        job = self._jobs.get(key)
        if job is None or not job.out:
            return
        job.out = False
        if job.again is not None:
            job.woken, job.again = job.again, None
            self._push(self._wakes, job, job.woken, earliest=job.woken)
        elif now < self._budget.paused_until:
            # Perhaps this look was the one refused: it saw nothing, and is due after the pause.
            heap = self._looks if job.woken is None else self._wakes
            at = self._budget.paused_until
            self._push(heap, job, at, earliest=at)
        else:
            job.looked, job.woken = now, None  # whoever woke it was wrong, or too early
            self._plan(job)

    def finished(self, key: K, *, now: float) -> None:
        """Forget a job that is terminal, and learn from it how long jobs take."""
        job = self._jobs.get(key)
        if job is not None and job.age_known:
            low, high = (job.looked, now) if job.woken is None else (job.woken, job.woken)
            self._durations.observe(job.eta, low - job.began, high - job.began)
        self.forget(key)

    def forget(self, key: K) -> None:
        """Let go of a job without learning from it; unknown keys are ignored."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.entry = 0
            self._safeties -= job.safety
            self._tidy(self._looks)
            self._tidy(self._wakes)

    def wake(self, key: K, *, now: float, delay: float = 0.0) -> None:
        """Look at a job at once, or after `delay` seconds, ahead of all others."""
        job = self._jobs.get(key)
        if job is None:
            return
        at = now + delay
        if job.out:
            job.again = at if job.again is None else min(at, job.again)
        elif job.woken is None or at < job.earliest:
            job.woken = now if job.woken is None else job.woken
            self._push(self._wakes, job, at, earliest=at)

    def throttled(self, *, now: float, retry_after: float | None) -> None:
        """Pause all looks after a 429, and believe in a smaller budget."""
        self._budget.throttled(now, retry_after)

    def answered(self, *, now: float) -> None:
        """Believe in a larger budget after a real answer, where a larger one is wanted."""
        self._budget.answered(now)
        if self._scarce:
            # The line through all plans: 20, 200 and 500 looks for 2, 5 and 10 jobs.
            self._budget.grow(wanted=20.0 + 60.0 * max(0, len(self._jobs) - 2))

    def _share(self) -> float:
        """The part of the budget for ordinary looks: some is kept for what webhooks will wake."""
        return 0.9 if self._safeties else 1.0

    def _learn_price(self, job: _Job[K], now: float) -> None:
        law, scale = self._durations.law(job.eta, age_known=job.age_known)
        last, ratio = (job.looked - job.began) / scale, (now - job.began) / scale
        worth = scale * law.undetected(last, ratio) + 0.5 * _HAZARD_FLOOR * (now - job.looked) ** 2
        price = self._price + 0.03 * (min(worth, 4.0 * self._price) - self._price)
        self._price = max(price, self._least_price)

    def _plan(self, job: _Job[K]) -> None:
        """Choose the moment of a job's next look, after the one at `job.looked`."""
        law, scale = self._durations.law(job.eta, age_known=job.age_known)
        if job.safety:
            at = self._safety_look(job, law, scale)
            self._push(self._looks, job, at, earliest=at)
            return
        spread = self._rng.uniform(0.95, 1.05)
        least = max(self._least_price * min(scale / _SHORT_JOB, 1.0), _SHORTEST)
        wait = self._wait(job, law, scale, least)
        age = job.looked - job.began
        if scale < _SHORT_JOB and age < scale:  # an eta of a few whole seconds says little
            wait = min(wait, scale / 5)
        at = earliest = job.looked + spread * wait
        if self._price > self._least_price:
            at = job.looked + spread * self._wait(job, law, scale, self._price)
        self._push(self._looks, job, at, earliest=earliest)

    def _wait(self, job: _Job[K], law: Law, scale: float, price: float) -> float:
        """Seconds after its last look at which a job's next one is worth a price."""
        age = job.looked - job.began
        ratio = law.next_look(age / scale, price / scale, _HAZARD_FLOOR * scale)
        return max(ratio * scale - age, _SHORTEST)

    def _safety_look(self, job: _Job[K], law: Law, scale: float) -> float:
        """When to hold a webhook lost: most jobs have ended by then, half a minute ago."""
        age = job.looked - job.began
        lost = job.began + law.quantile(0.9) * scale + 30.0
        return max(lost, job.looked + min(max(60.0, 0.5 * age), 300.0))

    def _push(self, heap: _Heap[K], job: _Job[K], at: float, *, earliest: float) -> None:
        job.entry, job.earliest = next(self._numbers), earliest
        heapq.heappush(heap, (at, job.entry, job))
        self._tidy(heap)

    def _tidy(self, heap: _Heap[K]) -> None:
        """Rebuild a heap of which most is outdated, so that nothing let go of is held long."""
        if len(heap) > 2 * len(self._jobs) + 64:
            heap[:] = [place for place in heap if place[2].entry == place[1]]
            heapq.heapify(heap)

    def _settle(self, heap: _Heap[K]) -> bool:
        """Drop outdated entries from the top; True when a live one is left."""
        while heap and heap[0][2].entry != heap[0][1]:
            heapq.heappop(heap)
        return bool(heap)

    def _send(self, job: _Job[K], now: float) -> K:
        job.entry, job.out = 0, True
        self._budget.spend(now)
        return job.key
