"""Responses as MusicGPT's documents and its users show them, and how they are parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from musicgpt_async._rules import hosts, payloads, protocol, retrying
from musicgpt_async._rules.payloads import Progress
from musicgpt_async._rules.protocol import Response
from musicgpt_async._rules.retrying import SubmitOutcome
from musicgpt_async.errors import (
    APIError,
    BadRequestError,
    EndpointNotFoundError,
    ForbiddenError,
    InsufficientCreditsError,
    MusicGPTError,
    NotFoundError,
    ProtocolError,
    ValidationError,
)

NOW = 0.0
URL = "https://host.example/x/v2/Extraction"


def answer(status: int, body: Any, *, secret: str = "", **headers: str) -> Response:
    """Return a response of the API, with a body as JSON or as bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, headers, content, url=URL, secret=secret)


def refusal(given: Response) -> MusicGPTError:
    """Return the outcome of the response to a submit."""
    with pytest.raises(MusicGPTError) as caught:
        protocol.parse_acceptance(given, now=NOW, subject="The submit of a.wav")
    return caught.value


def test_a_route_that_does_not_exist_is_not_an_unknown_task() -> None:
    """FastAPI's own 404 names the address and the variable, and refuses the submit for certain."""
    error = refusal(answer(404, {"detail": "Not Found"}))
    assert isinstance(error, EndpointNotFoundError)
    assert error.status == 404
    assert URL in str(error)
    assert "MUSICGPT_BASE_URL" in str(error)
    assert retrying.submit_outcome(error, delivered=True) is SubmitOutcome.REFUSED
    assert retrying.is_permanent_poll_error(error, waited=0.0)


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
    assert not retrying.is_permanent_poll_error(error, waited=1.0)


def test_a_308_to_the_newer_host_stays_refused_with_its_address() -> None:
    """The key does not follow a redirect; the words say what to set."""
    error = refusal(answer(308, b"", location="https://api.wav.com/api/public/v1/Extraction"))
    assert isinstance(error, ProtocolError)
    assert "MUSICGPT_BASE_URL=https://api.wav.com/api/public/v1" in str(error)
    assert "was not followed" in str(error)
    assert retrying.submit_outcome(error, delivered=True) is SubmitOutcome.REFUSED


def test_a_403_says_that_the_key_may_be_wrong() -> None:
    """The newer page knows no 401: a 403 "may be due to incorrect API key"."""
    error = refusal(answer(403, {"detail": "Forbidden"}))
    assert isinstance(error, ForbiddenError)
    assert "key may be wrong" in str(error)


def test_byids_no_with_a_failed_conversion_is_that_jobs_failure() -> None:
    """`success: false` beside a conversion that failed is read as the end of the job."""
    body = {"success": False, "conversion": {"task_id": "t", "status": "FAILED", "status_msg": "x"}}
    conversion = protocol.parse_conversion(answer(200, body), now=NOW, subject="It")
    assert (conversion.progress, conversion.message) == (Progress.FAILED, "x")
    body["conversion"] = {"task_id": "t", "status": "PENDING"}
    with pytest.raises(APIError):
        protocol.parse_conversion(answer(200, body), now=NOW, subject="It")


