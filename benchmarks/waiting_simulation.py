"""A virtual vendor and the clients that wait for it, to measure policies of polling.

The vendor answers at once, refuses a poll (429) when the sixty seconds before it hold a budget's
worth of answered polls, and refuses a submit when the account is full. A naive client goes on at
its own interval after a refusal. Everything is drawn from fixed seeds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from musicgpt_async._rules.durations import DurationDistribution, DurationModel
from musicgpt_async._rules.polling import Schedule
from musicgpt_async._rules.slots import Slots

Family = Callable[[random.Random, float, int], float]
"""Draws the actual seconds of the n-th job, given its eta."""

SIGMAS = (0.15, 0.3, 0.6)
PRICES = (0.1, 0.2, 0.4, 0.8, 1.6)
NEVER = math.inf


def lognormal(sigma: float) -> Family:
    """Actual over eta is lognormal around 1, as the rule's prior has it."""
    return lambda rng, eta, _: eta * rng.lognormvariate(0.0, sigma)


STEM_GROUPS: dict[str, Family] = {
    "eta half of the truth": lambda rng, eta, _: 2.0 * eta * rng.lognormvariate(0.0, 0.2),
    "eta twice the truth": lambda rng, eta, _: 0.5 * eta * rng.lognormvariate(0.0, 0.2),
    "5 % fail early": lambda rng, eta, _: (
        eta * (rng.uniform(0.0, 0.5) if rng.random() < 0.05 else rng.lognormvariate(0.0, 0.2))
    ),
    "10 % take three times": lambda rng, eta, _: (
        eta * rng.lognormvariate(0.0, 0.2) * (3.0 if rng.random() < 0.1 else 1.0)
    ),
    "two modes": lambda rng, eta, _: (
        eta * (0.6 if rng.random() < 0.5 else 1.3) * rng.lognormvariate(0.0, 0.1)
    ),
    "heavy tail": lambda rng, eta, _: 0.7 * eta * rng.paretovariate(2.5),
    "drift": lambda rng, eta, n: (
        eta * math.exp(0.7 * math.sin(math.tau * n / 400.0)) * rng.lognormvariate(0.0, 0.2)
    ),
    "eta says nothing": lambda rng, _, __: rng.lognormvariate(math.log(60.0), 0.8),
    "eta says nothing, flat": lambda rng, _, __: rng.uniform(1.0, 200.0),
}


@attrs.frozen
class Job:
    """What the vendor knows: the eta it told (None: unknown) and the time it will take."""

    eta: float | None
    actual: float


def draw(family: Family, count: int, *, seed: int, told: bool = True) -> list[Job]:
    """Draw jobs with etas from 10 to 200 s; not `told`: the client never learns the eta."""
    rng = random.Random(seed)
    jobs = []
    for n in range(count):
        eta = rng.uniform(10.0, 200.0)
        jobs.append(Job(eta if told else None, family(rng, eta, n)))
    return jobs


class Vendor:
    """The vendor's side of the budget: at most so many answered polls in any sixty seconds."""

    def __init__(self, polls_per_minute: float) -> None:
        self._budget = polls_per_minute
        self._answered: deque[float] = deque()
        self.refused = 0

    def answers(self, now: float) -> bool:
        """Whether a poll made now is answered; else it is a 429."""
        while self._answered and self._answered[0] <= now - 60.0:
            self._answered.popleft()
        if len(self._answered) >= self._budget:
            self.refused += 1
            return False
        if self._budget < NEVER:
            self._answered.append(now)
        return True


class Policy(Protocol):
    """A way to choose moments for polls."""

    def add(self, key: int, now: float, eta: float | None) -> None:
        """Begin to poll at a job that was accepted now."""

    def next(self) -> float:
        """The moment of the next poll."""

    def take(self, now: float) -> list[int]:
        """The polls to make now."""

    def answer(self, key: int, now: float, *, answered: bool, ended: bool) -> None:
        """Take the answer to a poll."""


class Learned:
    """The package's own schedule."""

    def __init__(self, schedule: Schedule[int]) -> None:
        self.schedule = schedule

    def add(self, key: int, now: float, eta: float | None) -> None:
        """Begin to poll at a job."""
        self.schedule.add(key, now=now, eta=eta)

    def next(self) -> float:
        """The moment of the next poll."""
        at = self.schedule.next_due()
        return NEVER if at is None else at

    def take(self, now: float) -> list[int]:
        """The polls to make now."""
        return self.schedule.take_due(now)

    def answer(self, key: int, now: float, *, answered: bool, ended: bool) -> None:
        """Take the answer to a poll."""
        if answered:
            self.schedule.on_success(now=now)
        else:
            self.schedule.on_throttled(now=now, retry_after=None)
        if ended:
            self.schedule.on_finished(key, now=now)
        else:
            self.schedule.on_unfinished(key, now=now)


