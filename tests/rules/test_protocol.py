from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from musicgpt_async import errors
from musicgpt_async._rules import protocol
from musicgpt_async._rules.protocol import MAX_RETRY_AFTER, Response, retry_after, validate_names
from musicgpt_async.errors import APIError, InvalidOptionError, MusicGPTError, ProtocolError
from musicgpt_async.models import Preprocessing, Stem

NOW = datetime(2025, 6, 1, 12, 0, tzinfo=UTC).timestamp()

KINDS = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.InsufficientCreditsError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    422: errors.ValidationError,
    429: errors.RateLimitError,
    500: errors.ServerError,
    502: errors.ServerError,
    503: errors.ServerError,
    504: errors.ServerError,
    599: errors.ServerError,
    405: APIError,
    413: APIError,
    418: APIError,
}

# Every shape of an error body that was seen, and the words in it.
BODIES: dict[bytes, str | None] = {
    b'{"success": false, "message": "no luck"}': "no luck",
    b'{"success": false, "error": "no luck"}': "no luck",
    b'{"success": false, "error": {"code": "E1", "message": "no luck", "details": "x"}}': "no luck",
    b'{"success": false, "error": {"code": "E1"}}': "E1",
    b'{"success": false, "error": {"details": [{"loc": ["a"], "msg": "bad"}]}}': "a: bad",
    b'{"detail": "no luck"}': "no luck",
    b'{"detail": [{"loc": ["body", "stems", 1], "msg": "unknown", "type": "enum"}]}': (
        "body.stems.1: unknown"
    ),
    b'{"detail": [{"loc": ["a"], "msg": "x"}, {"loc": ["b"], "msg": "y"}]}': "a: x; b: y",
    b'{"detail": ["x", "y"]}': "x; y",
    b'{"detail": [{"msg": "x"}]}': "x",
    b'{"success": false, "status_msg": "no luck"}': "no luck",
    b'{"message": "", "error": null, "detail": "no luck"}': "no luck",
    b'{"message": {"message": {"msg": "deep"}}}': "deep",
    b'{"message": "two\\nlines\\u0000"}': "two lines",
    b"<html>\n<h1>Bad gateway</h1>": "<html> <h1>Bad gateway</h1>",
    b"plain words": "plain words",
    b"": None,
    b"{}": None,
    b"[]": "[]",
    b'{"detail": []}': None,
    b'{"success": false}': None,
}


def refused(status: int, body: bytes = b"", **headers: str) -> APIError:
    """Return the error that a response is converted to."""
    with pytest.raises(APIError) as caught:
        protocol.parse_response(
            Response(status, headers, body), now=NOW, subject="The submit of a.wav"
        )
    return caught.value


@pytest.mark.parametrize(("status", "kind"), KINDS.items())
def test_every_status_has_its_error(status: int, kind: type[APIError]) -> None:
    """The error has the status and MusicGPT's message, and says what to do next."""
    error = refused(status, b'{"detail": "no luck"}')
    assert type(error) is kind
    assert (error.status, error.vendor_message) == (status, "no luck")
    assert "The submit of a.wav" in str(error)
    assert str(status) in str(error)
    assert '"no luck"' in str(error)
    assert kind.advice
    assert str(error).endswith(kind.advice)


@pytest.mark.parametrize(("body", "words"), BODIES.items(), ids=range(len(BODIES)))
def test_every_error_body_gives_its_words(body: bytes, words: str | None) -> None:
    """MusicGPT's message is found in every shape; a missing one is None."""
    assert refused(400, body).vendor_message == words


@pytest.mark.parametrize("success", [False, "false", "False", " FALSE "])
def test_a_200_that_says_no_is_an_error(success: Any) -> None:
    """``success: false`` counts for more than the status."""
    error = refused(200, json.dumps({"success": success, "error": {"message": "no"}}).encode())
    assert (error.status, error.vendor_message) == (200, "no")