@pytest.mark.parametrize("key", ["task", "id", "a", "success", "true", "completed", '"', "k3y-9"])
def test_the_key_is_never_replaced_in_data(key: str) -> None:
    """A key that is a word of the API leaves acceptances and conversions as they are."""
    accepted = {"success": True, "task_id": f"1-{key}", "conversion_id": "c", "eta": 3}
    assert protocol.parse_acceptance(
        answer(200, accepted, secret=key), now=NOW, subject="It"
    ).task_id == (f"1-{key}")
    link = f"https://host.example/{key.strip(chr(34))}.mp3"
    conversion = {"task_id": "t", "status": "completed", "audio_url": {"vocals": link}}
    read = protocol.parse_conversion(
        answer(200, {"success": True, "conversion": conversion}, secret=key), now=NOW, subject="It"
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
def test_the_key_is_redacted_in_every_message(given: Response) -> None:
    """If a response repeats the key, neither our message nor MusicGPT's shows it."""
    error = refusal(given)
    assert given.secret not in str(error)
    assert given.secret not in (error.vendor_message or "")
    assert "***" in str(error)


def test_the_key_is_redacted_in_the_words_of_a_failure() -> None:
    """A `status_msg` becomes a message for people as well."""
    body = {"conversion": {"task_id": "t", "status": "ERROR", "status_msg": "bad k3y-9"}}
    read = protocol.parse_conversion(answer(200, body, secret="k3y-9"), now=NOW, subject="It")
    assert read.message == "bad ***"


@pytest.mark.parametrize(
    "host",
    [
        "lalals.s3.amazonaws.com",
        "musicgpt.s3.amazonaws.com",
        "cdn1.wav.com",
        "cdn1.musicgpt.com",
    ],
)
def test_links_to_the_documented_file_hosts_are_followed(host: str) -> None:
    """Both generations' hosts are public and https, as are the buckets."""
    hosts.check_link(f"https://{host}/a/vocals.mp3?X-Amz-Signature=1", allow_loopback=False)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, {"success": False, "message": "Invalid request parameters"}, BadRequestError,
         "Invalid request parameters"),
        (400, {"success": False,
               "message": "The file could not be downloaded from the provided URL"},
         BadRequestError, "The file could not be downloaded from the provided URL"),
        (402, {"success": False, "message": "Insufficient credit balance"},
         InsufficientCreditsError, "Insufficient credit balance"),
        (422, {"success": False, "message": "Either audio_url or audio_file must be provided."},
         ValidationError, "Either audio_url or audio_file must be provided."),
        (422, {"detail": [{"loc": ["body", "eco_mode"], "msg": "no boolean", "type": "bool"}]},
         ValidationError, "body.eco_mode: no boolean"),
    ],
)  # fmt: skip
def test_documented_refusals_have_musicgpts_own_message(
    status: int, body: Any, kind: type[APIError], words: str
) -> None:
    """Each of August 2026 has its class, and nothing was accepted."""
    error = refusal(answer(status, body))
    assert type(error) is kind
    assert error.vendor_message == words
    assert retrying.submit_outcome(error, delivered=True) is SubmitOutcome.REFUSED


def test_the_samples_of_an_acceptance_are_read() -> None:
    """Estimates in credits and in dollars, and an eta that is unknown."""
    for told, estimate, eta in (
        ({"eta": 11, "credit_estimate": 2.5}, 2.5, 11.0),
        ({"eta": 147, "credit_estimate": 5.55}, 5.55, 147.0),
        ({"eta": -1, "credit_estimate": 0.09}, 0.09, None),
    ):
        body = {"success": True, "task_id": "t", "conversion_id": "c", **told}
        accepted = protocol.parse_acceptance(answer(200, body), now=NOW, subject="It")
        assert (accepted.credit_estimate, accepted.eta) == (estimate, eta)


def test_the_duration_of_a_conversion_is_the_audios_length() -> None:
    """`conversion_duration` is not the time that the conversion took; the cost may be a string."""
    told = {"task_id": "t", "status": "COMPLETED", "conversion_duration": 215.3,
            "conversion_cost": "5.55", "createdAt": "2026-08-17T09:12:44.557077+00:00"}  # fmt: skip
    read = protocol.parse_conversion(answer(200, {"conversion": told}), now=NOW, subject="It")
    extraction = read.extraction("t")
    assert (extraction.duration, extraction.cost) == (215.3, 5.55)


def test_the_webhook_sample_of_the_second_generation_is_read() -> None:
    """MP3 alone, as a string of JSON with line breaks, a cost that is a string, and no status."""
    text = '{\n    "vocals": "https://cdn1.wav.com/v.mp3",\n    "bass": "https://cdn1.wav.com/b.mp3"\n}'
    read = payloads.parse_delivery(
        {"success": True, "conversion_type": "Extraction", "task_id": "t", "conversion_id": "c",
         "audio_url": text, "conversion_cost": "5.55", "conversion_duration": 215.3}
    )  # fmt: skip
    assert read.progress is Progress.COMPLETED
    assert [links.mp3 for links in read.links.values()] == [
        "https://cdn1.wav.com/v.mp3",
        "https://cdn1.wav.com/b.mp3",
    ]
    assert all(links.wav is None for links in read.links.values())
    assert read.cost == 5.55


def test_the_form_of_a_submit_is_the_documented_one() -> None:
    """`audio_url` is empty beside a file; lists are JSON; `eco_mode` is sent only if true."""
    fields = payloads.submit_fields(stems=["vocals"], preprocessing=["Denoise"])
    assert fields == {
        "audio_url": "",
        "stems": '["vocals"]',
        "preprocessing_options": '["Denoise"]',
    }
    more = payloads.submit_fields(
        stems=(), preprocessing=(), eco_mode=True, audio_url="https://h/a", webhook_url="https://w"
    )
    assert (more["stems"], more["eco_mode"]) == ("[]", "true")
    assert (more["audio_url"], more["webhook_url"]) == ("https://h/a", "https://w")
