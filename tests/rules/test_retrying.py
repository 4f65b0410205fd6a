from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async import errors
from musicgpt_async._rules import protocol, retrying
from musicgpt_async._rules.protocol import Response
from musicgpt_async._rules.retrying import (
    MAX_REFUSED_ATTACHED_POLLS,
    MAX_REFUSED_POLLS,
    MIN_REFUSED_TIME,
    NOT_FOUND_GRACE,
    SubmitOutcome,
    is_permanent_poll_error,
    poll_backoff,
    should_give_up,
    submit_outcome,
)
from musicgpt_async.errors import MusicGPTError

REFUSED, NOT_ACCEPTED_STATUSES = SubmitOutcome.REFUSED, SubmitOutcome.NOT_ACCEPTED
UNKNOWN, NOT_DELIVERED = SubmitOutcome.UNKNOWN, SubmitOutcome.NOT_DELIVERED

# Promise 1, written as a table: status → (verdict while the boundary was held back, and after it
# went out). 429 and 503 mean "not accepted"; 500, 502 and 504 may have been accepted.
BY_STATUS = {
    301: (REFUSED, REFUSED),
    302: (REFUSED, REFUSED),
    303: (REFUSED, REFUSED),
    304: (REFUSED, REFUSED),
    307: (REFUSED, REFUSED),
    308: (REFUSED, REFUSED),
    400: (REFUSED, REFUSED),
    401: (REFUSED, REFUSED),
    402: (REFUSED, REFUSED),
    403: (REFUSED, REFUSED),
    404: (REFUSED, REFUSED),
    405: (REFUSED, REFUSED),
    408: (NOT_DELIVERED, UNKNOWN),
    409: (REFUSED, REFUSED),
    411: (REFUSED, REFUSED),
    413: (REFUSED, REFUSED),
    415: (REFUSED, REFUSED),
    418: (REFUSED, REFUSED),
    422: (REFUSED, REFUSED),
    429: (NOT_ACCEPTED_STATUSES, NOT_ACCEPTED_STATUSES),
    500: (NOT_DELIVERED, UNKNOWN),
    501: (NOT_DELIVERED, UNKNOWN),
    502: (NOT_DELIVERED, UNKNOWN),
    503: (NOT_ACCEPTED_STATUSES, NOT_ACCEPTED_STATUSES),
    504: (NOT_DELIVERED, UNKNOWN),
    507: (NOT_DELIVERED, UNKNOWN),
    520: (NOT_DELIVERED, UNKNOWN),
    599: (NOT_DELIVERED, UNKNOWN),
}

BY_FAILURE = {
    errors.TransportError("broke"): (NOT_DELIVERED, UNKNOWN),
    errors.TransportTimeoutError("stalled"): (NOT_DELIVERED, UNKNOWN),
    errors.ProtocolError("a 200 that cannot be read"): (NOT_DELIVERED, UNKNOWN),
    errors.SourceError("cannot be read"): (REFUSED, REFUSED),
    errors.SourceChangedError("changed"): (REFUSED, REFUSED),
    errors.JobDetachedError("let go of"): (REFUSED, REFUSED),
    errors.JournalError("cannot be written"): (REFUSED, REFUSED),
}


def error_of(status: int, body: bytes = b"") -> MusicGPTError:
    """Return the error that a response is converted to."""
    with pytest.raises(MusicGPTError) as caught:
        protocol.parse_response(Response(status, {}, body), now=0.0, subject="The submit")
    return caught.value


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize(("status", "verdicts"), BY_STATUS.items())
@pytest.mark.parametrize("body", [b"", b'{"detail": "no"}', b"<html>"])
def test_every_status_has_the_verdict_that_was_promised(
    status: int, verdicts: tuple[SubmitOutcome, SubmitOutcome], delivered: bool, body: bytes
) -> None:
    """The outcome depends on the status, and not on the body."""
    assert submit_outcome(error_of(status, body), delivered=delivered) is verdicts[delivered]


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize(("error", "verdicts"), BY_FAILURE.items(), ids=str)
def test_every_failure_has_the_verdict_that_was_promised(
    error: MusicGPTError, verdicts: tuple[SubmitOutcome, SubmitOutcome], delivered: bool
) -> None:
    """A lost response is unknown, a failed upload is not delivered, a bad track is refused."""
    assert submit_outcome(error, delivered=delivered) is verdicts[delivered]