class Timers:
    """Each job on a timer of its own, whatever the answers: what most clients do."""

    def __init__(self, wait: Callable[[int], float]) -> None:
        self._wait = wait
        self._due: list[tuple[float, int]] = []
        self._polls: dict[int, int] = {}

    def add(self, key: int, now: float, eta: float | None) -> None:  # noqa: ARG002 - Policy's face
        """Begin to poll at a job."""
        self._polls[key] = 0
        heapq.heappush(self._due, (now + self._wait(0), key))

    def next(self) -> float:
        """The moment of the next poll."""
        return self._due[0][0] if self._due else NEVER

    def take(self, now: float) -> list[int]:
        """The polls to make now."""
        taken = []
        while self._due and self._due[0][0] <= now:
            taken.append(heapq.heappop(self._due)[1])
        return taken

    def answer(self, key: int, now: float, *, answered: bool, ended: bool) -> None:  # noqa: ARG002
        """Take the answer to a poll."""
        self._polls[key] += 1
        if not ended:
            heapq.heappush(self._due, (now + self._wait(self._polls[key]), key))


class Turns:
    """The jobs in turn, at exactly the pace of a known budget: a fixed interval made fair."""

    def __init__(self, polls_per_minute: float) -> None:
        self._gap = 60.001 / polls_per_minute
        self._line: deque[int] = deque()
        self._at = 0.0

    def add(self, key: int, now: float, eta: float | None) -> None:  # noqa: ARG002 - Policy's face
        """Begin to poll at a job."""
        self._line.append(key)

    def next(self) -> float:
        """The moment of the next poll."""
        return self._at if self._line else NEVER

    def take(self, now: float) -> list[int]:
        """The polls to make now."""
        self._at = now + self._gap
        return [self._line.popleft()]

    def answer(self, key: int, now: float, *, answered: bool, ended: bool) -> None:  # noqa: ARG002
        """Take the answer to a poll."""
        if not ended:
            self._line.append(key)


def every(seconds: float) -> Callable[[int], float]:
    """A fixed interval."""
    return lambda _: seconds


def exponential(poll: int) -> float:
    """1 s at first, half as much again each time, 20 s at most."""
    return min(1.5 ** min(poll, 8), 20.0)


CLIENTS: dict[str, Callable[[int], float]] = {
    "every 3 s (the vendor's SDK)": every(3.0),
    "every 0.1 s (fal)": every(0.1),
    "every 0.5 s (replicate)": every(0.5),
    "every 30 s (Azure)": every(30.0),
    "1 to 20 s (Google)": exponential,
}


@attrs.frozen
class Result:
    """What one policy did with one lot of jobs."""

    delays: list[float]  # in order of finishing
    polls: int
    refused: int
    worst_minute: int

    @property
    def mean(self) -> float:
        """Mean seconds from a job's end to the poll that saw it."""
        return statistics.fmean(self.delays)

    @property
    def polls_per_job(self) -> float:
        """Polls made, refused ones too, for each job."""
        return self.polls / len(self.delays)

    def quantile(self, share: float) -> float:
        """The delay that this share of the jobs stays below."""
        return sorted(self.delays)[min(int(share * len(self.delays)), len(self.delays) - 1)]


def simulate(
    policy: Policy, jobs: Sequence[Job], *, at_once: int, polls_per_minute: float = NEVER
) -> Result:
    """Run jobs through a policy, `at_once` unfinished as the policy knows at any time."""
    vendor = Vendor(polls_per_minute)
    ends: dict[int, float] = {}
    delays: list[float] = []
    made: list[float] = []
    coming = enumerate(jobs)

    def begin(now: float) -> None:
        for key, job in itertools.islice(coming, 1):
            ends[key] = now + job.actual
            policy.add(key, now, job.eta)

    for _ in range(at_once):
        begin(0.0)
    now = 0.0
    while ends:
        now = max(now, policy.next())
        for key in policy.take(now):
            made.append(now)
            answered = vendor.answers(now)
            ended = answered and ends[key] <= now
            policy.answer(key, now, answered=answered, ended=ended)
            if ended:
                delays.append(now - ends.pop(key))
                begin(now)
    return Result(delays, len(made), vendor.refused, worst_minute(made))


