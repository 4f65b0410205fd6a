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

- **The law of durations** (`Law`, `Durations`): the distribution of actual time over eta, kept as a
  table. Each finished job adds a kernel at the place where the law itself expects the end within
  the job's last interval (the middle would drag every job seen done at its first look far down).
  Old jobs are forgotten by and by. Beside it stands a law of the time alone, and whichever foretold
  the recent jobs better is believed, since an eta may say nothing. Jobs without an eta have their
  own. A floor on the hazard sees to it that early failures are seen.
- **The price**: what the last looks were worth. Under a tight budget jobs wait past their moment,
  the looks made are worth more, the price rises and spreads all intervals; an idle budget lowers
  it again, down to `price`. So the calls go where the expected undetected time is largest, at
  O(log n) a look, without scanning the jobs.
- **The budget** (`Budget`): looks are paced evenly, a wake may burst, and no window of a minute
  ever holds more looks than the budget. A 429 pauses all looks and lowers the estimate.

No clock is read here: every `now` is monotonic seconds, handed in.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeAlias, TypeVar

import attrs

K = TypeVar("K", bound=Hashable)

FREE_POLLS_PER_MINUTE = 20.0
"""What every plan allows at least (MusicGPT docs, rate limits)."""

_TYPICAL = 60.0  # seconds; the scale of a job whose eta is unknown
_SHORT_JOB = 10.0  # seconds; the undetected time of a shorter one matters the more
_SHORTEST = 0.02  # seconds between two looks at one job, and the least that one is worth
_HAZARD_FLOOR = 5e-5  # ends a second, expected of any job at any age
_NEVER = math.inf

_LOW, _STEP, _KNOTS = -4.0, 0.04, 181  # the table's grid over ln(actual / scale)
_RATIOS = [math.exp(_LOW + _STEP * k) for k in range(_KNOTS)]
_HALF_WIDTHS = [0.5 * (right - left) for left, right in itertools.pairwise(_RATIOS)]


