"""A job's life as a table: which trigger leads from which state to which, and with what effects.

Two rules of this file: nothing changes a job's state but a row of the table, and nothing follows
from a change but the effects that the row names. :class:`~musicgpt_async._engine.jobs.Jobs` applies
a row in one place; the observers of a job carry its effects out, in one fixed order.

A record is saved *first* where a crash in between could lose money: before the end of a track is
delivered, and before a track that was not accepted is sent again. Everything else that is saved can
be asked of MusicGPT once more, and is saved later.

A detached job stays detached. The response to a submit that was on its way is recorded all the
same, so that it can be resumed: these are the rows that lead from ``released`` to itself.
``diagram()`` draws the picture of the README from the rows that change a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, StrEnum, auto

import attrs

from musicgpt_async.models import JobState


class Trigger(StrEnum):
    """What can happen to a job."""

    SLOT_ACQUIRED = "slot acquired"
    """It is its turn: a slot is free and credit is left."""
    DELIVERED = "track delivered"
    """The end of the track is about to go out: MusicGPT may have it from here on."""
    NOT_DELIVERED = "not delivered"
    """The connection broke before the end went out: it is tried again in the same slot."""
    REQUEUED = "not accepted"
    """MusicGPT is full, or the journal already has the track: the slot goes to another job."""
    ACCEPTED = "accepted"
    """MusicGPT named its task."""
    RESPONSE_MISSING = "response missing"
    """No response came; its webhook or the account's listing may still name the task."""
    WEBHOOK_RECEIVED = "webhook received"
    """A delivery arrived: a reason to poll, and nothing more."""
    COMPLETED = "completed"
    """A poll saw it finished."""
    EXTRACTION_FAILED = "extraction failed"
    """A poll saw that MusicGPT could not process it: the only way an accepted job can fail."""
    REFUSED = "refused"
    """It was not accepted and is not sent again: the track, the account or an option is wrong."""
    RESPONSE_LOST = "response lost"
    """Nothing named its task: it may be running and paid for."""
    TIMED_OUT = "deadline passed"
    """It was not finished by its deadline; MusicGPT goes on."""
    DETACHED = "detached"
    """Its handle was cancelled."""
    SESSION_LEFT = "session left"
    """The session stopped following it; its record stays as it is, for whoever resumes it."""


class Effect(Flag):
    """What follows from a trigger."""

    NONE = 0
    SAVE_FIRST = auto()
    """The record has to be durable before anything else is done."""
    SAVE = auto()
    """The record is saved when there is time."""
    FREE_SLOT = auto()
    """It no longer counts against the account's limit."""
    START_POLLING = auto()
    """It has a task: poll it."""
    CHECK_NOW = auto()
    """Poll it, or confirm the task that a delivery named, at once."""
    END = auto()
    """It has ended here: stop polling, uploading and waiting for webhooks, wake its waiters."""


@attrs.frozen
class Step:
    """One row of the table.

    Attributes:
        state: The next state.
        effects: What follows.
    """

    state: JobState
    effects: Effect = Effect.NONE


_S, _T, _E = JobState, Trigger, Effect
_ENDS = _E.SAVE | _E.FREE_SLOT | _E.END

