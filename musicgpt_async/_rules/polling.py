"""When to look next, for all waiting jobs together (first version)."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs

K = TypeVar("K", bound=Hashable)


class Law:
    """What is known of ln(actual / scale): normal, learned, with forgetting."""

    def __init__(self, mean: float, deviation: float) -> None:
        self._weight = 5.0
        self._sum = 5.0 * mean
        self._squares = 5.0 * (deviation**2 + mean**2)

    def observe(self, ratio: float) -> None:
        x = math.log(max(ratio, 1e-3))
        self._weight = 0.99 * self._weight + 1
        self._sum = 0.99 * self._sum + x
        self._squares = 0.99 * self._squares + x * x

    def parts(self) -> tuple[tuple[float, float, float], ...]:
        mean = self._sum / self._weight
        sd = math.sqrt(max(self._squares / self._weight - mean**2, 0.08**2))
        return ((0.9, mean, sd), (0.1, mean, sd + 1.0))

    def quantile99(self) -> float:
        _, mean, sd = self.parts()[0]
        return math.exp(mean + 2.33 * sd)

    def next_look(self, last: float, worth: float) -> float:
        """The ratio at which the expected undetected time since `last` reaches `worth`."""
        parts = self.parts()
        f0, g0 = _cdf(parts, last)
        low, step = last, 0.02
        high = last + step
        while step < 1e3 and self._undetected(parts, last, f0, g0, high) < worth:
            low, step = high, step * 2
            high = last + step
        for _ in range(12):
            middle = (low + high) / 2
            if self._undetected(parts, last, f0, g0, middle) < worth:
                low = middle
            else:
                high = middle
        return high

    @staticmethod
    def _undetected(parts, last: float, f0: float, g0: float, x: float) -> float:  # type: ignore[no-untyped-def]
        f, g = _cdf(parts, x)
        return (g - g0 - (x - last) * f0) / max(1 - f0, 1e-9)


def _cdf(parts: tuple[tuple[float, float, float], ...], x: float) -> tuple[float, float]:
    """The chance of being finished by x, and its integral from 0 to x."""
    if x <= 0:
        return 0.0, 0.0
    f = g = 0.0
    for weight, mean, sd in parts:
        z = (math.log(x) - mean) / sd
        p = _phi(z)
        f += weight * p
        g += weight * (x * p - math.exp(mean + sd * sd / 2) * _phi(z - sd))
    return f, g


def _phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


@attrs.define(eq=False)
class _Job(Generic[K]):
    key: K
    began: float  # when the vendor accepted it
    scale: float
    law: Law
    learn: bool
    safety: bool
    looked: float
    entry: int = 0
    out: bool = False
    woken: float | None = None
    wake_at: float | None = None


class Schedule(Generic[K]):
    """One schedule of looks for all waiting jobs of a session."""

    def __init__(
        self,
        *,
        polls_per_minute: float | None = None,
        rng: random.Random | None = None,
        tick: float = 0.1,
        price: float = 0.05,
    ) -> None:
        self._given = polls_per_minute
        self._estimate = 20.0 if polls_per_minute is None else polls_per_minute
        self._growth = 1.0
        self._rng = rng or random.Random()
        self._tick = tick
        self._floor_price = price
        self._price = price
        self._jobs: dict[K, _Job[K]] = {}
        self._looks: list[tuple[float, int, _Job[K]]] = []
        self._wakes: list[tuple[float, int, _Job[K]]] = []
        self._numbers = itertools.count(1)
        self._made: deque[float] = deque()
        self._free_at = -math.inf
        self._paused_until = -math.inf
        self._throttles = 0
        self._bound = False
        self._known_eta = Law(0.0, 0.35)
        self._no_eta = Law(math.log(60), 0.8)
        self._no_age = Law(0.0, 1.5)

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, key: object) -> bool:
        return key in self._jobs

    @property
    def polls_per_minute(self) -> float:
        """How many looks a minute the account is believed to allow."""
        return self._estimate

    def add(
        self,
        key: K,
        *,
        now: float,
        eta: float | None,
        age: float | None = 0.0,
        safety: bool = False,
    ) -> None:
        """Begin to look at a job."""
        if eta is not None and eta <= 0:
            eta = None
        law, scale = (self._no_eta, 1.0) if eta is None else (self._known_eta, eta)
        if age is None:
            law, scale = self._no_age, eta or 60.0
        began = now - (age or 0.0)
        job = _Job(key, began, scale, law, age is not None, safety, began)
        self._jobs[key] = job
        self._push(self._looks, job, now if age is None else max(now, self._next(job)))

    def next_due(self) -> float | None:
        """The moment of the next look to make; None while there is none."""
        moments = []
        room = self._room_at(0)
        if self._settle(self._wakes):
            moments.append(max(self._wakes[0][0], room))
        if self._settle(self._looks):
            at = max(self._looks[0][0], self._free_at, self._room_at(self._reserve()))
            moments.append(max(at, math.ceil(at / self._tick) * self._tick))
        return max(min(moments), self._paused_until) if moments else None

    def due(self, now: float) -> list[K]:
        """Take the looks to make now; each key is out until answered."""
        taken: list[K] = []
        if now < self._paused_until:
            return taken
        while self._settle(self._wakes) and self._wakes[0][0] <= now and self._room_at(0) <= now:
            taken.append(self._take(self._wakes, now))
        gap = 61.0 / max(1, self._estimate - self._reserve())
        while (
            self._settle(self._looks)
            and self._looks[0][0] <= now
            and self._free_at <= now
            and self._room_at(self._reserve()) <= now
        ):
            self._free_at = max(self._free_at, now - self._tick) + gap
            job = self._looks[0][2]
            worth = self._worth(job, now)
            self._price += 0.1 * (min(worth, 4 * self._price) - self._price)
            self._price = max(self._price, self._floor_price)
            taken.append(self._take(self._looks, now))
        self._bound = bool(self._settle(self._looks)) and self._looks[0][0] <= now
        return taken

    def pending(self, key: K, *, now: float) -> None:
        """Note that a look brought no end: schedule the next one."""
        job = self._jobs.get(key)
        if job is None or not job.out:
            return
        job.out = False
        if job.wake_at is not None:
            self._push(self._wakes, job, job.wake_at)
            job.wake_at = None
        elif now < self._paused_until:
            self._push(self._looks, job, self._paused_until)
        else:
            job.looked = now
            self._push(self._looks, job, self._next(job))

    def finished(self, key: K, *, now: float) -> None:
        """Forget a job that is terminal, and learn how long it took."""
        job = self._jobs.get(key)
        if job is not None and job.learn:
            ended = job.woken if job.woken is not None else (job.looked + now) / 2
            job.law.observe((ended - job.began) / job.scale)
        self.forget(key)

    def forget(self, key: K) -> None:
        """Let go of a job without learning from it."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.entry = 0

    def wake(self, key: K, *, now: float, delay: float = 0.0) -> None:
        """Look at a job at once (or after `delay`), ahead of all others."""
        job = self._jobs.get(key)
        if job is None:
            return
        job.woken = now if job.woken is None else job.woken
        if job.out:
            job.wake_at = now + delay
        else:
            self._push(self._wakes, job, now + delay)

    def throttled(self, *, now: float, retry_after: float | None) -> None:
        """Pause the whole schedule after a 429, and believe in a smaller budget."""
        if now >= self._paused_until:
            self._estimate = max(1.0, 0.8 * self._estimate)
            self._growth = 0.05
            self._throttles += 1
        pause = min(10.0 * 2 ** (self._throttles - 1), 60.0) if retry_after is None else retry_after
        self._paused_until = max(self._paused_until, now + min(max(pause, 1.0), 120.0))

    def answered(self, *, now: float) -> None:  # noqa: ARG002
        """Believe in a larger budget after a real answer, where one is wanted."""
        self._throttles = 0
        ceiling = 10.0 * len(self._jobs) if self._given is None else self._given
        if self._bound and self._estimate < ceiling:
            self._estimate = min(self._estimate + self._growth, ceiling)

    def _reserve(self) -> int:
        return int(self._estimate // 10) if any_safety(self._jobs) else 0

    def _room_at(self, reserve: int) -> float:
        """The moment from which the last minute has room for one more look."""
        spare = len(self._made) - (math.floor(self._estimate) - reserve)
        return -math.inf if spare < 0 else self._made[spare] + 61.0

    def _worth(self, job: _Job[K], now: float) -> float:
        last, x = (job.looked - job.began) / job.scale, (now - job.began) / job.scale
        parts = job.law.parts()
        f0, g0 = _cdf(parts, last)
        return job.scale * Law._undetected(parts, last, f0, g0, x)

    def _next(self, job: _Job[K]) -> float:
        last = (job.looked - job.began) / job.scale
        if job.safety:
            first = job.began + job.law.quantile99() * job.scale + 30
            return max(first, job.looked + min(max(60.0, 0.5 * (job.looked - job.began)), 300.0))
        ratio = job.law.next_look(last, self._price / job.scale)
        wait = min(max((ratio - last) * job.scale, 0.5), 30.0)
        return job.looked + wait * self._rng.uniform(0.95, 1.05)

    def _push(self, heap: list[tuple[float, int, _Job[K]]], job: _Job[K], at: float) -> None:
        job.entry = next(self._numbers)
        heapq.heappush(heap, (at, job.entry, job))

    def _settle(self, heap: list[tuple[float, int, _Job[K]]]) -> bool:
        """Drop what was let go of from the top; True when something is left."""
        while heap and heap[0][2].entry != heap[0][1]:
            heapq.heappop(heap)
        return bool(heap)

    def _take(self, heap: list[tuple[float, int, _Job[K]]], now: float) -> K:
        job = heapq.heappop(heap)[2]
        job.entry, job.out = 0, True
        self._made.append(now)
        while self._made[0] <= now - 61.0:
            self._made.popleft()
        return job.key


def any_safety(jobs: dict[K, _Job[K]]) -> bool:
    return any(job.safety for job in itertools.islice(jobs.values(), 1))
