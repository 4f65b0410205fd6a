"""Grants of an account's polls: one number, moved on by each."""

from __future__ import annotations

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.rate_budget import Budget, Spacing

MINUTE = 60.0  # seconds


def poll_times(budget: float, waits: list[float], *, urgent: bool) -> list[float]:
    """Return when polls are made that are asked for after these waits, as soon as they may be."""
    spacing, now, due = Spacing.of(budget), 0.0, 0.0
    made = []
    for wait in waits:
        now += wait
        granted = max(due, now - spacing.burst)
        due = granted + spacing.interval
        made.append(max(now, granted - spacing.burst if urgent else granted))
    return sorted(made)


@given(
    st.sampled_from([1.0, 2.0, 20.0, 60.0, 200.0, 500.0]),
    st.lists(st.floats(0.0, 20.0), min_size=1, max_size=300),
    st.booleans(),
)
def test_no_window_of_a_minute_holds_more_than_the_budget(
    budget: float, waits: list[float], urgent: bool
) -> None:
    """Whenever polls are asked for, any minute holds the budget at most."""
    made = poll_times(budget, waits, urgent=urgent)
    for first, moment in enumerate(made):
        assert bisect.bisect_left(made, moment + MINUTE) - first <= budget


@pytest.mark.parametrize("budget", [20.0, 200.0, 500.0])
def test_most_of_the_budget_is_used_under_pressure(budget: float) -> None:
    """With polls that always wait, at least 0.85 of the budget is made in each minute."""
    made = poll_times(budget, [0.0] * int(3 * budget), urgent=False)
    assert sum(MINUTE <= each < 2 * MINUTE for each in made) >= 0.85 * budget


def test_a_session_with_another_limit_does_not_take_over_what_was_learned() -> None:
    """What was learned for one plan says nothing of another; the pause holds for both."""
    learned = Budget(20.0, 0.02).dump()
    other = Budget(500.0, 0.02)
    other.load(learned, paused_until=7.0)
    assert (other.estimate, other.paused_until) == (500.0, 7.0)


def test_a_session_without_a_limit_takes_over_what_was_learned() -> None:
    """A process that knows nothing uses what the others have learned."""
    known = Budget(None, 0.02)
    known.on_throttled(0.0, None, held=10.0)
    other = Budget(None, 0.02)
    other.load(known.dump(), paused_until=-1.0)
    assert other.dump() == known.dump()
    assert other.estimate == pytest.approx(9.5)


def test_a_refused_poll_is_judged_by_the_polls_of_all_sessions() -> None:
    """Of a minute with 100 polls, few of them its own, a session learns what 100 say."""
    budget = Budget(None, 0.02)
    budget.estimate = 200.0
    budget.on_throttled(0.0, None, held=100.0)
    assert budget.estimate == pytest.approx(95.0)