TRANSITIONS: Mapping[JobState, Mapping[Trigger, Step]] = {
    _S.QUEUED: {
        _T.SLOT_ACQUIRED: Step(_S.UPLOADING),
        _T.WEBHOOK_RECEIVED: Step(_S.QUEUED),
        _T.REFUSED: Step(_S.FAILED, _ENDS),
        _T.DETACHED: Step(_S.DETACHED, _ENDS),
        _T.SESSION_LEFT: Step(_S.QUEUED, _ENDS),
        # Attached, resumed from a journal, or the same as another handle's job:
        _T.ACCEPTED: Step(_S.PROCESSING, _E.SAVE | _E.START_POLLING),
        _T.RESPONSE_MISSING: Step(_S.UNACKNOWLEDGED),
        _T.COMPLETED: Step(_S.COMPLETED, _ENDS),
        _T.EXTRACTION_FAILED: Step(_S.FAILED, _ENDS),
        _T.RESPONSE_LOST: Step(_S.UNKNOWN, _ENDS),
        _T.TIMED_OUT: Step(_S.TIMED_OUT, _ENDS),
    },
    _S.UPLOADING: {
        _T.DELIVERED: Step(_S.UNACKNOWLEDGED, _E.SAVE_FIRST),
        _T.NOT_DELIVERED: Step(_S.UPLOADING),
        _T.REQUEUED: Step(_S.QUEUED, _E.FREE_SLOT),
        _T.ACCEPTED: Step(_S.PROCESSING, _E.SAVE | _E.START_POLLING),
        _T.WEBHOOK_RECEIVED: Step(_S.UPLOADING),
        _T.REFUSED: Step(_S.FAILED, _ENDS),
        _T.DETACHED: Step(_S.DETACHED, _ENDS),
        _T.SESSION_LEFT: Step(_S.UPLOADING, _ENDS),
    },
    _S.UNACKNOWLEDGED: {
        _T.NOT_DELIVERED: Step(_S.UPLOADING, _E.SAVE_FIRST),
        _T.REQUEUED: Step(_S.QUEUED, _E.SAVE_FIRST | _E.FREE_SLOT),
        _T.ACCEPTED: Step(_S.PROCESSING, _E.SAVE | _E.START_POLLING),
        _T.RESPONSE_MISSING: Step(_S.UNACKNOWLEDGED, _E.SAVE | _E.FREE_SLOT),
        _T.WEBHOOK_RECEIVED: Step(_S.UNACKNOWLEDGED, _E.CHECK_NOW),
        _T.REFUSED: Step(_S.FAILED, _ENDS),
        _T.RESPONSE_LOST: Step(_S.UNKNOWN, _ENDS),
        _T.DETACHED: Step(_S.DETACHED, _ENDS),
        _T.SESSION_LEFT: Step(_S.UNACKNOWLEDGED, _ENDS),
    },
    _S.PROCESSING: {
        _T.WEBHOOK_RECEIVED: Step(_S.PROCESSING, _E.CHECK_NOW),
        _T.COMPLETED: Step(_S.COMPLETED, _ENDS),
        _T.EXTRACTION_FAILED: Step(_S.FAILED, _ENDS),
        _T.TIMED_OUT: Step(_S.TIMED_OUT, _ENDS),
        _T.DETACHED: Step(_S.DETACHED, _ENDS),
        _T.SESSION_LEFT: Step(_S.PROCESSING, _ENDS),
    },
    _S.COMPLETED: {},
    _S.FAILED: {},
    _S.UNKNOWN: {},
    _S.TIMED_OUT: {},
    _S.DETACHED: {
        trigger: Step(_S.DETACHED, _E.SAVE)
        for trigger in (
            _T.NOT_DELIVERED,
            _T.REQUEUED,
            _T.ACCEPTED,
            _T.RESPONSE_MISSING,
            _T.REFUSED,
            _T.RESPONSE_LOST,
        )
    },
}

TERMINAL = frozenset(
    state for state, row in TRANSITIONS.items() if all(step.state is state for step in row.values())
)
MAY_BE_PAID = frozenset({_S.UNACKNOWLEDGED, _S.PROCESSING, _S.COMPLETED, _S.UNKNOWN, _S.TIMED_OUT})
"""From here on a second submission could be a second payment."""

# How a handle ends that follows the job of another one, by the state that job ended in.
TRIGGER_OF_END: Mapping[JobState, Trigger] = {
    _S.COMPLETED: _T.COMPLETED,
    _S.FAILED: _T.EXTRACTION_FAILED,
    _S.UNKNOWN: _T.RESPONSE_LOST,
    _S.TIMED_OUT: _T.TIMED_OUT,
    _S.DETACHED: _T.DETACHED,
}


def next_step(state: JobState, trigger: Trigger) -> Step:
    """Return the state that follows, and what else does.

    Raises:
        RuntimeError: The table has no such row: a mistake in this library.
    """
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise RuntimeError(f"a job that is {state} cannot become {trigger!r}") from None


def diagram() -> str:
    """Return the rows that change a state as a Mermaid state diagram."""
    lines = [
        f"    {state} --> {step.state}: {trigger}"
        for state, row in TRANSITIONS.items()
        for trigger, step in row.items()
        if step.state is not state
    ]
    ends = [f"    {state} --> [*]" for state in JobState if state in TERMINAL]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {JobState.QUEUED}", *lines, *ends])
