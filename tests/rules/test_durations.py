from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.durations import Law


@given(
    seen=st.lists(st.tuples(st.floats(0.0, 1e4), st.floats(0.0, 1e4)), max_size=30),
    last=st.floats(0.0, 1e4),
    worth=st.floats(1e-5, 1e4),
)
def test_a_law_stays_a_law(seen: list[tuple[float, float]], last: float, worth: float) -> None:
    """Whatever was observed, chances are between 0 and 1 and the next look is after the last."""
    law = Law(0.0, 0.35)
    for low, high in seen:
        law.observe(min(low, high), max(low, high))
    assert 0.0 <= law.chance(0.0, last) <= 1.0
    assert law.quantile(0.25) <= law.quantile(0.75)
    then = law.next_look(last, worth, 1e-3)
    assert then > last
    if then < 20.0:
        assert law.undetected(last, then) <= worth * 1.01