def _normal(z: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _normal_table(mean: float, deviation: float) -> list[float]:
    """The normal distribution function on the grid, 0 and 1 beyond six deviations."""
    first, last = (
        min(max(math.ceil((mean + side * deviation - _LOW) / _STEP), 0), _KNOTS)
        for side in (-6.0, 6.0)
    )
    middle = [_normal((_LOW + _STEP * k - mean) / deviation) for k in range(first, last)]
    return [0.0] * first + middle + [1.0] * (_KNOTS - last)


_ANYTHING = _normal_table(0.0, 1.2)


class Law:
    """The learned distribution of a ratio, actual time over a scale.

    `mean` and `deviation` describe ln(ratio) before anything was seen. They are held to be right
    for a share `sure` of the jobs, and `deviation` to be three times too narrow for the rest.
    """

    _FORGET = 0.99
    _PRIOR = 5.0  # finished jobs that the prior weighs as much as
    _DOUBT = 0.002  # the share of jobs about which nothing is foretold

    def __init__(self, mean: float, deviation: float, *, sure: float = 0.7) -> None:
        self._weight = self._PRIOR
        tables = _normal_table(mean, deviation), _normal_table(mean, 3.0 * deviation)
        self._below = [
            self._PRIOR * (sure * narrow + (1.0 - sure) * wide)
            for narrow, wide in zip(*tables, strict=True)
        ]
        self._tabulate()

    def observe(self, low: float, high: float) -> None:
        """Learn that a job ended at a ratio between `low` and `high`."""
        mean, variance = self._expected_end(low, high)
        quartiles = math.log(self.quantile(0.75) / self.quantile(0.25))
        width = min(max(0.35 * quartiles * self._weight**-0.2, 0.03), 0.35)
        deviation = math.sqrt(width * width + variance)
        self._weight = self._FORGET * self._weight + 1.0
        kernel = _normal_table(mean, deviation)
        self._below = [self._FORGET * b + k for b, k in zip(self._below, kernel, strict=True)]
        self._tabulate()

    def chance(self, low: float, high: float) -> float:
        """How likely an end between `low` and `high` was held to be."""
        return self._at(high)[0] - self._at(low)[0]

    def quantile(self, share: float) -> float:
        """The ratio by which this share of the jobs has ended."""
        return _RATIOS[min(bisect_left(self._ended, share), _KNOTS - 1)]

    def undetected(self, last: float, ratio: float) -> float:
        """The expected time since the end, at `ratio`, of a job not ended at `last`."""
        ended, area = self._at(last)
        return (self._at(ratio)[1] - area - (ratio - last) * ended) / (1.0 - ended)

    def next_look(self, last: float, worth: float, floor: float) -> float:
        """The ratio at which the undetected time since `last` reaches `worth`.

        `floor` is the least hazard, in ends per unit of the ratio.
        """
        ended, area = self._at(last)
        alive = 1.0 - ended

        def expected(ratio: float, area_there: float) -> float:
            wait = ratio - last
            return (area_there - area - wait * ended) / alive + 0.5 * floor * wait * wait

        first = bisect_right(_RATIOS, last)
        k = bisect_left(
            range(_KNOTS), worth, lo=first, key=lambda k: expected(_RATIOS[k], self._area[k])
        )
        if k == _KNOTS:
            # Far past its time: nothing is known but that old jobs end ever more seldom.
            begin = max(last, _RATIOS[-1])
            return begin + math.sqrt(2.0 * worth / max(floor, 0.25 / begin))
        left, before = last, 0.0
        if k > first:
            left = _RATIOS[k - 1]
            before = expected(left, self._area[k - 1])
        part = (worth - before) / (expected(_RATIOS[k], self._area[k]) - before)
        return left + (_RATIOS[k] - left) * (math.sqrt(part) if k == first else part)

    def _expected_end(self, low: float, high: float) -> tuple[float, float]:
        """Mean and variance of ln(ratio), given an end between `low` and `high`."""
        a = math.log(min(max(low, _RATIOS[0]), _RATIOS[-1]))
        b = math.log(min(max(high, _RATIOS[0]), _RATIOS[-1]))
        inner = range(math.floor((a - _LOW) / _STEP) + 1, math.ceil((b - _LOW) / _STEP))
        edges = [a, *(_LOW + _STEP * k for k in inner), b]
        ended = [self._at(math.exp(edge))[0] for edge in edges]
        total = ended[-1] - ended[0]
        if total <= 0.0:
            return (a + b) / 2.0, (b - a) ** 2 / 12.0
        cells = [
            ((q - p) / total, (left + right) / 2.0)
            for (p, q), (left, right) in zip(
                itertools.pairwise(ended), itertools.pairwise(edges), strict=True
            )
        ]
        mean = sum(share * middle for share, middle in cells)
        return mean, sum(share * (middle - mean) ** 2 for share, middle in cells)

    def _tabulate(self) -> None:
        """Tabulate the distribution function and its integral from 0."""
        sure = (1.0 - self._DOUBT) / self._weight
        doubt = self._DOUBT
        self._ended = [sure * b + doubt * w for b, w in zip(self._below, _ANYTHING, strict=True)]
        cells = (
            width * (a + b)
            for width, (a, b) in zip(_HALF_WIDTHS, itertools.pairwise(self._ended), strict=True)
        )
        self._area = list(itertools.accumulate(cells, initial=0.5 * _RATIOS[0] * self._ended[0]))

    def _at(self, ratio: float) -> tuple[float, float]:
        """The distribution function at a ratio, and its integral from 0."""
        if ratio <= _RATIOS[0]:
            share = ratio / _RATIOS[0]
            return self._ended[0] * share, self._area[0] * share * share
        if ratio >= _RATIOS[-1]:
            return self._ended[-1], self._area[-1] + (ratio - _RATIOS[-1]) * self._ended[-1]
        k = min(int((math.log(ratio) - _LOW) / _STEP), _KNOTS - 2)
        wait = ratio - _RATIOS[k]
        share = wait / (_RATIOS[k + 1] - _RATIOS[k])
        ended = self._ended[k] + share * (self._ended[k + 1] - self._ended[k])
        return ended, self._area[k] + 0.5 * wait * (self._ended[k] + ended)


class Durations:
    """How long jobs take: over their eta, or whatever their eta is."""

    def __init__(self) -> None:
        self._over_eta = Law(0.0, 0.35)
        self._alone = Law(0.0, 0.8)
        self._without_eta = Law(0.0, 0.8)
        self._of_no_age = Law(0.0, 1.5)
        self._belief = 2.0

    def law(self, eta: float | None, *, age_known: bool) -> tuple[Law, float]:
        """The law to believe for a job, and the scale of its ratio in seconds."""
        if not age_known:
            return self._of_no_age, eta or _TYPICAL
        if eta is None:
            return self._without_eta, _TYPICAL
        return (self._over_eta, eta) if self._belief >= 0.0 else (self._alone, _TYPICAL)

    def observe(self, eta: float | None, low: float, high: float) -> None:
        """Learn that a job ended between `low` and `high` seconds after it was accepted."""
        if eta is None:
            self._without_eta.observe(low / _TYPICAL, high / _TYPICAL)
            return
        over = self._over_eta, low / eta, high / eta
        alone = self._alone, low / _TYPICAL, high / _TYPICAL
        gains = [math.log(max(law.chance(a, b * 1.001), 1e-3)) for law, a, b in (over, alone)]
        self._belief = min(max(0.98 * self._belief + gains[0] - gains[1], -20.0), 20.0)
        for law, a, b in (over, alone):
            law.observe(a, b)


class Budget:
    """Looks a minute: paced, never exceeded in any window, learned where nobody said."""

    _WINDOW = 61.0  # a minute, and a second that the network may shift a look by

    def __init__(self, polls_per_minute: float | None, tick: float) -> None:
        if polls_per_minute is not None and not polls_per_minute >= 1.0:
            raise ValueError(f"polls_per_minute must be at least 1, not {polls_per_minute}")
        self._given = polls_per_minute
        self.estimate = polls_per_minute or FREE_POLLS_PER_MINUTE
        self._tick = tick
        self._growth = 2.0  # by every answer, until the first 429
        self._made: deque[float] = deque()
        self._paced_at = -_NEVER
        self._paused_until = -_NEVER
        self._throttles = 0

    def room_at(self, *, share: float = 1.0) -> float:
        """The moment from which one more look fits into this share of a minute's."""
        at_most = max(1.0, share * self.estimate)
        if len(self._made) + 1 <= at_most:
            return self._paused_until
        return max(self._made[-int(at_most)] + self._WINDOW, self._paused_until)

    def paced_at(self, *, share: float) -> float:
        """The moment from which the next ordinary look fits in."""
        return max(self._paced_at, self.room_at(share=share))

    def spend(self, now: float) -> None:
        """Count a look."""
        self._made.append(now)
        while self._made[0] <= now - self._WINDOW:
            self._made.popleft()

    def pace(self, now: float, *, share: float) -> None:
        """Keep the next ordinary look at its distance; what a tick cost is caught up."""
        self._paced_at = max(self._paced_at, now - self._tick) + self.gap(share=share)

    def gap(self, *, share: float = 1.0) -> float:
        """Seconds between two looks at an even pace."""
        return self._WINDOW / max(1.0, share * self.estimate)

    @property
    def paused_until(self) -> float:
        """The end of the pause that the last 429 enforced."""
        return self._paused_until

    def throttled(self, now: float, retry_after: float | None) -> None:
        """Pause, and lower the estimate: what the last minute held was too much."""
        if now >= self._paused_until:
            held = sum(1 for at in self._made if at > now - 60.0)
            self.estimate = max(1.0, 0.3 * self.estimate, min(0.9 * self.estimate, 0.95 * held))
            self._growth = 0.02 if self._given is None else 0.1
            self._throttles += 1
        pause = 10.0 * 2.0 ** (min(self._throttles, 4) - 1) if retry_after is None else retry_after
        self._paused_until = max(self._paused_until, now + min(max(pause, 1.0), 60.0))

    def answered(self, now: float) -> None:
        """Note a real answer: the next pause begins short again."""
        if now >= self._paused_until:
            self._throttles = 0

    def grow(self, wanted: float) -> None:
        """Raise the estimate, up to what is given or else `wanted`."""
        ceiling = wanted if self._given is None else self._given
        if self.estimate < ceiling:
            self.estimate = min(self.estimate + self._growth, ceiling)


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
