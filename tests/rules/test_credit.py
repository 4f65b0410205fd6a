from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.credit import ASSUMED_ESTIMATE, CreditBudget
from musicgpt_async.errors import CreditLimitError


@pytest.mark.parametrize("limit", [0, -1, -math.inf, math.nan])
def test_a_limit_is_more_than_nothing(limit: float) -> None:
    """A limit that would forbid everything, or is not a number, is refused."""
    with pytest.raises(ValueError, match="max_credits"):
        CreditBudget(limit)


def test_without_a_limit_everything_is_allowed() -> None:
    """Submits run side by side, and what they cost is still added up."""
    credit = CreditBudget(None)
    for _ in range(5):
        assert credit.can_reserve()
        credit.reserve()
    for _ in range(5):
        credit.settle(2.5)
    assert credit.estimated == 12.5


def test_with_a_limit_one_submit_at_a_time_is_without_its_estimate() -> None:
    """No other submit starts until the response has an estimate."""
    credit = CreditBudget(10)
    credit.reserve()
    assert not credit.can_reserve()
    credit.settle(4)
    assert credit.can_reserve()


def test_nothing_more_begins_past_the_limit() -> None:
    """The error says what was used and what to do."""
    credit = CreditBudget(5)
    credit.reserve()
    credit.settle(5.0)
    with pytest.raises(CreditLimitError, match="max_credits=5"):
        credit.reserve()
    assert credit.can_reserve()


def test_what_was_not_accepted_costs_nothing() -> None:
    """A submit that ended without an estimate gives its place back."""
    credit = CreditBudget(5)
    for _ in range(20):
        credit.reserve()
        credit.cancel()
    assert credit.estimated == credit.counted == 0.0


def test_a_lost_response_counts_as_the_largest_estimate_known() -> None:
    """The guard never fails open: what may be paid for counts, with an estimate or without."""
    credit = CreditBudget(100)
    credit.reserve()
    credit.settle(None)
    assert (credit.estimated, credit.counted) == (0.0, ASSUMED_ESTIMATE)
    credit.reserve()
    credit.settle(60.0)
    assert credit.counted == 120.0
    with pytest.raises(CreditLimitError):
        credit.reserve()


@given(limit=st.floats(0.1, 100), costs=st.lists(st.floats(0.0, 20.0) | st.none(), max_size=60))
def test_the_limit_is_passed_by_less_than_one_track(
    limit: float, costs: list[float | None]
) -> None:
    """However the estimates fall, only the last track reaches past it."""
    credit = CreditBudget(limit)
    before = 0.0
    for cost in costs:
        try:
            credit.reserve()
        except CreditLimitError:
            assert credit.counted >= limit
            break
        before = credit.counted
        credit.settle(cost)
    assert before < limit or not costs