@pytest.mark.parametrize("data", [{"success": True}, {}, {"task_id": "t", "success": "true"}])
def test_a_yes_gives_its_object(data: dict[str, Any]) -> None:
    """A 2xx with an object is handed on as it is."""
    for status in (200, 201, 202):
        answer = Response(status, {}, json.dumps(data).encode())
        assert protocol.parse_response(answer, now=NOW, subject="It") == data


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_a_protocol_error_that_says_where(status: int) -> None:
    """It names the place, bears the status, and points at the base URL."""
    answer = Response(status, {"location": "https://login.example/\n" + "x" * 5000}, b"moved")
    with pytest.raises(ProtocolError, match=r"login\.example") as caught:
        protocol.parse_response(answer, now=NOW, subject="It")
    assert caught.value.status == status
    assert "MUSICGPT_BASE_URL" in str(caught.value)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


@given(
    status=st.integers(100, 999),
    body=st.binary(max_size=300) | st.text(max_size=300).map(str.encode),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "location", "content-type"]), st.text(max_size=30)
    ),
)
@example(status=200, body=b"[" * 100_000, headers={})
@example(status=400, body=b'{"a":' * 100_000, headers={})
@example(status=200, body=b"9" * 10_000, headers={})
@example(status=500, body=b'{"message": "\\ud800"}', headers={})
@example(status=429, body=b"", headers={"retry-after": "9" * 5000})
def test_whatever_is_answered_is_an_object_or_an_error_of_the_library(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    """No status, body or header lets anything else out, and messages stay on one short line."""
    try:
        value: Any = protocol.parse_response(Response(status, headers, body), now=NOW, subject="It")
    except (APIError, ProtocolError) as error:
        value = error
    if isinstance(value, MusicGPTError):
        assert len(str(value)) < 1000
        assert len(str(value).splitlines()) == 1
        assert value.vendor_message is None or len(value.vendor_message) <= 200
    else:
        assert isinstance(value, dict)


def test_a_redirect_to_a_place_that_is_no_utf_8_is_a_protocol_error() -> None:
    """Aiohttp hands a header's foreign bytes on as surrogates; the error comes out all the same."""
    place = b"https://login.example/caf\xe9".decode("utf-8", "surrogateescape")
    with pytest.raises(ProtocolError, match=r"login\.example"):
        protocol.parse_response(Response(302, {"location": place}, b""), now=NOW, subject="It")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (" 7 ", 7.0),
        ("-3", 0.0),
        ("99999", MAX_RETRY_AFTER),
        ("1e30", MAX_RETRY_AFTER),
        (format_datetime(datetime(2025, 6, 1, 12, 0, 30, tzinfo=UTC), usegmt=True), 30.0),
        ("Sun, 01 Jun 2025 14:00:30 +0200", 30.0),
        ("Sun, 01 Jun 2025 12:00:30", 30.0),
        ("Sun, 01 Jun 2025 12:00:30 -0000", 30.0),
        ("Sunday, 01-Jun-25 12:00:30 GMT", 30.0),
        ("Sun Jun  1 12:00:30 2025", 30.0),
        ("Sun, 01 Jun 2025 11:00:00 GMT", 0.0),
        ("Wed, 01 Jan 2098 00:00:00 GMT", MAX_RETRY_AFTER),
        ("2025-06-01T12:00:30Z", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("Sun, 99 Jun 2025 12:00:30 GMT", None),
        ("Sun, 01 Jun 99999 12:00:30 GMT", None),
    ],
)
def test_retry_after_has_two_forms_and_a_cap(value: str, seconds: float | None) -> None:
    """Seconds and HTTP dates are read, clamped at both ends; what is neither is nothing."""
    assert retry_after({"retry-after": value}, now=NOW) == seconds
    assert refused(429, **{"retry-after": value}).retry_after == seconds


def test_no_retry_after_is_none() -> None:
    """Without the header there is no delay."""
    assert retry_after({}, now=NOW) is None


@given(st.one_of(st.text(), st.floats().map(str), st.integers().map(str), st.datetimes().map(str)))
def test_no_retry_after_is_beyond_its_bounds(value: str) -> None:
    """For any header, the delay is between zero and two minutes."""
    seconds = retry_after({"retry-after": value}, now=NOW)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_http_date_is_read(moment: datetime) -> None:
    """A date of any century gives a wait."""
    whole = moment.replace(microsecond=0)
    seconds = retry_after({"retry-after": format_datetime(whole, usegmt=True)}, now=NOW)
    assert seconds is not None or whole.year < 1000
    if seconds is not None and whole.year >= 1970:
        assert seconds == min(max(whole.timestamp() - NOW, 0.0), MAX_RETRY_AFTER)


