"""How long leases hold after the server that keeps them was away."""

from __future__ import annotations

import pytest

from musicgpt_async._rules.outages import Outage


def test_a_lease_that_held_when_the_outage_began_holds_for_one_more() -> None:
    """The outage, and as long as a lease after it, does not count; after that everything does."""
    outage = Outage(15.0, now=100.0)
    assert outage.grace(now=110.0) == 0.0
    outage.on_success(now=110.0)
    assert outage.on_fault(now=112.0)
    assert not outage.on_fault(now=150.0)
    assert outage.grace(now=150.0) == 40.0
    assert outage.on_success(now=160.0)
    assert not outage.on_success(now=161.0)
    assert outage.grace(now=174.0) == 64.0
    assert outage.grace(now=175.0) == 0.0


@pytest.mark.parametrize(("next_fault", "grace"), [(170.0, 75.0), (300.0, 10.0)])
def test_an_outage_soon_after_another_is_the_same(next_fault: float, grace: float) -> None:
    """Owners that had no time to renew their leases in between keep them as well."""
    outage = Outage(15.0, now=100.0)
    outage.on_fault(now=101.0)
    outage.on_success(now=160.0)
    outage.on_success(now=next_fault - 5.0)
    outage.on_fault(now=next_fault)
    assert outage.grace(now=next_fault + 5.0) == grace
