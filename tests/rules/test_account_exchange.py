"""Decisions on what the processes of an account share."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from musicgpt_async._rules.account_exchange import (
    WAITING_TIMEOUT,
    AcceptedLesson,
    AccountDecision,
    AccountRequest,
    AccountState,
    PauseLesson,
    RejectedLesson,
    SlotRow,
    decide,
)

EMPTY = AccountState(now=100.0, learned={}, credit={}, rows={})


def row(key: str, **changes: Any) -> SlotRow:
    """Return the row of a slot whose owner lives."""
    facts = {"owner": "other", "is_sent": True, "is_priced": True, "until": 1000.0, **changes}
    return SlotRow(key=key, **facts)


def state(*rows: SlotRow, **changes: Any) -> AccountState:
    """Return the state of an account with these slots taken."""
    return attrs.evolve(EMPTY, rows={each.key: each for each in rows}, **changes)


def ask(
    before: AccountState,
    *wanted: str,
    owner: str = "me",
    parallel: int | None = 2,
    max_credits: float | None = None,
    **facts: Any,
) -> AccountDecision:
    """Decide on a request for slots."""
    request = AccountRequest(owner=owner, hold_time=60.0, wanted=wanted, **facts)
    return decide(request, before, parallel=parallel, max_credits=max_credits)


def test_slots_are_granted_in_order_up_to_the_limit() -> None:
    """The first jobs get what others left, and their rows say whose they are."""
    decision = ask(state(row("x")), "a", "b")
    assert decision.granted == ["a"]
    assert decision.state.rows["a"] == SlotRow(key="a", owner="me", until=160.0)


def test_a_request_that_is_repeated_takes_nothing_twice() -> None:
    """Of a transaction that was committed without a word the rows are recognised."""
    once = ask(EMPTY, "a", "b")
    again = ask(once.state, "a", "b")
    assert again.granted == ["a", "b"]
    assert again.state.rows == once.state.rows


def test_slots_that_are_spoken_for_are_left() -> None:
    """A job that will need a slot soon finds it free."""
    assert ask(EMPTY, "a", "b", spare=1).granted == ["a"]


@pytest.mark.parametrize(
    ("left", "free"),
    [
        (row("x", is_live=False, is_sent=False), 2),
        (row("x", is_live=False), 1),
        (row("x", is_live=True, is_sent=False), 1),
        (row("x", until=100.0), 2),
    ],
    ids=["dead, not sent", "dead, sent", "alive", "past its deadline"],
)
def test_the_slot_of_a_dead_process_is_its_jobs(left: SlotRow, free: int) -> None:
    """A job that MusicGPT may be processing keeps its slot until its deadline."""
    assert len(ask(state(left), "a", "b").granted) == free


def test_a_process_that_waits_is_served_before_one_that_asks_again() -> None:
    """A freed slot goes to the one that has waited, not to the one that frees it."""
    full = ask(EMPTY, "a", "b", owner="busy").state
    waiting = ask(full, "single", owner="other").state
    freed = ask(attrs.evolve(waiting, now=101.0), "c", owner="busy", freed=["a"])
    assert freed.granted == []
    served = ask(freed.state, "single", owner="other")
    assert served.granted == ["single"]


def test_a_process_that_stopped_asking_loses_its_place() -> None:
    """A waiting process that has died, or has its slot, loses its place after some seconds."""
    full = ask(EMPTY, "a", "b", owner="busy").state
    waiting = ask(full, "single", owner="other").state
    later = attrs.evolve(waiting, now=waiting.now + WAITING_TIMEOUT)
    assert ask(later, "c", owner="busy", freed=["a"]).granted == ["c"]


def test_one_refusal_teaches_all() -> None:
    """What one process was refused is the limit of the next, until it may grow again."""
    full = ask(EMPTY, "a", "b", "c", parallel=10).state
    rejected = RejectedLesson(retry_after=None, is_full=True, began=100.0)
    learned = ask(full, lessons=[rejected], freed=["c"], parallel=10).state
    assert ask(learned, "d", owner="other", parallel=10).granted == []
    assert ask(learned, "d", owner="other", parallel=10).slots.limit == 2


def test_a_pause_holds_for_all() -> None:
    """While one process has a Retry-After to wait for, no other submits."""
    paused = ask(EMPTY, lessons=[PauseLesson(5.0)]).state
    assert ask(paused, "a", owner="other").granted == []
    assert ask(attrs.evolve(paused, now=105.0), "a", owner="other").granted == ["a"]


def test_the_limit_grows_by_what_all_have_seen_accepted() -> None:
    """An account without a known limit starts at the free plan's one slot."""
    first = ask(EMPTY, "a", "b", parallel=None)
    assert first.granted == ["a"]
    lessons, prices = [AcceptedLesson(has_queue=True)], {"a": 1.0}
    assert ask(first.state, "b", lessons=lessons, prices=prices, parallel=None).slots.limit == 3


def test_another_plan_begins_anew() -> None:
    """A session with another limit does not use what was learned for the old one."""
    old = ask(EMPTY, parallel=1, has_joined=True).state
    assert ask(old, "a", "b", parallel=2, has_joined=True).granted == ["a", "b"]


def test_with_max_credits_one_submit_of_all_is_without_its_price() -> None:
    """No process begins while another's estimate is to come, nor past the limit."""
    first = ask(EMPTY, "a", "b", max_credits=3.0)
    assert first.granted == ["a"]
    assert ask(first.state, "b", owner="other", max_credits=3.0).granted == []
    priced = ask(first.state, prices={"a": 2.0}).state
    second = ask(priced, "b", owner="other", max_credits=3.0)
    assert second.granted == ["b"]
    spent = ask(second.state, owner="other", prices={"b": 2.0}, freed=["b"]).state
    assert ask(spent, "c", max_credits=3.0).granted == []
    assert ask(spent, "c").credit.expected == 4.0


def test_a_price_is_counted_once() -> None:
    """A report that is repeated, since its first write may have failed, adds nothing."""
    running = ask(EMPTY, "a").state
    once = ask(running, prices={"a": 2.0}).state
    assert ask(once, prices={"a": 2.0}).credit.expected == 2.0


def test_what_the_dead_have_sent_is_counted_as_the_dearest() -> None:
    """A track that was sent and never answered may be paid for."""
    known = ask(ask(EMPTY, "a").state, prices={"a": 2.0}, freed=["a"]).state
    left = row("x", is_live=False, is_priced=False)
    decision = ask(attrs.evolve(known, rows={"x": left}), "b", max_credits=5.0)
    assert decision.credit.expected == 4.0
    assert decision.granted == ["b"]


def test_a_job_that_runs_counts_past_the_limit() -> None:
    """A resumed job takes over the slot that it had, or gets one more."""
    full = state(row("x", is_live=False), row("y"))
    decision = ask(full, "a", running=["x", "z"])
    assert decision.granted == []
    assert {key for key, each in decision.state.rows.items() if each.owner == "me"} == {"x", "z"}
