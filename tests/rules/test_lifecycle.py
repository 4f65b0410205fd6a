from __future__ import annotations

import re

import pytest

from musicgpt_async._rules.lifecycle import (
    MAY_BE_PAID,
    TERMINAL,
    TRANSITIONS,
    TRIGGER_OF_END,
    Effect,
    Trigger,
    next_step,
)
from musicgpt_async.models import JobState

ROWS = [
    (state, trigger, step) for state, row in TRANSITIONS.items() for trigger, step in row.items()
]


def reachable(start: JobState) -> set[JobState]:
    """Every state that a job can come to."""
    seen, new = {start}, {start}
    while new:
        new = {step.state for state in new for step in TRANSITIONS[state].values()} - seen
        seen |= new
    return seen


def test_the_table_is_closed() -> None:
    """Every state has a row, and every trigger is used."""
    assert set(TRANSITIONS) == set(JobState)
    assert {trigger for _, trigger, _ in ROWS} == set(Trigger)


def test_every_state_can_be_reached() -> None:
    """Every state is reachable from the queue, in which every job starts."""
    assert reachable(JobState.QUEUED) == set(JobState)


def test_terminal_states_have_no_way_out_and_the_others_have_one_to_an_end() -> None:
    """A job that has ended stays so, and no job is stuck."""
    assert {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.UNKNOWN,
        JobState.TIMED_OUT,
        JobState.DETACHED,
    } == TERMINAL
    for state in set(JobState) - TERMINAL:
        assert reachable(state) & TERMINAL


def test_what_was_accepted_is_never_sent_again() -> None:
    """No way leads from acceptance back into the queue, and none to "unknown"."""
    after_acceptance = reachable(JobState.PROCESSING)
    assert not after_acceptance & {JobState.QUEUED, JobState.UPLOADING, JobState.UNKNOWN}


def test_only_a_clear_answer_leads_back_to_another_delivery() -> None:
    """A delivered track is sent again only if it was not accepted, or not delivered after all."""
    back = {
        (state, trigger)
        for state, trigger, step in ROWS
        if state is not step.state and step.state in (JobState.QUEUED, JobState.UPLOADING)
    }
    assert back == {
        (JobState.QUEUED, Trigger.SLOT_ACQUIRED),
        (JobState.UPLOADING, Trigger.REQUEUED),
        (JobState.UNACKNOWLEDGED, Trigger.REQUEUED),
        (JobState.UNACKNOWLEDGED, Trigger.NOT_DELIVERED),
    }


def test_an_accepted_job_fails_by_the_verdict_of_musicgpt_alone() -> None:
    """An exception of ours after acceptance has no row: the job stays accepted."""
    ways = {
        trigger
        for trigger, step in TRANSITIONS[JobState.PROCESSING].items()
        if step.state is JobState.FAILED
    }
    assert ways == {Trigger.EXTRACTION_FAILED}


def test_what_may_cost_money_is_durable_first() -> None:
    """A delivery is saved before the boundary is sent, "not delivered" before a retry."""
    first = {(state, trigger) for state, trigger, step in ROWS if Effect.SAVE_FIRST in step.effects}
    assert first == {
        (JobState.UPLOADING, Trigger.DELIVERED),
        (JobState.UNACKNOWLEDGED, Trigger.NOT_DELIVERED),
        (JobState.UNACKNOWLEDGED, Trigger.REQUEUED),
    }


def test_every_end_frees_the_slot_and_is_saved() -> None:
    """What ends a job stops everything about it."""
    for state, _, step in ROWS:
        if step.state in TERMINAL and state is not step.state:
            assert step.effects == Effect.SAVE | Effect.FREE_SLOT | Effect.END


def test_every_living_job_can_be_detached_and_left() -> None:
    """In every state a job can be cancelled, and its session be closed."""
    for state in set(JobState) - TERMINAL:
        assert next_step(state, Trigger.DETACHED).state is JobState.DETACHED
        left = next_step(state, Trigger.SESSION_LEFT)
        assert left.state is state
        assert Effect.END in left.effects


def test_a_handle_that_follows_can_end_as_any_other() -> None:
    """Each end that a job can come to is one that a queued follower can copy."""
    for state in TERMINAL:
        assert next_step(JobState.QUEUED, TRIGGER_OF_END[state]).state is state


def test_may_be_paid_is_what_musicgpt_may_have() -> None:
    """From the delivery on, and not before."""
    assert not MAY_BE_PAID & {JobState.QUEUED, JobState.UPLOADING}
    assert {JobState.UNACKNOWLEDGED, JobState.PROCESSING, JobState.COMPLETED, JobState.UNKNOWN} <= (
        MAY_BE_PAID
    )


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("trigger", Trigger)
def test_a_trigger_follows_the_table_or_is_a_mistake(state: JobState, trigger: Trigger) -> None:
    """What the table does not have is an error that names both."""
    if trigger in TRANSITIONS[state]:
        assert next_step(state, trigger) is TRANSITIONS[state][trigger]
    else:
        with pytest.raises(RuntimeError, match=f"{state}.*{re.escape(trigger.value)}"):
            next_step(state, trigger)
