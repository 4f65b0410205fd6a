"""Again after n seconds, stop, or unknown: what a failed call means for what comes next."""

from __future__ import annotations

from enum import Enum

from musicgpt_async.errors import (
    APIError,
    EndpointNotFoundError,
    MusicGPTError,
    ProtocolError,
    TransportError,
)

# Statuses by which the vendor says that it did not take the submission.
NOT_ACCEPTED_STATUSES = frozenset({429, 503})
# A link that has run out, or moved: fresh ones come from byId.
EXPIRED_LINK_STATUSES = frozenset({401, 403, 404, 410})
# Answers of a file host that may be different a moment later.
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_REFUSED_POLLS = 5  # in a row, after which polling a job is given up
MIN_REFUSED_TIME = 60.0  # seconds that these refusals must have lasted
MAX_REFUSED_ATTACHED_POLLS = 3  # the same for an attached task_id, which may be mistyped
# Seconds after acceptance during which a 404 means "not yet".
NOT_FOUND_GRACE = 60.0
# A whole answer takes a few times as long as the server may be silent within it, at most.
_RESPONSE_FACTOR = 4.0
# Bytes a second. Before it answers a submit, MusicGPT may push the upload on to its storage; a
# server that does so over one connection to a bucket seldom does worse than 10 MiB/s. A fifth of
# that gives a track of 10 MiB 5 seconds more and one of 1 GiB 8.5 minutes more.
_MIN_FORWARDING_RATE = 2 << 20


class SubmitOutcome(Enum):
    """What became of a submit."""

    ACCEPTED = "accepted"
    """MusicGPT named its task."""
    NOT_DELIVERED = "not delivered"
    """No server can have the whole track: it may be sent again."""
    NOT_ACCEPTED = "not accepted"
    """The vendor is full: the job keeps its place in line."""
    REFUSED = "refused"
    """The vendor, or the track, says no: sending it again would not help."""
    UNKNOWN = "unknown"
    """The track went out whole and may have been accepted: never sent again by itself."""


def submit_outcome(error: MusicGPTError, *, delivered: bool) -> SubmitOutcome:
    """Return what a failed submit means.

    Args:
        error: What the answer or its absence was turned into.
        delivered: Whether the closing boundary was handed to the transport.
    """
    if error.status in NOT_ACCEPTED_STATUSES:
        return SubmitOutcome.NOT_ACCEPTED
    if _may_have_been_accepted(error):
        return SubmitOutcome.UNKNOWN if delivered else SubmitOutcome.NOT_DELIVERED
    return SubmitOutcome.REFUSED


def response_timeout(request_timeout: float, size: int | None = None) -> float:
    """Return the seconds in which a call has to be answered whole, once its body is out.

    A silence of ``request_timeout`` ends a call as well, but a server that sends something now and
    then, such as ``102 Processing``, is never silent.

    Args:
        request_timeout: Seconds without a byte after which a call is given up.
        size: Bytes of the upload, ``None`` if there is none.
    """
    return _RESPONSE_FACTOR * request_timeout + (size or 0) / _MIN_FORWARDING_RATE


def is_permanent_poll_error(error: MusicGPTError, *, waited: float | None) -> bool:
    """Return whether a failed look speaks against the job itself, not against the moment.

    Args:
        error: What the look was turned into.
        waited: Seconds since the job was accepted, ``None`` where nobody knows.
    """
    if error.status == 404 and not isinstance(error, EndpointNotFoundError):
        return waited is None or waited > NOT_FOUND_GRACE
    status = error.status or 0
    is_judgement = isinstance(error, (APIError, EndpointNotFoundError))
    return is_judgement and 400 <= status < 500 and status not in TRANSIENT_STATUSES


def should_give_up(refusals: int, *, duration: float, attached: bool) -> bool:
    """Return whether so many refused looks in a row, over so many seconds, are enough."""
    if attached:
        return refusals >= MAX_REFUSED_ATTACHED_POLLS
    return refusals >= MAX_REFUSED_POLLS and duration >= MIN_REFUSED_TIME


def backoff(attempt: int, *, first: float, most: float) -> float:
    """Return the seconds to wait after so many attempts: doubled each time, up to a limit.

    Args:
        attempt: Attempts so far, at least 1.
        first: Seconds after the first one.
        most: Seconds, at most.
    """
    return min(first * 2.0 ** min(max(attempt, 1) - 1, 30), most)


def poll_backoff(refusals: int) -> float:
    """Return the seconds to wait after a refused look: 0.5, 1, 2, … 30."""
    return backoff(refusals, first=0.5, most=30.0)


def delivery_backoff(attempt: int) -> float:
    """Return the seconds to wait before an undelivered track is sent again: 0.2, 0.4, … 20."""
    return backoff(attempt, first=0.2, most=20.0)


def search_backoff(attempt: int) -> float:
    """Return the seconds to wait before a lost task is looked for again: 1, 2, … 30."""
    return backoff(attempt, first=1.0, most=30.0)


def _may_have_been_accepted(error: MusicGPTError) -> bool:
    if isinstance(error, ProtocolError):
        # No status: a 2xx that cannot be read. A redirect has one, and accepts nothing.
        return error.status is None
    if isinstance(error, APIError):
        return error.status is not None and (error.status >= 500 or error.status == 408)
    return isinstance(error, TransportError)
