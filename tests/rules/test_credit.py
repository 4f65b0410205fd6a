from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.credit import Credit
from musicgpt_async.errors import CreditLimitError


@pytest.mark.parametrize("most", [0, -1, -math.inf, math.nan])
def test_a_limit_is_more_than_nothing(most: float) -> None:
    """A limit that would forbid everything, or is no number, is a mistake."""
    with pytest.raises(ValueError, match="max_credits"):
        Credit(most)


def test_without_a_limit_everything_is_allowed() -> None:
    """Submits run side by side, and what they cost is still added up."""
    credit = Credit(None)
    for _ in range(5):
        assert credit.allows_another()
        credit.begin()
    for _ in range(5):
        credit.end(2.5)
    assert credit.estimated == 12.5


def test_with_a_limit_one_submit_at_a_time_is_without_its_estimate() -> None:
    """Until the answer says what a track costs, no other begins."""
    credit = Credit(10)
    credit.begin()
    assert not credit.allows_another()
    credit.end(4)
    assert credit.allows_another()


def test_nothing_more_begins_past_the_limit() -> None:
    """The error says what was used and what to do."""
    credit = Credit(5)
    credit.begin()
    credit.end(5.0)
    with pytest.raises(CreditLimitError, match="max_credits=5"):
        credit.begin()
    assert credit.allows_another()


def test_what_was_not_accepted_costs_nothing() -> None:
    """A submit that ended without an estimate gives its place back."""
    credit = Credit(5)
    for _ in range(20):
        credit.begin()
        credit.end(None)
    assert credit.estimated == 0.0


@given(most=st.floats(0.1, 100), costs=st.lists(st.floats(0.0, 20.0) | st.none(), max_size=60))
def test_the_limit_is_passed_by_less_than_one_track(most: float, costs: list[float | None]) -> None:
    """However the estimates fall, only the last track reaches past it."""
    credit = Credit(most)
    before = 0.0
    for cost in costs:
        try:
            credit.begin()
        except CreditLimitError:
            assert credit.estimated >= most
            break
        before = credit.estimated
        credit.end(cost)
    assert before < most or not costs
