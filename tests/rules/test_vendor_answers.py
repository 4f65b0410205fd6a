"""Answers as the vendor's documents and its users show them: who may read what into them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from musicgpt_async._rules import protocol, retrying
from musicgpt_async._rules.payloads import Progress
from musicgpt_async._rules.protocol import Answer
from musicgpt_async._rules.retrying import Verdict
from musicgpt_async.errors import (
    APIError,
    EndpointNotFoundError,
    ForbiddenError,
    MusicGPTError,
    NotFoundError,
    ProtocolError,
)

NOW = 0.0
URL = "https://host.example/x/v2/Extraction"


def answer(status: int, body: Any, *, secret: str = "", **headers: str) -> Answer:
    """An answer of the API, its body given as JSON or as it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, headers, content, url=URL, secret=secret)


def refusal(given: Answer) -> MusicGPTError:
    """What the answer to a submit is turned into."""
    with pytest.raises(MusicGPTError) as caught:
        protocol.read_acceptance(given, now=NOW, what="The submit of a.wav")
    return caught.value


def test_a_route_that_does_not_exist_is_not_an_unknown_task() -> None:
    """FastAPI's own 404 names the address and the variable, and refuses the submit for certain."""
    error = refusal(answer(404, {"detail": "Not Found"}))
    assert isinstance(error, EndpointNotFoundError)
    assert error.status == 404
    assert URL in str(error)
    assert "MUSICGPT_BASE_URL" in str(error)
    assert retrying.submit_verdict(error, delivered=True) is Verdict.REFUSED
    assert retrying.look_is_refused(error, waited=0.0)


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "Conversion not found"},
        {"success": False, "message": "Not Found"},
        {"success": False, "detail": "Not Found"},
        b"<html>404 Not Found</html>",
        b"",
    ],
)
def test_an_unknown_task_has_other_words(body: Any) -> None:
    """Any other 404 is about the task, and soon after the submit means "not yet"."""
    error = refusal(answer(404, body))
    assert isinstance(error, NotFoundError)
    assert not retrying.look_is_refused(error, waited=1.0)


def test_a_308_to_the_newer_host_stays_refused_with_its_address() -> None:
    """The key does not follow a redirect; the words say what to set."""
    error = refusal(answer(308, b"", location="https://api.wav.com/api/public/v1/Extraction"))
    assert isinstance(error, ProtocolError)
    assert "MUSICGPT_BASE_URL=https://api.wav.com/api/public/v1" in str(error)
    assert "was not followed" in str(error)
    assert retrying.submit_verdict(error, delivered=True) is Verdict.REFUSED


def test_a_403_says_that_the_key_may_be_wrong() -> None:
    """The newer page knows no 401: a 403 "may be due to incorrect API key"."""
    error = refusal(answer(403, {"detail": "Forbidden"}))
    assert isinstance(error, ForbiddenError)
    assert "key may be wrong" in str(error)


def test_byids_no_with_a_failed_conversion_is_that_jobs_failure() -> None:
    """`success: false` beside a conversion that failed is read as the end of the job."""
    body = {"success": False, "conversion": {"task_id": "t", "status": "FAILED", "status_msg": "x"}}
    conversion = protocol.read_conversion(answer(200, body), now=NOW, what="It")
    assert (conversion.progress, conversion.message) == (Progress.FAILED, "x")
    body["conversion"] = {"task_id": "t", "status": "PENDING"}
    with pytest.raises(APIError):
        protocol.read_conversion(answer(200, body), now=NOW, what="It")


@pytest.mark.parametrize("key", ["task", "id", "a", "success", "true", "completed", '"', "k3y-9"])
def test_the_key_is_never_replaced_in_data(key: str) -> None:
    """A key that is a word of the API leaves acceptances and conversions as they are."""
    accepted = {"success": True, "task_id": f"1-{key}", "conversion_id": "c", "eta": 3}
    assert protocol.read_acceptance(
        answer(200, accepted, secret=key), now=NOW, what="It"
    ).task_id == (f"1-{key}")
    link = f"https://host.example/{key.strip(chr(34))}.mp3"
    conversion = {"task_id": "t", "status": "completed", "audio_url": {"vocals": link}}
    read = protocol.read_conversion(
        answer(200, {"success": True, "conversion": conversion}, secret=key), now=NOW, what="It"
    )
    assert read.progress is Progress.COMPLETED
    assert read.links["vocals"].mp3 == link


@pytest.mark.parametrize(
    "given",
    [
        answer(401, {"message": "no k3y-9"}, secret="k3y-9"),
        answer(502, b"<html>k3y-9</html>", secret="k3y-9"),
        answer(302, b"", secret="k3y-9", location="https://login.example/?key=k3y-9"),
        answer(200, {"success": False, "error": {"message": "k3y-9"}}, secret="k3y-9"),
        answer(200, {"success": True, "note": "k3y-9"}, secret="k3y-9"),
        answer(200, b"k3y-9", secret="k3y-9"),
        answer(404, {"detail": "Not Found"}, secret="host"),
    ],
)
def test_the_key_is_redacted_in_every_message(given: Answer) -> None:
    """Whatever repeats it, neither the sentence nor the vendor's words show it."""
    error = refusal(given)
    assert given.secret not in str(error)
    assert given.secret not in (error.vendor_message or "")
    assert "***" in str(error)


def test_the_key_is_redacted_in_the_words_of_a_failure() -> None:
    """A `status_msg` becomes a message for people as well."""
    body = {"conversion": {"task_id": "t", "status": "ERROR", "status_msg": "bad k3y-9"}}
    read = protocol.read_conversion(answer(200, body, secret="k3y-9"), now=NOW, what="It")
    assert read.message == "bad ***"