def worst_minute(moments: Sequence[float]) -> int:
    """The most polls in any sixty seconds."""
    window: deque[float] = deque()
    worst = 0
    for at in moments:
        window.append(at)
        while window[0] <= at - 60.0:
            window.popleft()
        worst = max(worst, len(window))
    return worst


class KnownLaw(DurationModel):
    """An oracle for lognormal jobs: it knows the law, and has nothing to learn."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self._known = DurationDistribution(0.0, sigma, confidence=1.0)

    def distribution(
        self, eta: float | None, *, age_known: bool
    ) -> tuple[DurationDistribution, float]:
        """The law itself, where there is an eta."""
        return super().distribution(eta, age_known=age_known) if eta is None else (self._known, eta)

    def observe(self, eta: float | None, low: float, high: float) -> None:
        """Learn of jobs without an eta alone."""
        if eta is None:
            super().observe(eta, low, high)


def unpaced(price: float, durations: DurationModel | None = None) -> Learned:
    """The package's schedule with no budget, each poll worth `price` seconds."""
    rng = random.Random(7)
    return Learned(
        Schedule(polls_per_minute=NEVER, rng=rng, tick=0.01, price=price, durations=durations)
    )


def at_equal_polls(
    durations: Sequence[float], polls_per_job: float, wait: Callable[[int], float]
) -> float:
    """Mean delay of a policy on timers, stretched until it makes this many polls a job."""
    moments = list(itertools.accumulate(wait(poll) for poll in range(6000)))

    def stretched(factor: float) -> tuple[float, float]:
        polls = delay = 0.0
        for actual in durations:
            index = bisect_left(moments, actual / factor)
            polls += index + 1
            delay += moments[index] * factor - actual
        return polls / len(durations), delay / len(durations)

    low, high = 1.001 * max(durations) / moments[-1], 1000.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stretched(middle)[0] > polls_per_job else (low, middle)
    return stretched(high)[1]


def optimum_for(sigma: float, price: float, knots: int = 500) -> tuple[float, float]:
    """The least expected price of polls and delay for eta 1, as (polls, delay).

    Solved backwards over a fine grid of moments: what no rule can beat that knows the law.
    """
    steps = [(8.5 * k / knots - 4.0) * sigma for k in range(knots + 1)]
    at = [0.0, *(math.exp(step) for step in steps)]
    ended = [0.0, *(0.5 * math.erfc(-step / sigma / math.sqrt(2.0)) for step in steps)]
    area = [0.0]
    for k in range(1, len(at)):
        area.append(area[-1] + 0.5 * (at[k] - at[k - 1]) * (ended[k] + ended[k - 1]))
    last = len(at) - 1
    best = [(0.0, 0.0, 0.0)] * (last + 1)  # cost, polls, delay from a poll at this moment on
    reach = last
    for k in range(last - 1, -1, -1):
        found = (NEVER, 0.0, 0.0)
        chosen = reach
        for n in range(k + 1, reach + 1):
            delay = area[n] - area[k] - (at[n] - at[k]) * ended[k] + best[n][2]
            polls = 1.0 - ended[k] + best[n][1]
            if price * polls + delay < found[0]:
                found, chosen = (price * polls + delay, polls, delay), n
        best[k], reach = found, chosen
    return best[0][1], best[0][2]


@attrs.frozen
class Curve:
    """Mean delay over polls a job."""

    points: list[tuple[float, float]]

    def delay_at(self, polls: float) -> float:
        """The mean delay at this many polls a job, between the points on logarithmic scales."""
        points = sorted(self.points)
        k = min(max(bisect_left(points, (polls, 0.0)), 1), len(points) - 1)
        (x0, y0), (x1, y1) = points[k - 1], points[k]
        part = math.log(polls / x0) / math.log(x1 / x0)
        return y0 * math.exp(part * math.log(y1 / y0))


