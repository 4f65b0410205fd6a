"""When to look next, for all waiting jobs together.

Each job has a moment from which a look at it is worth its price (`poll_pricing.PollPricing`), and
the account has a budget of looks (`rate_budget.Budget`). Here both meet: the jobs wait in heaps by
those moments, so that a look costs O(log n) and no job is scanned for.

- **Ordinary looks** are paced evenly. Where the budget is idle a job is served from its `earliest`
  moment on, else in the order in which looks are worth the price that the budget has.
- **First looks** at jobs of unknown age are due at once, and take every second look at most.
- **Wakes** go ahead of all others, as far as the budget has room: a delivery came. One that looks
  deny is asked after again soon, then ever less often, however often it comes.

Where webhooks are expected their receiver's reliability is learned from each end, and what is
planned moves with it (`receiver_reliability.ReceiverReliability`).

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

from musicgpt_async._rules.durations import DurationModel
from musicgpt_async._rules.poll_pricing import PollPricing
from musicgpt_async._rules.rate_budget import Budget
from musicgpt_async._rules.receiver_reliability import ReceiverReliability

K = TypeVar("K", bound=Hashable)

_MAX_SPACING = 60.0  # seconds between looks at one job that deliveries cause
_FIRST_RECHECK, _RECHECKS = 0.25, 4  # seconds after a look that denied a delivery; looks after it


@attrs.define(eq=False)
class _ScheduledJob(Generic[K]):
    key: K
    eta: float | None
    accepted_at: float
    age_known: bool
    added: float
    webhook: Hashable | None  # names the delivery that is expected
    last_poll: float
    entry: int = 0  # the number of its live place in a heap; 0: in none
    earliest: float = 0.0  # the moment from which an idle budget may serve it
    is_woken: bool = False  # that place is among the wakes
    in_flight: bool = False
    first_due: bool = False  # its first look has not been made, and its age is not known
    delivered_at: float | None = None  # when a delivery came, unless a look denied it since
    denied: int = 0  # looks that a delivery caused and that saw no end
    recheck_at: float | None = None  # the moment for a wake that came while it was out

    @property
    def spacing(self) -> float:
        """Seconds between two looks that deliveries cause, after those that saw no end."""
        return min(_FIRST_RECHECK * 2.0 ** min(self.denied, 10), _MAX_SPACING)


_Heap: TypeAlias = list[tuple[float, int, _ScheduledJob[K]]]


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
        durations: DurationModel | None = None,
        reliability: ReceiverReliability | None = None,
    ) -> None:
        self._budget = Budget(polls_per_minute, tick)
        self._durations = durations or DurationModel()
        self._reliability = reliability or ReceiverReliability()
        self._rng = rng or random.Random()
        self._tick = tick
        self._pricing = PollPricing(self._durations, self._reliability, price)
        self._jobs: dict[K, _ScheduledJob[K]] = {}
        self._polls: _Heap[K] = []
        self._first_looks: _Heap[K] = []
        self._wakes: _Heap[K] = []
        self._numbers = itertools.count(1)
        self._webhooks = 0
        self._planned_loss = self._reliability.loss
        self._is_saturated = False  # a look was worth its price and the budget had no room for it
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
            key: the job, told back by `take_due`.
            now: monotonic seconds.
            eta: seconds from acceptance as the vendor told; None or negative: unknown.
            age: seconds since the vendor accepted it; None: nobody knows, so look soon.
            webhook: names the delivery that is expected, to the receiver's reliability; None: none
                is expected.
        """
        self.remove(key)
        known = max(eta, 1.0) if eta is not None and 0.0 <= eta < math.inf else None
        age_known = age is not None and age < math.inf
        accepted_at = now - max(age, 0.0) if age is not None and age_known else now
        job = _ScheduledJob(
            key, known, accepted_at, age_known, now, webhook, accepted_at, first_due=not age_known
        )
        self._jobs[key] = job
        self._webhooks += webhook is not None
        self._plan(job, now)

    def next_due(self) -> float | None:
        """The moment of the next look to make; None while there is none."""
        moments = []
        if self._drop_stale(self._wakes):
            moments.append(max(self._wakes[0][0], self._budget.next_allowed_at()))
        ordinary = [
            heap[0][2].earliest
            for heap in (self._first_looks, self._polls)
            if self._drop_stale(heap)
        ]
        if ordinary:
            share = self._share()
            at = max(min(ordinary), self._budget.next_paced_at(share=share))
            if self._budget.interval(share=share) < self._tick:
                at = max(at, math.ceil(at / self._tick) * self._tick)
            moments.append(at)
        return min(moments) if moments else None

    def take_due(self, now: float) -> list[K]:
        """Take the looks to make now; each key is out until it is answered."""
        self._follow_reliability(now)
        taken: list[K] = []
        while (
            self._drop_stale(self._wakes)
            and self._wakes[0][0] <= now
            and self._budget.next_allowed_at() <= now
        ):
            taken.append(self._mark_in_flight(heapq.heappop(self._wakes)[2], now))
        while (
            self._budget.next_paced_at(share=self._share()) <= now
            and (heap := self._due_heap(now)) is not None
        ):
            self._is_turn_of_first = heap is self._polls
            job = heapq.heappop(heap)[2]
            self._pricing.learn(
                job.eta,
                job.last_poll - job.accepted_at,
                now - job.accepted_at,
                age_known=job.age_known,
                loss=self._chance_of_loss(job),
            )
            self._budget.pace(now, share=self._share())
            taken.append(self._mark_in_flight(job, now))
        self._is_saturated = self._due_heap(now) is not None or self._has_due(self._wakes, now)
        return taken

    def _due_heap(self, now: float) -> _Heap[K] | None:
        """The heap whose top is the next ordinary look, None while there is none to make."""
        firsts = self._has_due(self._first_looks, now)
        if firsts and (self._is_turn_of_first or not self._has_due(self._polls, now)):
            return self._first_looks
        return self._polls if self._has_due(self._polls, now) else None

    def _has_due(self, heap: _Heap[K], now: float) -> bool:
        return self._drop_stale(heap) and heap[0][2].earliest <= now

    def on_unfinished(self, key: K, *, now: float) -> None:
        """Note a look that saw no end, or failed: the next one is scheduled."""
        job = self._jobs.get(key)
        if job is None or not job.in_flight:
            return
        job.in_flight = False
        recheck_at, job.recheck_at = job.recheck_at, None
        if now < self._budget.paused_until:
            # Perhaps this look was the one refused: it saw nothing, and is due after the pause.
            is_woken = recheck_at is not None or job.delivered_at is not None
            heap = self._wakes if is_woken else self._polls
            self._push(heap, job, self._budget.paused_until)
            return
        job.last_poll, job.first_due = now, False
        if job.delivered_at is not None and (recheck_at is None or job.denied):
            self._deny(job, is_repeated=recheck_at is not None)
        elif recheck_at is not None:
            self._push(self._wakes, job, recheck_at)
        else:
            self._plan(job, now)

    def _deny(self, job: _ScheduledJob[K], *, is_repeated: bool) -> None:
        """Look again shortly: a delivery may be ahead of byId, forged, or too early."""
        at = job.last_poll + job.spacing
        job.denied += 1
        if job.denied <= _RECHECKS or is_repeated:
            self._push(self._wakes, job, at)
        else:
            job.delivered_at = None
            self._plan(job, job.last_poll)

    def on_finished(self, key: K, *, now: float) -> None:
        """Forget a job that is terminal, and learn from it.

        What it teaches is how long jobs take, and whether and when deliveries come.
        """
        job = self._jobs.get(key)
        if job is not None:
            self._learn(job, now)
            self.remove(key)
            self._follow_reliability(now)

    def _learn(self, job: _ScheduledJob[K], now: float) -> None:
        low, high, delivered_at = job.last_poll, now, job.delivered_at
        if delivered_at is not None and not job.denied:
            low = high = max(low, delivered_at - self._reliability.delay)
        if job.age_known:
            self._durations.observe(job.eta, low - job.accepted_at, high - job.accepted_at)
        if job.webhook is None:
            return
        if delivered_at is not None or job.denied:
            # One that came too early proves that the receiver hears, and nothing of the delay.
            within = (
                math.inf if delivered_at is None or job.denied else delivered_at - job.last_poll
            )
            self._reliability.arrived(now=now, within=within)
        elif low >= job.added and not job.first_due:
            # It did not end while nobody was there to hear of it.
            self._reliability.missed(job.webhook, low=low, high=high)

    def remove(self, key: K) -> None:
        """Let go of a job without learning from it; unknown keys are ignored."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.entry = 0
            self._webhooks -= job.webhook is not None
            for heap in (self._polls, self._first_looks, self._wakes):
                self._compact(heap)

    def wake(self, key: K, *, now: float, delay: float = 0.0) -> None:
        """Look at a job at once, or after `delay` seconds, ahead of all others."""
        job = self._jobs.get(key)
        if job is None:
            return
        at = now + max(0.0, delay)
        if job.in_flight:
            job.recheck_at = at if job.recheck_at is None else min(at, job.recheck_at)
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
        self.wake(key, now=now, delay=job.last_poll + job.spacing - now if job.denied else 0.0)

    def on_throttled(self, *, now: float, retry_after: float | None) -> None:
        """Pause all looks after a 429, and believe in a smaller budget."""
        self._budget.on_throttled(now, retry_after)

    def on_success(self, *, now: float) -> None:
        """Believe in a larger budget after a real answer, where a larger one is wanted."""
        self._budget.on_success(now)
        if self._is_saturated:
            # The line through all plans: 20, 200 and 500 looks for 2, 5 and 10 jobs.
            self._budget.grow(ceiling=20.0 + 60.0 * max(0, len(self._jobs) - 2))

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
            if job.webhook is not None and not job.in_flight and not job.is_woken:
                self._plan(job, now)

    def _chance_of_loss(self, job: _ScheduledJob[K]) -> float:
        """How likely nothing but a look will tell a job's end."""
        if job.webhook is None or job.denied:  # what has come does not come again
            return 1.0
        return self._reliability.loss

    def _plan(self, job: _ScheduledJob[K], now: float) -> None:
        """Choose the moment of a job's next look, after the one at `job.last_poll`."""
        if job.first_due:
            self._push(self._first_looks, job, now)
            return
        age, loss = job.last_poll - job.accepted_at, self._chance_of_loss(job)
        soonest, wait = self._pricing.waits(job.eta, age, age_known=job.age_known, loss=loss)
        spread = self._rng.uniform(0.95, 1.05)
        earliest = job.last_poll + spread * soonest
        self._push(self._polls, job, job.last_poll + spread * wait, earliest=earliest)

    def _push(
        self, heap: _Heap[K], job: _ScheduledJob[K], at: float, *, earliest: float | None = None
    ) -> None:
        job.entry, job.is_woken = next(self._numbers), heap is self._wakes
        job.earliest = at if earliest is None else earliest
        heapq.heappush(heap, (at, job.entry, job))
        self._compact(heap)

    def _compact(self, heap: _Heap[K]) -> None:
        """Rebuild a heap of which most is outdated, so that nothing let go of is held long."""
        if len(heap) > 2 * len(self._jobs) + 64:
            heap[:] = [place for place in heap if place[2].entry == place[1]]
            heapq.heapify(heap)

    def _drop_stale(self, heap: _Heap[K]) -> bool:
        """Drop outdated entries from the top; True when a live one is left."""
        while heap and heap[0][2].entry != heap[0][1]:
            heapq.heappop(heap)
        return bool(heap)

    def _mark_in_flight(self, job: _ScheduledJob[K], now: float) -> K:
        job.entry, job.in_flight, job.is_woken = 0, True, False
        self._budget.record(now)
        return job.key
