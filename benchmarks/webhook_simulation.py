"""Jobs whose ends a webhook tells, unless it is lost: polls and deliveries on a virtual clock.

The vendor posts one delivery for each job, some time after its end; the network or the receiver
loses some of them. byId answers at once, within the plan's budget.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Callable, Sequence

import attrs
from waiting_simulation import Job, Vendor, draw, lognormal

from musicgpt_async._rules.polling import Schedule, _ScheduledJob
from musicgpt_async._rules.receiver_reliability import ReceiverReliability

__all__ = ["SafetyPolls", "Waited", "after", "at_random", "draw", "lognormal", "wait_for"]

IsLost = Callable[[random.Random, int], bool]
"""Whether the n-th job's delivery is lost."""


def at_random(share: float) -> IsLost:
    """Return the network that loses this share of the deliveries."""
    return lambda rng, _: rng.random() < share


def after(jobs: int) -> IsLost:
    """Return the receiver that dies after so many jobs."""
    return lambda _, n: n >= jobs


class SafetyPolls(Schedule[int]):
    """The rule before this one: a webhook is waited for, then asked after at ease."""

    def _plan(self, job: _ScheduledJob[int], now: float) -> None:
        if job.webhook is None or job.denied:
            super()._plan(job, now)
            return
        distribution, scale = self._durations.distribution(job.eta, age_known=job.age_known)
        lost = job.accepted_at + distribution.quantile(0.9) * scale + 30.0
        pause = min(max(60.0, 0.5 * (job.last_poll - job.accepted_at)), 300.0)
        self._push(self._polls, job, max(lost, job.last_poll + pause))


@attrs.frozen
class Waited:
    """What happened to one lot of jobs, in order of acceptance."""

    delays: list[float]
    polls: list[int]
    silence_reported_at: int | None  # jobs that had ended when the receiver was found silent

    @property
    def mean(self) -> float:
        """Mean seconds from a job's end to the poll that saw it."""
        return statistics.fmean(self.delays)

    @property
    def polls_per_job(self) -> float:
        """Polls made for each job."""
        return statistics.fmean(self.polls)

    def quantile(self, share: float) -> float:
        """The delay that this share of the jobs stays below."""
        return sorted(self.delays)[min(int(share * len(self.delays)), len(self.delays) - 1)]

    def since(self, job: int) -> Waited:
        """Return what happened from a job on."""
        return Waited(self.delays[job:], self.polls[job:], self.silence_reported_at)


def wait_for(
    jobs: Sequence[Job],
    *,
    at_once: int,
    polls_per_minute: float,
    is_lost: IsLost | None,
    late: float = 0.3,
    rule: type[Schedule[int]] | None = None,
) -> Waited:
    """Run jobs through a schedule.

    Args:
        jobs: In order of submission.
        at_once: Unfinished jobs, as far as the client knows.
        polls_per_minute: What the vendor allows, and the client knows.
        is_lost: Which deliveries do not arrive; None where no webhooks are asked for.
        late: Mean seconds from a job's end to its delivery.
        rule: Another schedule than the package's own.
    """
    return _Account(jobs, polls_per_minute, is_lost, late, rule or Schedule).run(at_once)


class _Account:
    """Jobs on their way through a schedule and a vendor that posts webhooks."""

    def __init__(
        self,
        jobs: Sequence[Job],
        polls_per_minute: float,
        is_lost: IsLost | None,
        late: float,
        rule: type[Schedule[int]],
    ) -> None:
        self._is_lost, self._late, self._rng = is_lost, late, random.Random(11)
        self._reliability = ReceiverReliability()
        self._schedule = rule(
            polls_per_minute=polls_per_minute, rng=random.Random(5), reliability=self._reliability
        )
        self._vendor = Vendor(polls_per_minute)
        self._coming = enumerate(jobs)
        self._ends: dict[int, float] = {}
        self._deliveries: list[tuple[float, int]] = []
        self._delays, self._polls = [0.0] * len(jobs), [0] * len(jobs)
        self._seen = 0
        self._reported: int | None = None

    def run(self, at_once: int) -> Waited:
        """Run until every job is seen done."""
        for _ in range(at_once):
            self._begin(0.0)
        now = 0.0
        while self._ends:
            moments = [self._schedule.next_due(), *(at for at, _ in self._deliveries[:1])]
            now = max(now, min(at for at in moments if at is not None))
            while self._deliveries and self._deliveries[0][0] <= now:
                key = heapq.heappop(self._deliveries)[1]
                self._schedule.delivered(key, now=now)
                self._reliability.arrived_late(key, now=now)
            for key in self._schedule.take_due(now):
                self._poll(key, now)
        return Waited(self._delays, self._polls, self._reported)

    def _begin(self, now: float) -> None:
        for key, job in itertools.islice(self._coming, 1):
            end = self._ends[key] = now + job.actual
            webhook = None if self._is_lost is None else key
            self._schedule.add(key, now=now, eta=job.eta, webhook=webhook)
            if self._is_lost is not None and not self._is_lost(self._rng, key):
                late = self._rng.expovariate(1.0 / self._late)
                heapq.heappush(self._deliveries, (end + late, key))

    def _poll(self, key: int, now: float) -> None:
        self._polls[key] += 1
        if not self._vendor.answers(now):
            self._schedule.on_throttled(now=now, retry_after=None)
        else:
            self._schedule.on_success(now=now)
            if self._ends[key] <= now:
                self._end(key, now)
        self._schedule.on_unfinished(key, now=now)

    def _end(self, key: int, now: float) -> None:
        self._delays[key] = now - self._ends.pop(key)
        self._seen += 1
        self._schedule.on_finished(key, now=now)
        if self._reliability.has_fallen_silent(now=now) and self._reported is None:
            self._reported = self._seen
        self._begin(now)
