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

Where a webhook is expected a delivery may tell the end instead. What a look then detects is a job
that has ended *and* whose delivery does not come, or not yet: the same rule holds with the chance
and the delay of deliveries in it (`receiver_reliability.ReceiverReliability`), given that nothing
has come so far. A receiver that nothing was heard from is polled for; once deliveries come, a look
must be worth `_EXPECTED_PRICE` more, and about one a job is left, the one that a delivery wakes.

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
from musicgpt_async._rules.receiver_reliability import ReceiverReliability

K = TypeVar("K", bound=Hashable)

_SHORT_JOB = 10.0  # seconds; the undetected time of a shorter one matters the more
_SHORTEST = 0.02  # seconds between two looks at one job, and the least that one is worth
_HAZARD_FLOOR = 5e-5  # ends a second, expected of any job at any age
_EXPECTED_PRICE = 0.7  # seconds that a look must be worth where a delivery surely comes
_LONGEST_SPACING = 60.0  # seconds between looks at one job that deliveries cause
_FIRST_RECHECK, _RECHECKS = 0.25, 4  # seconds after a look that denied a delivery; looks after it


@attrs.define(eq=False)
class _Job(Generic[K]):
    key: K
    eta: float | None
    began: float
    age_known: bool
    added: float
    webhook: Hashable | None  # names the delivery that is expected
    looked: float
    entry: int = 0  # the number of its live place in a heap; 0: in none
    earliest: float = 0.0  # the moment from which an idle budget may serve it
    is_woken: bool = False  # that place is among the wakes
    out: bool = False
    first_due: bool = False  # its first look has not been made, and its age is not known
    delivered_at: float | None = None  # when a delivery came, unless a look denied it since
    denied: int = 0  # looks that a delivery caused and that saw no end
    again: float | None = None  # the moment for a wake that came while it was out

    @property
    def spacing(self) -> float:
        """Seconds between two looks that deliveries cause, after those that saw no end."""
        return min(_FIRST_RECHECK * 2.0 ** min(self.denied, 10), _LONGEST_SPACING)


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
        reliability: the receiver of the jobs that expect a webhook; None: one not heard from yet.
    """

    def __init__(
        self,
        *,
        polls_per_minute: float | None = None,
        rng: random.Random | None = None,
        tick: float = 0.02,
        price: float = 0.05,
        durations: Durations | None = None,
        reliability: ReceiverReliability | None = None,
    ) -> None:
        self._budget = Budget(polls_per_minute, tick)
        self._durations = durations or Durations()
        self._reliability = reliability or ReceiverReliability()
        self._rng = rng or random.Random()
        self._tick = tick
        self._least_price = self._price = price
        self._jobs: dict[K, _Job[K]] = {}
        self._looks: _Heap[K] = []
        self._first_looks: _Heap[K] = []
        self._wakes: _Heap[K] = []
        self._numbers = itertools.count(1)
        self._webhooks = 0
        self._planned_loss = self._reliability.loss
        self._scarce = False  # a look was worth its price and the budget had no room for it
        self._is_turn_of_first = True  # first looks at unknown ages take every second look at most

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
        webhook: Hashable | None = None,
    ) -> None:
        """Begin to look at a job.

        Args:
            key: the job, told back by `due`.
            now: monotonic seconds.
            eta: seconds from acceptance as the vendor told; None or negative: unknown.
            age: seconds since the vendor accepted it; None: nobody knows, so look soon.
            webhook: names the delivery that is expected, to the receiver's reliability; None: none
                is expected.
        """
        self.forget(key)
        known = max(eta, 1.0) if eta is not None and 0.0 <= eta < math.inf else None
        age_known = age is not None and age < math.inf
        began = now - max(age, 0.0) if age is not None and age_known else now
        job = _Job(key, known, began, age_known, now, webhook, began, first_due=not age_known)
        self._jobs[key] = job
        self._webhooks += webhook is not None
        self._plan(job, now)

    def next_due(self) -> float | None:
        """The moment of the next look to make; None while there is none."""
        moments = []
        if self._settle(self._wakes):
            moments.append(max(self._wakes[0][0], self._budget.room_at()))
        ordinary = [
            heap[0][2].earliest for heap in (self._first_looks, self._looks) if self._settle(heap)
        ]
        if ordinary:
            share = self._share()
            at = max(min(ordinary), self._budget.paced_at(share=share))
            if self._budget.gap(share=share) < self._tick:
                at = max(at, math.ceil(at / self._tick) * self._tick)
            moments.append(at)
        return min(moments) if moments else None

    def due(self, now: float) -> list[K]:
        """Take the looks to make now; each key is out until it is answered."""
        self._follow_reliability(now)
        taken: list[K] = []
        while (
            self._settle(self._wakes) and self._wakes[0][0] <= now and self._budget.room_at() <= now
        ):
            taken.append(self._send(heapq.heappop(self._wakes)[2], now))
        while (
            self._budget.paced_at(share=self._share()) <= now
            and (heap := self._due_heap(now)) is not None
        ):
            self._is_turn_of_first = heap is self._looks
            job = heapq.heappop(heap)[2]
            self._learn_price(job, now)
            self._budget.pace(now, share=self._share())
            taken.append(self._send(job, now))
        self._scarce = self._due_heap(now) is not None or self._has_due(self._wakes, now)
        return taken

    def _due_heap(self, now: float) -> _Heap[K] | None:
        """The heap whose top is the next ordinary look, None while there is none to make."""
        firsts = self._has_due(self._first_looks, now)
        if firsts and (self._is_turn_of_first or not self._has_due(self._looks, now)):
            return self._first_looks
        return self._looks if self._has_due(self._looks, now) else None

    def _has_due(self, heap: _Heap[K], now: float) -> bool:
        return self._settle(heap) and heap[0][2].earliest <= now

    def pending(self, key: K, *, now: float) -> None:
        """Note a look that saw no end, or failed: the next one is scheduled."""
        job = self._jobs.get(key)
        if job is None or not job.out:
            return
        job.out = False
        again, job.again = job.again, None
        if now < self._budget.paused_until:
            # Perhaps this look was the one refused: it saw nothing, and is due after the pause.
            is_woken = again is not None or job.delivered_at is not None
            heap = self._wakes if is_woken else self._looks
            self._push(heap, job, self._budget.paused_until)
            return
        job.looked, job.first_due = now, False
        if job.delivered_at is not None and (again is None or job.denied):
            self._deny(job, is_repeated=again is not None)
        elif again is not None:
            self._push(self._wakes, job, again)
        else:
            self._plan(job, now)

    def _deny(self, job: _Job[K], *, is_repeated: bool) -> None:
        """Look again shortly: a delivery may be ahead of byId, forged, or too early."""
        at = job.looked + job.spacing
        job.denied += 1
        if job.denied <= _RECHECKS or is_repeated:
            self._push(self._wakes, job, at)
        else:
            job.delivered_at = None
            self._plan(job, job.looked)

    def finished(self, key: K, *, now: float) -> None:
        """Forget a job that is terminal, and learn from it.

        What it teaches is how long jobs take, and whether and when deliveries come.
        """
        job = self._jobs.get(key)
        if job is not None:
            self._learn(job, now)
            self.forget(key)
            self._follow_reliability(now)

    def _learn(self, job: _Job[K], now: float) -> None:
        low, high, delivered_at = job.looked, now, job.delivered_at
        if delivered_at is not None and not job.denied:
            low = high = max(low, delivered_at - self._reliability.delay)
        if job.age_known:
            self._durations.observe(job.eta, low - job.began, high - job.began)
        if job.webhook is None:
            return
        if delivered_at is not None or job.denied:
            # One that came too early proves that the receiver hears, and nothing of the delay.
            within = math.inf if delivered_at is None or job.denied else delivered_at - job.looked
            self._reliability.arrived(now=now, within=within)
        elif (
            low >= job.added and not job.first_due
        ):  # not one that ended while nobody was there to hear of it
            self._reliability.missed(job.webhook, low=low, high=high)

    def forget(self, key: K) -> None:
        """Let go of a job without learning from it; unknown keys are ignored."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.entry = 0
            self._webhooks -= job.webhook is not None
            for heap in (self._looks, self._first_looks, self._wakes):
                self._tidy(heap)

    def wake(self, key: K, *, now: float, delay: float = 0.0) -> None:
        """Look at a job at once, or after `delay` seconds, ahead of all others."""
        job = self._jobs.get(key)
        if job is None:
            return
        at = now + max(0.0, delay)
        if job.out:
            job.again = at if job.again is None else min(at, job.again)
        elif not job.is_woken or at < job.earliest:
            self._push(self._wakes, job, at)

    def delivered(self, key: K, *, now: float) -> None:
        """Look at a job at once: a delivery came that says that it ended.

        One that looks have denied is looked at after ever longer pauses, however often it comes.
        """
        job = self._jobs.get(key)
        if job is None:
            return
        if job.delivered_at is None:
            job.delivered_at = now
        self.wake(key, now=now, delay=job.looked + job.spacing - now if job.denied else 0.0)

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
        return 0.9 if self._webhooks and self._reliability.loss < 0.5 else 1.0

    def _follow_reliability(self, now: float) -> None:
        """Plan anew what expects a webhook once that is far more, or less, likely to come."""
        loss = self._reliability.loss
        if not self._webhooks or 0.5 < loss / self._planned_loss < 2.0:
            return
        self._planned_loss = loss
        for job in self._jobs.values():
            if job.webhook is not None and not job.out and not job.is_woken:
                self._plan(job, now)

    def _chance_of_loss(self, job: _Job[K]) -> float:
        """How likely nothing but a look will tell a job's end."""
        if job.webhook is None or job.denied:  # what has come does not come again
            return 1.0
        return self._reliability.loss

    def _learn_price(self, job: _Job[K], now: float) -> None:
        law, scale = self._durations.law(job.eta, age_known=job.age_known)
        loss = self._chance_of_loss(job)
        if self._price_of(loss, scale) > self._price:
            return
        last, ratio = (job.looked - job.began) / scale, (now - job.began) / scale
        worth = scale * law.undetected(last, ratio, loss, self._reliability.delay / scale)
        worth += 0.5 * loss * _HAZARD_FLOOR * (now - job.looked) ** 2
        price = self._price + 0.03 * (min(worth, 4.0 * self._price) - self._price)
        self._price = max(price, self._least_price)

    def _price_of(self, loss: float, scale: float) -> float:
        """Seconds that a look must be worth: more, the more surely a delivery will come."""
        price = self._least_price + (1.0 - loss) * _EXPECTED_PRICE
        return max(price * min(scale / _SHORT_JOB, 1.0), _SHORTEST)

    def _plan(self, job: _Job[K], now: float) -> None:
        """Choose the moment of a job's next look, after the one at `job.looked`."""
        if job.first_due:
            self._push(self._first_looks, job, now)
            return
        law, scale = self._durations.law(job.eta, age_known=job.age_known)
        loss = self._chance_of_loss(job)
        spread = self._rng.uniform(0.95, 1.05)
        price = self._price_of(loss, scale)
        wait = self._wait(job, law, scale, price, loss)
        age = job.looked - job.began
        # An eta of a few whole seconds says little.
        if scale < _SHORT_JOB and age < scale and loss > 0.5:
            wait = min(wait, scale / 5)
        at = earliest = job.looked + spread * wait
        if self._price > price:
            at = job.looked + spread * self._wait(job, law, scale, self._price, loss)
        self._push(self._looks, job, at, earliest=earliest)

    def _wait(self, job: _Job[K], law: Law, scale: float, price: float, loss: float) -> float:
        """Seconds after its last look at which a job's next one is worth a price."""
        age = job.looked - job.began
        delay = self._reliability.delay / scale
        ratio = law.next_look(age / scale, price / scale, _HAZARD_FLOOR * scale, loss, delay)
        return max(ratio * scale - age, _SHORTEST)

    def _push(
        self, heap: _Heap[K], job: _Job[K], at: float, *, earliest: float | None = None
    ) -> None:
        job.entry, job.is_woken = next(self._numbers), heap is self._wakes
        job.earliest = at if earliest is None else earliest
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
        job.entry, job.out, job.is_woken = 0, True, False
        self._budget.spend(now)
        return job.key
