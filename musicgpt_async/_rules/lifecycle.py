"""A job's states and transitions, as a table; ``diagram()`` draws the README's picture from it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from musicgpt_async.models import JobState


class Change(StrEnum):
    """What can happen to a job."""

    TURN = "its turn comes"
    HAND_OVER = "the whole track is handed over"
    SEND_AGAIN = "not accepted"
    ACCEPT = "accepted"
    COMPLETE = "completed"
    FAIL = "failed"
    GIVE_UP = "no answer"
    EXPIRE = "deadline passed"
    RELEASE = "let go of"


_S, _C = JobState, Change

TRANSITIONS: Mapping[JobState, Mapping[Change, JobState]] = {
    _S.QUEUED: {
        _C.TURN: _S.UPLOADING,
        _C.ACCEPT: _S.WAITING,  # attached, or taken up from a journal
        _C.HAND_OVER: _S.DELIVERED,  # taken up from a journal
        _C.COMPLETE: _S.COMPLETED,  # taken up from a journal
        _C.FAIL: _S.FAILED,
        _C.RELEASE: _S.RELEASED,
    },
    _S.UPLOADING: {
        _C.HAND_OVER: _S.DELIVERED,
        _C.SEND_AGAIN: _S.QUEUED,
        _C.ACCEPT: _S.WAITING,
        _C.FAIL: _S.FAILED,
        _C.RELEASE: _S.RELEASED,
    },
    _S.DELIVERED: {
        _C.SEND_AGAIN: _S.QUEUED,
        _C.ACCEPT: _S.WAITING,
        _C.FAIL: _S.FAILED,
        _C.GIVE_UP: _S.UNKNOWN,
        _C.RELEASE: _S.RELEASED,
    },
    _S.WAITING: {
        _C.COMPLETE: _S.COMPLETED,
        _C.FAIL: _S.FAILED,
        _C.EXPIRE: _S.EXPIRED,
        _C.RELEASE: _S.RELEASED,
    },
    _S.COMPLETED: {},
    _S.FAILED: {},
    _S.UNKNOWN: {},
    _S.EXPIRED: {},
    _S.RELEASED: {},
}

TERMINAL = frozenset(state for state, changes in TRANSITIONS.items() if not changes)
# From here on a second submission could be a second payment.
SENT = frozenset({_S.DELIVERED, _S.WAITING, _S.COMPLETED, _S.UNKNOWN, _S.EXPIRED})


def after(state: JobState, change: Change) -> JobState:
    """Return the state that follows.

    Raises:
        RuntimeError: The table has no such transition: a mistake in this library.
    """
    try:
        return TRANSITIONS[state][change]
    except KeyError:
        raise RuntimeError(f"a job that is {state} cannot become {change!r}") from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = [
        f"    {state} --> {target}: {change}"
        for state, changes in TRANSITIONS.items()
        for change, target in changes.items()
    ]
    ends = [f"    {state} --> [*]" for state in JobState if state in TERMINAL]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {JobState.QUEUED}", *lines, *ends])