@pytest.mark.parametrize(
    ("given_", "closest"),
    [
        ("vocal", "vocals"),
        ("Vocals", "vocals"),
        ("VOCALS ", "vocals"),
        ("drum", "drums"),
        ("hihat", "hi_hat"),
        ("hi-hat", "hi_hat"),
        ("lead vocals", "lead_vocal"),
        ("male vocals", "male_vocal"),
        ("acoustic-guitar", "acoustic_guitar"),
        ("guitars", "guitar"),
        ("kick", "kick_drum"),
        ("snare", "snare_drum"),
        ("instrumentals", "instrumental"),
        ("wind", "winds"),
        ("string", "strings"),
        ("tom", "toms"),
        ("keyboard", "keys"),
    ],
)
def test_a_near_miss_names_the_right_stem(given_: str, closest: str) -> None:
    """The error has the closest name, and all of them."""
    with pytest.raises(InvalidOptionError, match=f"the closest is '{closest}'") as caught:
        validate_names(["bass", given_], Stem, "stem")
    assert all(str(stem) in str(caught.value) for stem in Stem)


@pytest.mark.parametrize(
    ("given_", "closest"),
    [("denoise", "Denoise"), ("DeReverb", "Dereverb"), ("de-echo", "Deecho"), ("noise", "Denoise")],
)
def test_a_near_miss_names_the_right_option(given_: str, closest: str) -> None:
    """Options are spelled as the API spells them, capitals and all."""
    with pytest.raises(InvalidOptionError, match=f"the closest is '{closest}'"):
        validate_names([given_], Preprocessing, "preprocessing option")


@pytest.mark.parametrize("name", ["", "   ", "xyzzy", "ß", 3, None, b"vocals", 1.5, [], ["vocals"]])
def test_what_is_near_nothing_is_refused_all_the_same(name: Any) -> None:
    """Any other name or value gets the same error, never another."""
    with pytest.raises(InvalidOptionError):
        validate_names([name], Stem, "stem")


def test_a_wrong_name_is_shown_shortened() -> None:
    """A name of a megabyte does not make a message of a megabyte."""
    with pytest.raises(InvalidOptionError) as caught:
        validate_names(["x" * 100_000], Stem, "stem")
    assert len(str(caught.value)) < 2000


def test_one_name_is_no_list() -> None:
    """A string is refused, since it would be read letter by letter; a member is accepted."""
    with pytest.raises(InvalidOptionError, match=r"list of names: use \['vocals'\]"):
        validate_names("vocals", Stem, "stem")
    assert validate_names(Stem.VOCALS, Stem, "stem") == ("vocals",)


def test_names_come_out_once_in_order_as_plain_strings() -> None:
    """Members and strings mix; doubles fall away."""
    names = validate_names(iter([Stem.DRUMS, "bass", "drums"]), Stem, "stem")
    assert names == ("drums", "bass")
    assert {type(name) for name in names} == {str}
    assert validate_names((), Stem, "stem") == ()
    assert validate_names([str(stem) for stem in Stem], Stem, "stem") == tuple(map(str, Stem))


def test_a_task_is_asked_for_by_one_of_its_two_ids() -> None:
    """The conversion type goes in capitals, and never both ids."""
    assert protocol.status_query("t") == {"conversionType": "EXTRACTION", "task_id": "t"}


def test_a_listing_is_asked_for_as_the_vendors_own_node_does() -> None:
    """Moments in UTC with milliseconds and a Z, the order in capitals, the next page by its key."""
    query = protocol.listing_query(0.0, 60.5, after="k")
    assert query["startDate"] == "1970-01-01T00:00:00.000Z"
    assert query["endDate"] == "1970-01-01T00:01:00.500Z"
    assert query["sortOrder"] == "ASC"
    assert int(query["limit"]) == 50
    assert query["LastEvaluatedKey"] == "k"
    assert "LastEvaluatedKey" not in protocol.listing_query(0.0, 1.0)
