from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async import errors
from musicgpt_async._rules import protocol, retrying
from musicgpt_async._rules.protocol import Answer
from musicgpt_async._rules.retrying import (
    NOT_YET,
    REFUSED_ATTACHED_LOOKS,
    REFUSED_FOR,
    REFUSED_LOOKS,
    Verdict,
    gives_up,
    look_is_refused,
    pause_after,
    submit_verdict,
)
from musicgpt_async.errors import MusicGPTError

REFUSED, NOT_ACCEPTED = Verdict.REFUSED, Verdict.NOT_ACCEPTED
UNKNOWN, NOT_DELIVERED = Verdict.UNKNOWN, Verdict.NOT_DELIVERED

# Promise 1, written out by hand: status → (verdict while the boundary was held back, and after it
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
    429: (NOT_ACCEPTED, NOT_ACCEPTED),
    500: (NOT_DELIVERED, UNKNOWN),
    501: (NOT_DELIVERED, UNKNOWN),
    502: (NOT_DELIVERED, UNKNOWN),
    503: (NOT_ACCEPTED, NOT_ACCEPTED),
    504: (NOT_DELIVERED, UNKNOWN),
    507: (NOT_DELIVERED, UNKNOWN),
    520: (NOT_DELIVERED, UNKNOWN),
    599: (NOT_DELIVERED, UNKNOWN),
}

BY_FAILURE = {
    errors.TransportError("broke"): (NOT_DELIVERED, UNKNOWN),
    errors.StalledError("stalled"): (NOT_DELIVERED, UNKNOWN),
    errors.ProtocolError("a 200 that cannot be read"): (NOT_DELIVERED, UNKNOWN),
    errors.SourceError("cannot be read"): (REFUSED, REFUSED),
    errors.SourceChangedError("changed"): (REFUSED, REFUSED),
    errors.ReleasedError("let go of"): (REFUSED, REFUSED),
    errors.JournalError("cannot be written"): (REFUSED, REFUSED),
}


def error_of(status: int, body: bytes = b"") -> MusicGPTError:
    """Return the error that an answer makes."""
    with pytest.raises(MusicGPTError) as caught:
        protocol.read(Answer(status, {}, body), now=0.0, what="The submit")
    return caught.value


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize(("status", "verdicts"), BY_STATUS.items())
@pytest.mark.parametrize("body", [b"", b'{"detail": "no"}', b"<html>"])
def test_every_status_has_the_verdict_that_was_promised(
    status: int, verdicts: tuple[Verdict, Verdict], delivered: bool, body: bytes
) -> None:
    """What an answer means for the next step depends on its status and on nothing in its body."""
    assert submit_verdict(error_of(status, body), delivered=delivered) is verdicts[delivered]


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize(("error", "verdicts"), BY_FAILURE.items(), ids=str)
def test_every_failure_has_the_verdict_that_was_promised(
    error: MusicGPTError, verdicts: tuple[Verdict, Verdict], delivered: bool
) -> None:
    """A lost answer is unknown, a broken upload is not delivered, a bad track is refused."""
    assert submit_verdict(error, delivered=delivered) is verdicts[delivered]


def test_a_yes_that_says_no_is_a_refusal() -> None:
    """``success: false`` in a 200 is an answer like any other."""
    error = error_of(200, b'{"success": false, "error": "no"}')
    assert {submit_verdict(error, delivered=d) for d in (False, True)} == {REFUSED}


@given(status=st.integers(300, 599), body=st.binary(max_size=200))
def test_what_was_delivered_goes_out_again_only_where_the_vendor_did_not_take_it(
    status: int, body: bytes
) -> None:
    """After the boundary only 429 and 503 ever lead to a second submission."""
    again = submit_verdict(error_of(status, body), delivered=True) in (NOT_ACCEPTED, NOT_DELIVERED)
    assert again == (status in (429, 503))


def test_not_delivered_is_never_said_of_what_was() -> None:
    """No error at all reads as "not delivered" once the whole track went out."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, MusicGPTError)
    ]
    assert len(kinds) > 20
    for kind, status in itertools.product(kinds, [None, *BY_STATUS]):
        error = kind("x", status=status)
        assert submit_verdict(error, delivered=True) is not NOT_DELIVERED
        assert submit_verdict(error, delivered=False) is not UNKNOWN


@pytest.mark.parametrize("status", [200, 302, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("waited", [None, 0.0, 1e6])
def test_a_failed_look_is_no_failed_job(status: int, waited: float | None) -> None:
    """A limit, a redirect or the vendor's own failure speaks against the moment."""
    error = error_of(status, b'{"success": false}')
    assert not look_is_refused(error, waited=waited)


@pytest.mark.parametrize("status", [408, 425])
def test_a_look_that_took_too_long_is_no_refusal(status: int) -> None:
    """A timeout that a server reports is as passing as one that the client sees."""
    assert not look_is_refused(error_of(status), waited=1e6)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 422])
def test_a_no_to_a_look_speaks_against_the_job(status: int) -> None:
    """A wrong key or a wrong task_id does not come right by waiting."""
    assert look_is_refused(error_of(status), waited=0.0)


def test_nothing_there_is_not_yet_for_a_while() -> None:
    """A 404 soon after the submit is "not yet"; where nobody knows when that was, it is a no."""
    missing = error_of(404)
    assert not look_is_refused(missing, waited=0.0)
    assert not look_is_refused(missing, waited=NOT_YET)
    assert look_is_refused(missing, waited=NOT_YET + 1)
    assert look_is_refused(missing, waited=None)


@pytest.mark.parametrize(
    "error",
    [errors.TransportError("x"), errors.StalledError("x"), errors.ProtocolError("x")],
)
def test_a_network_failure_never_speaks_against_a_job(error: MusicGPTError) -> None:
    """No connection and no readable answer say nothing of the job."""
    assert not look_is_refused(error, waited=None)


def test_a_wait_is_broken_off_only_after_many_and_long_refusals() -> None:
    """Many alone or long alone is not enough; an attached id, maybe mistyped, has less patience."""
    assert not gives_up(REFUSED_LOOKS, lasted=REFUSED_FOR - 1, attached=False)
    assert not gives_up(REFUSED_LOOKS - 1, lasted=REFUSED_FOR * 9, attached=False)
    assert gives_up(REFUSED_LOOKS, lasted=REFUSED_FOR, attached=False)
    assert not gives_up(REFUSED_ATTACHED_LOOKS - 1, lasted=1e9, attached=True)
    assert gives_up(REFUSED_ATTACHED_LOOKS, lasted=0.0, attached=True)


@given(st.integers(1, 900))
def test_pauses_grow_and_are_bounded(refusals: int) -> None:
    """Each refusal waits at least as long as the one before, half a second to half a minute."""
    assert 0.5 <= pause_after(refusals) <= pause_after(refusals + 1) <= 30.0


def test_the_lists_of_statuses_do_not_contradict_each_other() -> None:
    """A link that has run out is not one that may come right by itself."""
    assert not retrying.EXPIRED_LINK & retrying.PASSING
    assert retrying.NOT_ACCEPTED <= retrying.PASSING
