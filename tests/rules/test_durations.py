from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.durations import DurationDistribution


@given(
    seen=st.lists(st.tuples(st.floats(0.0, 1e4), st.floats(0.0, 1e4)), max_size=30),
    last=st.floats(0.0, 1e4),
    worth=st.floats(1e-5, 1e4),
)
def test_a_law_stays_a_law(seen: list[tuple[float, float]], last: float, worth: float) -> None:
    """For any observations, probabilities are between 0 and 1 and the next poll is later."""
    distribution = DurationDistribution(0.0, 0.35)
    for low, high in seen:
        distribution.observe(min(low, high), max(low, high))
    assert 0.0 <= distribution.probability(0.0, last) <= 1.0
    assert distribution.quantile(0.25) <= distribution.quantile(0.75)
    then = distribution.next_poll(last, worth, 1e-3)
    assert then > last
    if then < 20.0:
        assert distribution.expected_delay(last, then) <= worth * 1.01