def test_a_yes_that_says_no_is_a_refusal() -> None:
    """``success: false`` in a 200 is a refusal."""
    error = error_of(200, b'{"success": false, "error": "no"}')
    assert {submit_outcome(error, delivered=d) for d in (False, True)} == {REFUSED}


@given(status=st.integers(300, 599), body=st.binary(max_size=200))
def test_what_was_delivered_goes_out_again_only_where_the_vendor_did_not_take_it(
    status: int, body: bytes
) -> None:
    """After the boundary only 429 and 503 ever lead to a second submission."""
    again = submit_outcome(error_of(status, body), delivered=True) in (
        NOT_ACCEPTED_STATUSES,
        NOT_DELIVERED,
    )
    assert again == (status in (429, 503))


def test_not_delivered_is_never_said_of_what_was() -> None:
    """No error means "not delivered" after the closing boundary was written."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, MusicGPTError)
    ]
    assert len(kinds) > 20
    for kind, status in itertools.product(kinds, [None, *BY_STATUS]):
        error = kind("x", status=status)
        assert submit_outcome(error, delivered=True) is not NOT_DELIVERED
        assert submit_outcome(error, delivered=False) is not UNKNOWN


@pytest.mark.parametrize("status", [200, 302, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("waited", [None, 0.0, 1e6])
def test_a_failed_poll_is_not_a_failed_job(status: int, waited: float | None) -> None:
    """A limit, a redirect or a server error says nothing about the job itself."""
    error = error_of(status, b'{"success": false}')
    assert not is_permanent_poll_error(error, waited=waited)


@pytest.mark.parametrize("status", [408, 425])
def test_a_poll_that_took_too_long_is_not_a_refusal(status: int) -> None:
    """A timeout that a server reports is as passing as one that the client sees."""
    assert not is_permanent_poll_error(error_of(status), waited=1e6)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 422])
def test_a_refused_poll_is_about_the_job(status: int) -> None:
    """A wrong key or a wrong task_id does not come right by waiting."""
    assert is_permanent_poll_error(error_of(status), waited=0.0)


def test_nothing_there_is_not_yet_for_a_while() -> None:
    """A 404 soon after the submit is "not yet"; if its time is unknown, it is a refusal."""
    missing = error_of(404)
    assert not is_permanent_poll_error(missing, waited=0.0)
    assert not is_permanent_poll_error(missing, waited=NOT_FOUND_GRACE)
    assert is_permanent_poll_error(missing, waited=NOT_FOUND_GRACE + 1)
    assert is_permanent_poll_error(missing, waited=None)


@pytest.mark.parametrize(
    "error",
    [errors.TransportError("x"), errors.TransportTimeoutError("x"), errors.ProtocolError("x")],
)
def test_a_network_failure_never_speaks_against_a_job(error: MusicGPTError) -> None:
    """A failed connection or an unreadable response says nothing about the job."""
    assert not is_permanent_poll_error(error, waited=None)


def test_a_wait_is_broken_off_only_after_many_and_long_refusals() -> None:
    """Many alone or long alone is not enough; an attached id, maybe mistyped, has less patience."""
    assert not should_give_up(MAX_REFUSED_POLLS, duration=MIN_REFUSED_TIME - 1, attached=False)
    assert not should_give_up(MAX_REFUSED_POLLS - 1, duration=MIN_REFUSED_TIME * 9, attached=False)
    assert should_give_up(MAX_REFUSED_POLLS, duration=MIN_REFUSED_TIME, attached=False)
    assert not should_give_up(MAX_REFUSED_ATTACHED_POLLS - 1, duration=1e9, attached=True)
    assert should_give_up(MAX_REFUSED_ATTACHED_POLLS, duration=0.0, attached=True)


@given(st.integers(1, 900))
def test_pauses_grow_and_are_bounded(refusals: int) -> None:
    """Each refusal waits at least as long as the one before, half a second to half a minute."""
    assert 0.5 <= poll_backoff(refusals) <= poll_backoff(refusals + 1) <= 30.0


def test_the_lists_of_statuses_do_not_contradict_each_other() -> None:
    """A link that has run out is not one that may come right by itself."""
    assert not retrying.EXPIRED_LINK_STATUSES & retrying.TRANSIENT_STATUSES
    assert retrying.NOT_ACCEPTED_STATUSES <= retrying.TRANSIENT_STATUSES
