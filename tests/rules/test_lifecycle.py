from __future__ import annotations

import re

import pytest

from musicgpt_async._rules.lifecycle import SENT, TERMINAL, TRANSITIONS, Change, after, diagram
from musicgpt_async.models import JobState


def reachable(start: JobState) -> set[JobState]:
    """Every state that a job can come to."""
    seen, new = {start}, {start}
    while new:
        new = {target for state in new for target in TRANSITIONS[state].values()} - seen
        seen |= new
    return seen


def test_the_table_is_closed() -> None:
    """Every state has a row, every row leads to states, and every change is used."""
    assert set(TRANSITIONS) == set(JobState)
    targets = {target for row in TRANSITIONS.values() for target in row.values()}
    assert targets <= set(JobState)
    assert {change for row in TRANSITIONS.values() for change in row} == set(Change)


def test_every_state_can_be_reached() -> None:
    """From the line, where every job begins."""
    assert reachable(JobState.QUEUED) == set(JobState)


def test_terminal_states_have_no_way_out_and_the_others_have_one_to_an_end() -> None:
    """A job that has ended stays so, and no job is stuck."""
    assert {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.UNKNOWN,
        JobState.EXPIRED,
        JobState.RELEASED,
    } == TERMINAL
    for state in JobState:
        assert bool(TRANSITIONS[state]) != (state in TERMINAL)
        assert reachable(state) & TERMINAL


def test_what_was_accepted_is_never_sent_again() -> None:
    """No way leads from acceptance back into the line, and none to "nobody knows"."""
    after_acceptance = reachable(JobState.WAITING)
    assert not after_acceptance & {JobState.QUEUED, JobState.UPLOADING, JobState.UNKNOWN}


def test_only_a_clear_answer_leads_back_into_the_line() -> None:
    """The one way from a delivered track to a second submission is "not accepted"."""
    back = {
        (state, change)
        for state, row in TRANSITIONS.items()
        for change, target in row.items()
        if target is JobState.QUEUED
    }
    assert back == {
        (JobState.UPLOADING, Change.SEND_AGAIN),
        (JobState.DELIVERED, Change.SEND_AGAIN),
    }


def test_every_living_job_can_be_let_go_of_and_can_fail() -> None:
    """There is no state in which cancelling or an error has no meaning."""
    for state in set(JobState) - TERMINAL:
        assert after(state, Change.RELEASE) is JobState.RELEASED
        assert after(state, Change.FAIL) is JobState.FAILED


def test_sent_is_what_the_vendor_may_have() -> None:
    """From the handing over on, and not before: these may be paid for."""
    assert not SENT & {JobState.QUEUED, JobState.UPLOADING}
    assert {JobState.DELIVERED, JobState.WAITING, JobState.COMPLETED, JobState.UNKNOWN} <= SENT


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("change", Change)
def test_a_change_follows_the_table_or_is_a_mistake(state: JobState, change: Change) -> None:
    """What the table does not have is an error that names both."""
    if change in TRANSITIONS[state]:
        assert after(state, change) is TRANSITIONS[state][change]
    else:
        with pytest.raises(RuntimeError, match=f"{state}.*{re.escape(change.value)}"):
            after(state, change)


def test_the_picture_is_the_table() -> None:
    """Every transition is an arrow, every end an end, and there are no others."""
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    arrows = set(lines[1:])
    expected = {
        f"    {state} --> {target}: {change}"
        for state, row in TRANSITIONS.items()
        for change, target in row.items()
    }
    expected |= {f"    {state} --> [*]" for state in TERMINAL} | {"    [*] --> queued"}
    assert arrows == expected
    assert len(lines) == 1 + len(expected)