def optimum(sigma: float, *, etas: int = 19) -> Curve:
    """The best trade-off for etas from 10 to 200 s."""
    spread = [10.0 + 190.0 * (k + 0.5) / etas for k in range(etas)]
    ratios = [0.0002 * 1.7**k for k in range(14)]
    solved = [optimum_for(sigma, ratio) for ratio in ratios]
    polls_of = Curve([(r, polls) for r, (polls, _) in zip(ratios, solved, strict=True)])
    delay_of = Curve([(r, delay) for r, (_, delay) in zip(ratios, solved, strict=True)])
    points = []
    for price in (0.05, *PRICES, 3.2):
        polls = statistics.fmean(polls_of.delay_at(price / eta) for eta in spread)
        delay = statistics.fmean(eta * delay_of.delay_at(price / eta) for eta in spread)
        points.append((polls, delay))
    return Curve(points)


@attrs.frozen
class Trade:
    """The learned schedule against others at equal polls a job, no budget in the way."""

    price: float
    result: Result
    fixed: float  # mean delay of each at as many polls
    exponential: float
    late_mean: float  # of the jobs after the first 200
    late_polls: float

    @classmethod
    def of(cls, family: Family, price: float, count: int, *, seed: int = 1) -> Trade:
        """Run jobs one after another, so that each learns from all before it."""
        jobs = draw(family, count, seed=seed)
        policy = unpaced(price)
        early = simulate(policy, jobs[:200], at_once=1)
        policy = unpaced(price)
        whole = simulate(policy, jobs, at_once=1)
        durations = [job.actual for job in jobs]
        return cls(
            price,
            whole,
            at_equal_polls(durations, whole.polls_per_job, every(1.0)),
            at_equal_polls(durations, whole.polls_per_job, exponential),
            statistics.fmean(whole.delays[200:]),
            (whole.polls - early.polls) / (count - 200),
        )


def over_own_polls(
    trades: Sequence[Trade], jobs: Sequence[Job], wait: Callable[[int], float]
) -> float:
    """The schedule's mean delay over that of timers, at the polls that those make."""
    other = simulate(Timers(wait), jobs, at_once=1)
    ours = Curve([(trade.result.polls_per_job, trade.result.mean) for trade in trades])
    return ours.delay_at(other.polls_per_job) / other.mean


@attrs.frozen
class Account:
    """A whole batch on an account of which nothing was said."""

    submits_refused: int
    polls_refused: int
    busy: float
    limit: int


class Batch:
    """Tracks on an account of which nothing was said, through the package's slots and schedule."""

    def __init__(self, *, parallel: int, polls_per_minute: float, tracks: int) -> None:
        self._rng = random.Random(1)
        self._jobs = draw(lognormal(0.2), tracks, seed=1)
        self._parallel = parallel
        self._vendor = Vendor(polls_per_minute)
        self._schedule: Schedule[int] = Schedule(rng=self._rng)
        self._slots = Slots()
        self._line = deque(range(tracks))
        self._uploads: list[tuple[float, int]] = []
        self._ends: dict[int, float] = {}
        self._refused = 0

    def run(self) -> Account:
        """Run until every track is seen done."""
        now = 0.0
        while self._line or self._uploads or self._ends:
            while self._line and self._slots.try_acquire(now=now):
                arrives = now + self._rng.uniform(1.0, 4.0)
                heapq.heappush(self._uploads, (arrives, self._line.popleft()))
            now = max(now, self._next())
            while self._uploads and self._uploads[0][0] <= now:
                self._submit(heapq.heappop(self._uploads)[1], now)
            for key in self._schedule.take_due(now):
                self._poll(key, now)
        busy = sum(job.actual for job in self._jobs) / (now * self._parallel)
        return Account(self._refused, self._vendor.refused, busy, self._slots.limit)

    def _next(self) -> float:
        moments = [self._schedule.next_due(), self._slots.retry_at() if self._line else None]
        moments += [arrives for arrives, _ in self._uploads[:1]]
        return min(at for at in moments if at is not None)

    def _submit(self, key: int, now: float) -> None:
        if sum(end > now for end in self._ends.values()) >= self._parallel:
            self._refused += 1
            self._slots.on_rejected(now=now, retry_after=None)
            self._slots.release()
            self._line.appendleft(key)
            return
        self._slots.on_accepted(has_queue=bool(self._line))
        self._ends[key] = now + self._jobs[key].actual
        self._schedule.add(key, now=now, eta=self._jobs[key].eta)

    def _poll(self, key: int, now: float) -> None:
        if not self._vendor.answers(now):
            self._schedule.on_throttled(now=now, retry_after=None)
        else:
            self._schedule.on_success(now=now)
            if self._ends[key] <= now:
                self._schedule.on_finished(key, now=now)
                self._slots.release()
                del self._ends[key]
        self._schedule.on_unfinished(key, now=now)
