"""The life cycle of a job as a table: state and trigger → next state and effects.

Two rules hold in this file: only a row of the table changes a job's state, and a change has only
the effects that its row names. :class:`~musicgpt_async._engine.jobs.Jobs` applies a row in one
place; the observers of a job carry out its effects, in a fixed order.

A record is saved *first* if a crash in between could lose money: before the end of a track is
delivered, and before a track that was not accepted is sent again. Everything else can be polled
from MusicGPT again, and is saved later.

A detached job stays detached. The response to a submit that was in flight is recorded nevertheless,
so that the job can be resumed: these are the rows that lead from ``detached`` to itself.
``diagram()`` draws the diagram in the documentation from the rows that change a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, StrEnum, auto

import attrs

from musicgpt_async.models import JobState


class Trigger(StrEnum):
    """An event that may change a job's state."""

    SLOT_ACQUIRED = "slot acquired"
    """A slot is free and credit is left."""
    DELIVERED = "track delivered"
    """The end of the track is about to be sent: from now on MusicGPT may have it."""
    NOT_DELIVERED = "not delivered"
    """The connection failed before the end was sent: the job retries in the same slot."""
    REQUEUED = "not accepted"
    """MusicGPT is full, or the journal already has the track: the slot goes to another job."""
    ACCEPTED = "accepted"
    """MusicGPT returned the id of its task."""
    RESPONSE_MISSING = "response missing"
    """No response arrived; the job's webhook or the account's listing may still name the task."""
    WEBHOOK_RECEIVED = "webhook received"
    """A delivery arrived: a reason to poll, and nothing more."""
    COMPLETED = "completed"
    """A poll found the job finished."""
    EXTRACTION_FAILED = "extraction failed"
    """A poll found that MusicGPT could not process it: the only way an accepted job can fail."""
    REFUSED = "refused"
    """Not accepted and not sent again: the track, the account or an option is wrong."""
    RESPONSE_LOST = "response lost"
    """The task could not be found: it may be running and paid for."""
    TIMED_OUT = "deadline passed"
    """The job was not finished by its deadline; MusicGPT continues to process it."""
    DETACHED = "detached"
    """The handle was cancelled."""
    SESSION_LEFT = "session left"
    """The session stopped following the job; the record is unchanged, so it can be resumed."""


class Effect(Flag):
    """A consequence of a transition."""

    NONE = 0
    SAVE_FIRST = auto()
    """Make the record durable before anything else happens."""
    SAVE = auto()
    """Save the record in the background."""
    FREE_SLOT = auto()
    """Release the slot: the job no longer counts against the account's limit."""
    START_POLLING = auto()
    """Start polling the job's task."""
    CHECK_NOW = auto()
    """Poll at once, or confirm the task that a delivery named."""
    END = auto()
    """Stop polling, uploading and waiting for webhooks in this session, and wake all waiters."""


@attrs.frozen
class Step:
    """One row of the table.

    Attributes:
        state: The next state.
        effects: The consequences.
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
        # Attached, resumed from a journal, or following another handle's job:
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

# What may still be recorded of a job that has ended; a second end is none.
LATE = frozenset(TRANSITIONS[_S.DETACHED])
TERMINAL = frozenset(
    state for state, row in TRANSITIONS.items() if all(step.state is state for step in row.values())
)
MAY_BE_PAID = frozenset({_S.UNACKNOWLEDGED, _S.PROCESSING, _S.COMPLETED, _S.UNKNOWN, _S.TIMED_OUT})
"""States in which a second submit could be a second payment."""

# The trigger that ends a handle that follows another job, by the final state of that job.
TRIGGER_OF_END: Mapping[JobState, Trigger] = {
    _S.COMPLETED: _T.COMPLETED,
    _S.FAILED: _T.EXTRACTION_FAILED,
    _S.UNKNOWN: _T.RESPONSE_LOST,
    _S.TIMED_OUT: _T.TIMED_OUT,
    _S.DETACHED: _T.DETACHED,
}


def next_step(state: JobState, trigger: Trigger) -> Step:
    """Return the row of the table for a state and a trigger.

    Raises:
        RuntimeError: The table has no such row, which is a bug in this library.
    """
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise RuntimeError(f"a job that is {state} cannot become {trigger!r}") from None
