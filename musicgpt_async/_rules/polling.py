"""Schedule the polls of all waiting jobs together.

Each job has a time from which a poll is worth its price (`poll_pricing.PollPricing`), and the
account has a budget of polls (`rate_budget.Budget`). This module combines both: jobs wait in heaps
that are ordered by these times, so that a poll costs O(log n) and no list of jobs is scanned.

- **Ordinary polls** are evenly paced. If the budget is idle, a job is polled from its `earliest`
  time on; otherwise in the order in which polls become worth the current price.
- **First polls** of jobs of unknown age are due at once, and take at most every second poll.
- **Wakes** are polls that a delivery causes. They precede all others, as far as the budget allows.
  If byId does not confirm a delivery, its job is polled again soon, then at growing intervals,
  however often the delivery is repeated.

If webhooks are expected, the reliability of their receiver is learned from each finished job, and
planned polls are rescheduled when it changes (`receiver_reliability.ReceiverReliability`).

No clock is read here: every `now` is passed in, in monotonic seconds.
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

_MAX_SPACING = 60.0  # seconds between two wakes of one job
_FIRST_RECHECK, _RECHECKS = 0.25, 4  # seconds to the first poll after a denied delivery; polls


@attrs.define(eq=False)
class _ScheduledJob(Generic[K]):
    """A waiting job and its entry in one of the heaps.

    The heaps are never searched. An entry is a tuple (time, number, job), and only the tuple whose
    number equals the job's `entry` is live; every `_push` takes a new number, which invalidates the
    job's older tuple wherever it is. Invalid tuples are dropped when they reach the top.
    """

    key: K
    eta: float | None
    accepted_at: float
    age_known: bool
    added: float
    webhook: Hashable | None  # identifies the expected delivery
    last_poll: float  # monotonic seconds; the acceptance before the first poll
    entry: int = 0  # number of its live heap entry, or 0 if it has none
    earliest: float = 0.0  # time from which it may be polled if the budget is idle
    is_woken: bool = False  # its live entry is in the heap of wakes
    in_flight: bool = False
    first_due: bool = False  # its age is unknown and it was not polled yet
    delivered_at: float | None = None  # arrival of a delivery that no poll has denied since
    denied: int = 0  # polls caused by a delivery that found the job unfinished
    recheck_at: float | None = None  # time of a wake that was requested during a poll

    @property
    def spacing(self) -> float:
        """Seconds to the next wake; doubled with each poll that denied a delivery."""
        return min(_FIRST_RECHECK * 2.0 ** min(self.denied, 10), _MAX_SPACING)


_Heap: TypeAlias = list[tuple[float, int, _ScheduledJob[K]]]


class Schedule(Generic[K]):
    """The schedule of polls for all waiting jobs of a session.

    Args:
        polls_per_minute: The account's budget, or ``None`` to learn it from the free plan's on.
        rng: Source of the jitter that spreads the polls of many processes.
        tick: Seconds into which wake-ups are batched if the budget allows more than one per tick.
        price: Lowest price of a poll in seconds of undetected time, even if the budget is idle;
            scaled down for jobs of a few seconds.
        durations: A shared model of durations, or ``None`` for a new one.
        reliability: The model of the webhook receiver, or ``None`` for a new one.
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
        self.budget = Budget(polls_per_minute, tick)
        self._durations = durations or DurationModel()
        self._reliability = reliability or ReceiverReliability()
        self._rng = rng or random.Random()
        self._tick = tick
        self._pricing = PollPricing(self._durations, self._reliability, price)
        self._jobs: dict[K, _ScheduledJob[K]] = {}
        self._polls: _Heap[K] = []
        self._first_polls: _Heap[K] = []
        self._wakes: _Heap[K] = []
        self._numbers = itertools.count(1)
        self._webhooks = 0
        self._planned_loss = self._reliability.loss
        self._is_saturated = False  # a poll was worth its price but exceeded the budget
        self._is_turn_of_first = True  # first polls take at most every second poll

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, key: object) -> bool:
        return key in self._jobs

    @property
    def polls_per_minute(self) -> float:
        """Estimated number of polls per minute that the account allows."""
        return self.budget.estimate

    def add(
        self,
        key: K,
        *,
        now: float,
        eta: float | None,
        age: float | None = 0.0,
        webhook: Hashable | None = None,
    ) -> None:
        """Start polling a job.

        Args:
            key: Identifies the job; returned by `take_due`.
            now: Monotonic seconds.
            eta: MusicGPT's estimate in seconds from acceptance; unknown if ``None`` or negative.
            age: Seconds since acceptance, or ``None`` if unknown: then it is polled soon.
            webhook: Identifies the expected delivery for the model of the receiver, or ``None`` if
                no webhook is expected.
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
        """Return the time of the next poll in monotonic seconds, or ``None`` without jobs."""
        moments = []
        if self._drop_stale(self._wakes):
            moments.append(max(self._wakes[0][0], self.budget.next_allowed_at()))
        ordinary = [
            heap[0][2].earliest
            for heap in (self._first_polls, self._polls)
            if self._drop_stale(heap)
        ]
        if ordinary:
            share = self._share()
            at = max(min(ordinary), self.budget.next_paced_at(share=share))
            if self.budget.interval(share=share) < self._tick:
                at = max(at, math.ceil(at / self._tick) * self._tick)
            moments.append(at)
        return min(moments) if moments else None

    def take_due(self, now: float, *, most: float = math.inf) -> list[K]:
        """Return the jobs to poll now; each is in flight until its result is reported.

        Args:
            now: Monotonic seconds.
            most: How many at most.
        """
        self._follow_reliability(now)
        taken: list[K] = []
        while (
            len(taken) < most
            and self._drop_stale(self._wakes)
            and self._wakes[0][0] <= now
            and self.budget.next_allowed_at() <= now
        ):
            taken.append(self._mark_in_flight(heapq.heappop(self._wakes)[2], now))
        while (
            len(taken) < most
            and self.budget.next_paced_at(share=self._share()) <= now
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
            self.budget.pace(now, share=self._share())
            taken.append(self._mark_in_flight(job, now))
        self._is_saturated = self._due_heap(now) is not None or self._has_due(self._wakes, now)
        return taken

    def is_wake_due(self, now: float) -> bool:
        """Return whether a poll is due that goes ahead of the evenly paced ones."""
        return self._drop_stale(self._wakes) and self._wakes[0][0] <= now

    def _due_heap(self, now: float) -> _Heap[K] | None:
        """Return the heap whose top is the next ordinary poll, or ``None`` if none is due."""
        firsts = self._has_due(self._first_polls, now)
        if firsts and (self._is_turn_of_first or not self._has_due(self._polls, now)):
            return self._first_polls
        return self._polls if self._has_due(self._polls, now) else None

    def _has_due(self, heap: _Heap[K], now: float) -> bool:
        return self._drop_stale(heap) and heap[0][2].earliest <= now

    def on_unfinished(self, key: K, *, now: float) -> None:
        """Schedule the next poll after one that failed or found the job unfinished."""
        job = self._jobs.get(key)
        if job is None or not job.in_flight:
            return
        job.in_flight = False
        recheck_at, job.recheck_at = job.recheck_at, None
        if now < self.budget.paused_until:
            # This poll may be the one that was refused: it says nothing, and is repeated after
            # the pause.
            is_woken = recheck_at is not None or job.delivered_at is not None
            heap = self._wakes if is_woken else self._polls
            self._push(heap, job, self.budget.paused_until)
            return
        job.last_poll, job.first_due = now, False
        if job.delivered_at is not None and (recheck_at is None or job.denied):
            self._deny(job, is_repeated=recheck_at is not None)
        elif recheck_at is not None:
            self._push(self._wakes, job, recheck_at)
        else:
            self._plan(job, now)

    def _deny(self, job: _ScheduledJob[K], *, is_repeated: bool) -> None:
        """Schedule a recheck: the delivery may precede byId's update, or be forged."""
        at = job.last_poll + job.spacing
        job.denied += 1
        if job.denied <= _RECHECKS or is_repeated:
            self._push(self._wakes, job, at)
        else:
            job.delivered_at = None
            self._plan(job, job.last_poll)

    def on_finished(self, key: K, *, now: float) -> None:
        """Remove a job that is terminal, and learn durations and deliveries from it."""
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
            # A premature delivery proves that the receiver works, but says nothing of the delay.
            within = (
                math.inf if delivered_at is None or job.denied else delivered_at - job.last_poll
            )
            self._reliability.arrived(now=now, within=within)
        elif low >= job.added and not job.first_due:
            # Count a loss only if the job ended while this session was there to receive it.
            self._reliability.missed(job.webhook, low=low, high=high)

    def remove(self, key: K) -> None:
        """Remove a job without learning from it; unknown keys are ignored."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.entry = 0
            self._webhooks -= job.webhook is not None
            for heap in (self._polls, self._first_polls, self._wakes):
                self._compact(heap)

    def wake(self, key: K, *, now: float, delay: float = 0.0) -> None:
        """Poll a job after `delay` seconds, ahead of all others."""
        job = self._jobs.get(key)
        if job is None:
            return
        at = now + max(0.0, delay)
        if job.in_flight:
            job.recheck_at = at if job.recheck_at is None else min(at, job.recheck_at)
        elif not job.is_woken or at < job.earliest:
            self._push(self._wakes, job, at)

    def delivered(self, key: K, *, now: float) -> None:
        """Poll a job at once, because a delivery reports its end.

        If polls have denied an earlier delivery, the next poll waits for the job's spacing, so that
        repeated deliveries cannot use up the budget.
        """
        job = self._jobs.get(key)
        if job is None:
            return
        if job.delivered_at is None:
            job.delivered_at = now
        self.wake(key, now=now, delay=job.last_poll + job.spacing - now if job.denied else 0.0)

    def on_throttled(
        self, *, now: float, retry_after: float | None, held: float | None = None
    ) -> None:
        """Pause all polls after a 429, and lower the estimated budget.

        Args:
            now: Monotonic seconds.
            retry_after: Seconds from the ``Retry-After`` header, or ``None``.
            held: Polls of the last minute from all sessions, or ``None`` for those made here.
        """
        self.budget.on_throttled(now, retry_after, held=held)

    def on_success(self, *, now: float) -> None:
        """Raise the estimated budget after a successful poll, if the budget is the bottleneck."""
        self.budget.on_success(now)
        if self._is_saturated:
            # The ceiling is the line through all plans: 20, 200 and 500 polls for 2, 5 and 10 jobs.
            self.budget.grow(ceiling=20.0 + 60.0 * max(0, len(self._jobs) - 2))

    def _share(self) -> float:
        """Return the share of the budget for ordinary polls; the rest is reserved for wakes."""
        return 0.9 if self._webhooks and self._reliability.loss < 0.5 else 1.0

    def _follow_reliability(self, now: float) -> None:
        """Reschedule jobs that expect a webhook, if the probability of a loss changed much."""
        loss = self._reliability.loss
        if not self._webhooks or 0.5 < loss / self._planned_loss < 2.0:
            return
        self._planned_loss = loss
        for job in self._jobs.values():
            if job.webhook is not None and not job.in_flight and not job.is_woken:
                self._plan(job, now)

    def _chance_of_loss(self, job: _ScheduledJob[K]) -> float:
        """Return the probability that no delivery will report a job's end."""
        if job.webhook is None or job.denied:  # its delivery has arrived, and is sent only once
            return 1.0
        return self._reliability.loss

    def _plan(self, job: _ScheduledJob[K], now: float) -> None:
        """Schedule a job's next poll after the one at `job.last_poll`."""
        if job.first_due:
            self._push(self._first_polls, job, now)
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
        """Rebuild a heap if most entries are stale, so that removed jobs are not kept in memory."""
        if len(heap) > 2 * len(self._jobs) + 64:
            heap[:] = [item for item in heap if item[2].entry == item[1]]
            heapq.heapify(heap)

    def _drop_stale(self, heap: _Heap[K]) -> bool:
        """Drop stale entries from the top; return whether a live one is left."""
        while heap and heap[0][2].entry != heap[0][1]:
            heapq.heappop(heap)
        return bool(heap)

    def _mark_in_flight(self, job: _ScheduledJob[K], now: float) -> K:
        job.entry, job.in_flight, job.is_woken = 0, True, False
        self.budget.record(now)
        return job.key
