"""The schedule under any order of calls."""

from __future__ import annotations

import math
import random

from factories.schedules import worst_minute
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from musicgpt_async._rules.polling import Schedule
from musicgpt_async._rules.receiver_reliability import ReceiverReliability

KEYS = st.integers(0, 11)


class Waiting(RuleBasedStateMachine):
    """Calls in any order, an advancing clock, and arbitrary responses."""

    @initialize(budget=st.none() | st.sampled_from([1.0, 5.0, 20.0, 500.0]))
    def begin(self, budget: float | None) -> None:
        """Open an account."""
        self.budget, self.now = budget, 1000.0
        self.reliability = ReceiverReliability()
        self.schedule: Schedule[int] = Schedule(
            polls_per_minute=budget, rng=random.Random(1), reliability=self.reliability
        )
        self.waiting: set[int] = set()
        self.out: set[int] = set()
        self.made: list[float] = []
        self.paused_until = 0.0

    @rule(
        key=KEYS,
        eta=st.none() | st.sampled_from([-1.0, 0.0, 1.0, 11.0, 147.0, 1e9]),
        age=st.none() | st.sampled_from([0.0, 60.0, 1e6, math.nan, math.inf]),
        webhook=st.none() | st.just("token"),
    )
    def add(self, key: int, eta: float | None, age: float | None, webhook: str | None) -> None:
        """A job begins, perhaps under a key that is known."""
        self.schedule.add(key, now=self.now, eta=eta, age=age, webhook=webhook)
        self.waiting.add(key)
        self.out.discard(key)

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @rule()
    def wait_for_the_next_look(self) -> None:
        """Advance the clock as a caller does, until there is a poll to send."""
        at = self.schedule.next_due()
        if at is not None and at < self.now + 1e6:
            self.now = max(self.now, at)
            assert self.polls()

    @rule()
    def poll(self) -> None:
        """Send the polls that are due, if any."""
        self.polls()

    def polls(self) -> list[int]:
        """Send the polls that are due."""
        keys = self.schedule.take_due(self.now)
        assert len(set(keys)) == len(keys)
        assert set(keys) <= self.waiting - self.out
        assert not keys or self.now >= self.paused_until
        self.out |= set(keys)
        self.made += [self.now] * len(keys)
        return keys

    @rule(key=KEYS)
    def pending(self, key: int) -> None:
        """Report that a poll, perhaps one that was never sent, found the job unfinished."""
        self.schedule.on_unfinished(key, now=self.now)
        self.out.discard(key)

    @rule(key=KEYS)
    def finished(self, key: int) -> None:
        """A job, perhaps one unknown, has ended."""
        self.schedule.on_finished(key, now=self.now)
        self.waiting.discard(key)
        self.out.discard(key)

    @rule(key=KEYS)
    def forget(self, key: int) -> None:
        """Remove a job, perhaps an unknown one."""
        self.schedule.remove(key)
        self.waiting.discard(key)
        self.out.discard(key)

    @rule(key=KEYS, delay=st.sampled_from([0.0, 0.5, 30.0, math.nan]))
    def wake(self, key: int, delay: float) -> None:
        """A delivery comes, perhaps for a job unknown."""
        self.schedule.wake(key, now=self.now, delay=delay)

    @rule(key=KEYS)
    def delivered(self, key: int) -> None:
        """A delivery comes, perhaps not the first, perhaps for a job unknown."""
        self.schedule.delivered(key, now=self.now)
        self.reliability.arrived_late("token", now=self.now)

    @rule(told=st.none() | st.floats(allow_nan=True, allow_infinity=True))
    def throttled(self, told: float | None) -> None:
        """Report a refused poll."""
        self.schedule.on_throttled(now=self.now, retry_after=told)
        self.paused_until = max(self.paused_until, self.now + 1.0)

    @rule()
    def answered(self) -> None:
        """Report a successful poll."""
        self.schedule.on_success(now=self.now)

    @invariant()
    def the_books_agree(self) -> None:
        """It knows its jobs, and has a moment for each that is not out."""
        if hasattr(self, "schedule"):
            assert len(self.schedule) == len(self.waiting)
            assert all(key in self.schedule for key in self.waiting)
            assert (self.schedule.next_due() is None) == (self.waiting <= self.out)
            assert self.schedule.polls_per_minute >= 1.0
            assert 0.0 <= self.reliability.loss <= 1.0

    @invariant()
    def the_budget_is_kept(self) -> None:
        """No window of a minute has more polls than allowed."""
        if hasattr(self, "schedule") and self.budget is not None:
            assert worst_minute(self.made) <= self.budget

    def teardown(self) -> None:
        """Every job left is looked at in the end."""
        if not hasattr(self, "schedule"):
            return
        for key in self.out & self.waiting:
            self.schedule.on_unfinished(key, now=self.now)
        for _ in range(1000):
            at = self.schedule.next_due()
            if at is None:
                break
            self.now = max(self.now, at)
            keys = self.schedule.take_due(self.now)
            assert keys
            for key in keys:
                self.schedule.on_finished(key, now=self.now)
                self.waiting.remove(key)
        assert not self.waiting


TestWaiting = Waiting.TestCase
