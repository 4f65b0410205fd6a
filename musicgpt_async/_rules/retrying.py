"""Decide what follows a failed call: retry after a delay, stop, or an unknown outcome."""

from __future__ import annotations

from enum import Enum

from musicgpt_async.errors import (
    APIError,
    EndpointNotFoundError,
    MusicGPTError,
    ProtocolError,
    TransportError,
)

# Statuses that mean that MusicGPT did not accept the submit.
NOT_ACCEPTED_STATUSES = frozenset({429, 503})
# Statuses of a file host for a link that has expired or moved: byId returns fresh links.
EXPIRED_LINK_STATUSES = frozenset({401, 403, 404, 410})
# Statuses of a file host that may succeed shortly after.
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_REFUSED_POLLS = 5  # consecutive refusals after which a job is no longer polled
MIN_REFUSED_TIME = 60.0  # seconds that these refusals must have lasted
MAX_REFUSED_ATTACHED_POLLS = 3  # the same for an attached task_id, which may be mistyped
NOT_FOUND_GRACE = 60.0  # seconds after acceptance during which a 404 means "not yet"
_RESPONSE_FACTOR = 4.0  # longest duration of a response, in read timeouts
# Bytes per second. Before MusicGPT responds to a submit, it may forward the upload to its storage.
# Over one connection to a bucket a server seldom forwards less than 10 MiB/s; a fifth of that adds
# 5 seconds for a track of 10 MiB and 8.5 minutes for one of 1 GiB.
_MIN_FORWARDING_RATE = 2 << 20


class SubmitOutcome(Enum):
    """The outcome of a submit."""

    ACCEPTED = "accepted"
    """MusicGPT returned the id of its task."""
    NOT_DELIVERED = "not delivered"
    """The server cannot have the complete track: it may be sent again."""
    NOT_ACCEPTED = "not accepted"
    """MusicGPT has no capacity: the job keeps its position in the queue."""
    REFUSED = "refused"
    """MusicGPT rejected the submit, or the track is unusable: sending it again would not help."""
    UNKNOWN = "unknown"
    """The track was delivered and may have been accepted: it is never sent again automatically."""


def submit_outcome(error: MusicGPTError, *, delivered: bool) -> SubmitOutcome:
    """Return the outcome of a failed submit.

    Args:
        error: The error that the response, or the lack of one, was converted to.
        delivered: Whether the closing boundary was written to the transport.
    """
    if error.status in NOT_ACCEPTED_STATUSES:
        return SubmitOutcome.NOT_ACCEPTED
    if _may_have_been_accepted(error):
        return SubmitOutcome.UNKNOWN if delivered else SubmitOutcome.NOT_DELIVERED
    return SubmitOutcome.REFUSED


def response_timeout(request_timeout: float, size: int | None = None) -> float:
    """Return the maximum seconds from the end of a request to the end of its response.

    A server that keeps sending bytes, such as ``102 Processing``, never reaches the read timeout,
    so the total duration needs a limit too.

    Args:
        request_timeout: Seconds without a byte after which a call fails.
        size: Bytes of the upload, or ``None`` if there is none.
    """
    return _RESPONSE_FACTOR * request_timeout + (size or 0) / _MIN_FORWARDING_RATE


def is_permanent_poll_error(error: MusicGPTError, *, waited: float | None) -> bool:
    """Return whether a failed poll says something about the job, not about the service.

    Args:
        error: The error of the poll.
        waited: Seconds since the job was accepted, or ``None`` if unknown.
    """
    if error.status == 404 and not isinstance(error, EndpointNotFoundError):
        return waited is None or waited > NOT_FOUND_GRACE
    status = error.status or 0
    is_judgement = isinstance(error, (APIError, EndpointNotFoundError))
    return is_judgement and 400 <= status < 500 and status not in TRANSIENT_STATUSES


def should_give_up(refusals: int, *, duration: float, attached: bool) -> bool:
    """Return whether to stop polling a job.

    Args:
        refusals: Number of consecutive refused polls.
        duration: Seconds since the first of them.
        attached: Whether the user passed the task_id to ``attach``.
    """
    if attached:
        return refusals >= MAX_REFUSED_ATTACHED_POLLS
    return refusals >= MAX_REFUSED_POLLS and duration >= MIN_REFUSED_TIME


def backoff(attempt: int, *, first: float, most: float) -> float:
    """Return the delay after an attempt, doubled each time up to a limit.

    Args:
        attempt: Number of attempts so far, at least 1.
        first: Seconds after the first attempt.
        most: Maximum seconds.
    """
    return min(first * 2.0 ** min(max(attempt, 1) - 1, 30), most)


def poll_backoff(refusals: int) -> float:
    """Return the seconds to wait after a refused poll: 0.5, 1, 2, … 30."""
    return backoff(refusals, first=0.5, most=30.0)


def delivery_backoff(attempt: int) -> float:
    """Return the seconds to wait before an undelivered track is sent again: 0.2, 0.4, … 20."""
    return backoff(attempt, first=0.2, most=20.0)


def search_backoff(attempt: int) -> float:
    """Return the seconds to wait before the next search for a lost task: 1, 2, … 30."""
    return backoff(attempt, first=1.0, most=30.0)


def _may_have_been_accepted(error: MusicGPTError) -> bool:
    if isinstance(error, ProtocolError):
        # Without a status: a 2xx that cannot be parsed. A redirect has one, and accepts nothing.
        return error.status is None
    if isinstance(error, APIError):
        return error.status is not None and (error.status >= 500 or error.status == 408)
    return isinstance(error, TransportError)
