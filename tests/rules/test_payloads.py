from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from musicgpt_async._rules import payloads
from musicgpt_async._rules.payloads import EXCERPT_LENGTH, UNNAMED_STEM, Progress
from musicgpt_async.errors import ProtocolError
from musicgpt_async.models import Acceptance, StemLinks

S3 = "https://lalals.s3.amazonaws.com/conversions"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
# The fields that parsers read, so that Hypothesis gets beyond the first check.
KEYS = [
    "success", "task_id", "conversion_id", "eta", "credit_estimate", "message", "status",
    "status_msg", "error", "detail", "conversion", "conversions", "audio_url", "audio_url_wav",
    "conversion_path", "conversion_path_wav", "loc", "msg", "conversion_cost",
    "conversion_duration", "createdAt", "LastEvaluatedKey", "code", "details",
]  # fmt: skip
OBJECTS = st.dictionaries(
    st.sampled_from(KEYS),
    st.recursive(
        JSON,
        lambda inner: (
            st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
            | st.lists(inner, max_size=3)
            | inner.map(json.dumps)
        ),
        max_leaves=8,
    ),
    max_size=8,
)
READERS: list[Callable[[dict[str, Any]], Any]] = [
    payloads.parse_acceptance,
    payloads.parse_conversion,
    lambda data: payloads.parse_conversion(data, requested=["vocals"]),
    payloads.parse_listing,
    payloads.parse_delivery,
    payloads.listing_continues_after,
    payloads.error_message,
    payloads.is_error,
    payloads.excerpt,
]


def short(message: str) -> bool:
    """Return whether a message is one line of bounded length."""
    return len(message) < EXCERPT_LENGTH + 100 and len(message.splitlines()) == 1


def refusal_of(read: Callable[[], Any]) -> str | None:
    """Return the message of a ProtocolError, or ``None``; other errors are raised."""
    try:
        read()
    except ProtocolError as error:
        return str(error)
    return None


# The response to a submit.


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {
                "success": True,
                "task_id": "c4f1",
                "conversion_id": "9b2e",
                "eta": 11,
                "credit_estimate": 2.5,
            },
            Acceptance(task_id="c4f1", conversion_id="9b2e", eta=11.0, credit_estimate=2.5),
        ),
        (
            {
                "success": True,
                "message": "Message published to queue",
                "task_id": "c4f1",
                "conversion_id": "9b2e",
                "status": "IN_QUEUE",
                "eta": 147,
                "credit_estimate": 5.55,
            },
            Acceptance(task_id="c4f1", conversion_id="9b2e", eta=147.0, credit_estimate=5.55),
        ),
        ({"task_id": "t", "eta": -1}, Acceptance(task_id="t")),
        ({"task_id": "t", "eta": "-1"}, Acceptance(task_id="t")),
        ({"task_id": "t", "eta": 0}, Acceptance(task_id="t", eta=0.0)),
        ({"task_id": "t", "eta": "147"}, Acceptance(task_id="t", eta=147.0)),
        (
            {"task_id": "t", "eta": None, "credit_estimate": "5.55"},
            Acceptance(task_id="t", credit_estimate=5.55),
        ),
        ({"task_id": "t", "eta": "soon", "credit_estimate": True}, Acceptance(task_id="t")),
        ({"task_id": "t", "eta": [1], "credit_estimate": {}}, Acceptance(task_id="t")),
        ({"task_id": 17, "conversion_id": 18}, Acceptance(task_id="17", conversion_id="18")),
        ({"task_id": " t\n", "conversion_id": ""}, Acceptance(task_id="t")),
        ({"task_id": "t", "eta": float("nan")}, Acceptance(task_id="t")),
        ({"task_id": "t", "eta": float("inf")}, Acceptance(task_id="t")),
        ({"task_id": "t", "eta": 10**400}, Acceptance(task_id="t")),
        ({"task_id": "t", "conversion_id": "\ud800"}, Acceptance(task_id="t")),
        ({"task_id": "t", "conversion_id": "c" * 513}, Acceptance(task_id="t")),
        ({"task_id": "t", "credit_estimate": -5}, Acceptance(task_id="t")),
    ],
)
def test_an_acceptance_is_read_in_every_shape(data: dict[str, Any], expected: Acceptance) -> None:
    """Both samples of the page, numbers as strings, an unknown eta, and what is left out."""
    assert payloads.parse_acceptance(data) == expected


@pytest.mark.parametrize("task_id", [None, "", "  ", [], {}, True, 1.5, "\ud800", "a\0", "t" * 513])
def test_an_acceptance_without_a_task_id_shows_what_came(task_id: Any) -> None:
    """Without an id there is no job to follow; the error has an excerpt."""
    with pytest.raises(ProtocolError, match="task_id") as caught:
        payloads.parse_acceptance({"success": True, "task_id": task_id, "note": "shown"})
    assert short(str(caught.value))


# A conversion.


def answer(**conversion: Any) -> dict[str, Any]:
    """Return a byId response with these fields."""
    return {"success": True, "conversion": {"task_id": "t", "conversion_id": "c", **conversion}}


@pytest.mark.parametrize(
    ("word", "progress", "known"),
    [
        *((word, Progress.UNFINISHED, True) for word in ["IN_QUEUE", "PENDING", "PROCESSING"]),
        ("IN_PROGRESS", Progress.UNFINISHED, True),
        ("in_progress", Progress.UNFINISHED, True),
        ("COMPLETED", Progress.COMPLETED, True),
        ("completed", Progress.COMPLETED, True),
        (" Completed ", Progress.COMPLETED, True),
        ("ERROR", Progress.FAILED, True),
        ("FAILED", Progress.FAILED, True),
        ("failed", Progress.FAILED, True),
        ("cancelled", Progress.FAILED, True),
        ("RE_MASTERING", Progress.UNFINISHED, False),
        ("", Progress.UNFINISHED, False),
        (None, Progress.UNFINISHED, False),
        (["COMPLETED"], Progress.UNFINISHED, False),
    ],
)
def test_status_words_are_compared_without_case(word: Any, progress: Progress, known: bool) -> None:
    """A word never seen before means "not finished yet"."""
    conversion = payloads.parse_conversion(answer(status=word))
    assert (conversion.progress, conversion.is_known_status) == (progress, known)


STEMS = {"vocals": f"{S3}/v.mp3", "drums": f"{S3}/d.mp3"}
WAVS = {"vocals": f"{S3}/v.wav", "drums": f"{S3}/d.wav"}
BOTH = {
    "vocals": StemLinks(mp3=f"{S3}/v.mp3", wav=f"{S3}/v.wav"),
    "drums": StemLinks(mp3=f"{S3}/d.mp3", wav=f"{S3}/d.wav"),
}
BROKEN_LINES = '{\n    "vocals": "%s",\n\n  "drums":\r\n"%s"\n}\n'


@pytest.mark.parametrize(
    "fields",
    [
        {"audio_url": json.dumps(STEMS), "audio_url_wav": json.dumps(WAVS)},
        {"audio_url": json.dumps(STEMS, indent=4), "audio_url_wav": json.dumps(WAVS, indent="\t")},
        {
            "audio_url": BROKEN_LINES % tuple(STEMS.values()),
            "audio_url_wav": "\r\n " + BROKEN_LINES % tuple(WAVS.values()),
        },
        {"audio_url": STEMS, "audio_url_wav": WAVS},
        {"conversion_path": STEMS, "conversion_path_wav": json.dumps(WAVS)},
        {
            "audio_url": None,
            "conversion_path": STEMS,
            "audio_url_wav": "",
            "conversion_path_wav": WAVS,
        },
        {"audio_url": f"{S3}/all.mp3", "conversion_path": STEMS, "conversion_path_wav": WAVS},
        {
            "audio_url": {},
            "conversion_path": STEMS,
            "audio_url_wav": "{}",
            "conversion_path_wav": WAVS,
        },
        {
            "audio_url": {**STEMS, "bass": None, "keys": "", "note": "ftp://x", "n": 3},
            "audio_url_wav": WAVS,
        },
    ],
)
def test_links_are_read_in_every_shape(fields: dict[str, Any]) -> None:
    """JSON strings with line breaks, objects, either field name are parsed; junk is ignored."""
    conversion = payloads.parse_conversion(answer(status="COMPLETED", **fields))
    assert conversion.links == BOTH
    assert list(conversion.links) == ["vocals", "drums"]


def test_a_line_break_inside_a_links_string_is_read() -> None:
    """Even raw control characters within a JSON string do not lose the stems."""
    text = f'{{"vocals": "{S3}/v.mp3", "note": "two\nlines"}}'
    conversion = payloads.parse_conversion(answer(status="COMPLETED", audio_url=text))
    assert conversion.links == {"vocals": StemLinks(mp3=f"{S3}/v.mp3")}


@pytest.mark.parametrize(
    ("requested", "stem"),
    [(["vocals"], "vocals"), ([], UNNAMED_STEM), (["vocals", "drums"], UNNAMED_STEM)],
)
def test_a_plain_link_belongs_to_the_one_stem_that_was_asked_for(
    requested: list[str], stem: str
) -> None:
    """The general page shows one URL; its stem is known only if one stem was requested."""
    data = answer(status="COMPLETED", audio_url=f" {S3}/a.mp3\n", conversion_path_wav=f"{S3}/a.wav")
    conversion = payloads.parse_conversion(data, requested=requested)
    assert conversion.links == {stem: StemLinks(mp3=f"{S3}/a.mp3", wav=f"{S3}/a.wav")}


@pytest.mark.parametrize(
    "url", ["{broken", '{"vocals": ', '["a"]', "a.mp3", 3, [S3], True, "{" * 9999]
)
def test_what_is_no_link_gives_no_stem(url: Any) -> None:
    """Malformed links are ignored; the job is not lost by them."""
    assert payloads.parse_conversion(answer(status="COMPLETED", audio_url=url)).links == {}


def test_a_stem_that_no_page_names_is_kept() -> None:
    """MusicGPT may add stems; they are downloaded like others."""
    conversion = payloads.parse_conversion(answer(audio_url={"theremin": f"{S3}/t.mp3"}))
    assert conversion.links == {"theremin": StemLinks(mp3=f"{S3}/t.mp3")}
    assert conversion.progress is Progress.COMPLETED


def test_a_complete_byid_response_is_parsed() -> None:
    """Cost as a string, duration, times and MusicGPT's own object are parsed."""
    data = answer(
        status="COMPLETED",
        status_msg="done",
        audio_url=STEMS,
        conversion_cost="5.55",
        conversion_duration=136.83,
        createdAt="2025-06-01T12:00:00Z",
    )
    conversion = payloads.parse_conversion(data)
    assert (conversion.cost, conversion.duration) == (5.55, 136.83)
    assert (conversion.message, conversion.created) == ("done", "2025-06-01T12:00:00Z")
    extraction = conversion.extraction("other")
    assert (extraction.task_id, extraction.conversion_id) == ("t", "c")
    assert extraction.raw == data["conversion"]
    assert extraction.stems == conversion.links


def test_a_conversion_without_its_task_id_takes_the_one_asked_for() -> None:
    """The requested task_id is used if the response has none."""
    conversion = payloads.parse_conversion({"conversion": {"status": "COMPLETED"}})
    assert conversion.extraction("asked").task_id == "asked"


def test_an_answer_without_its_envelope_is_read() -> None:
    """A flat byId response is parsed like one with a "conversion"."""
    assert (
        payloads.parse_conversion({"status": "ERROR", "status_msg": "too long"}).message
        == "too long"
    )


@pytest.mark.parametrize("conversion", [None, [], "x", 3, {}, {"success": True}])
def test_an_answer_that_holds_no_conversion_is_a_protocol_error(conversion: Any) -> None:
    """It shows what came instead."""
    with pytest.raises(ProtocolError, match="no conversion") as caught:
        payloads.parse_conversion({"success": True, "conversion": conversion})
    assert short(str(caught.value))


# Deliveries.


def test_the_extraction_pages_delivery_is_read() -> None:
    """Flat, with JSON strings, a cost as a string and no status: finished, by its links."""
    delivery = {
        "success": True,
        "conversion_type": "Extraction",
        "task_id": "t",
        "conversion_id": "c",
        "audio_url": BROKEN_LINES % tuple(STEMS.values()),
        "audio_url_wav": BROKEN_LINES % tuple(WAVS.values()),
        "conversion_cost": "5.55",
        "conversion_duration": 136.83,
    }
    conversion = payloads.parse_delivery(delivery)
    assert conversion.progress is Progress.COMPLETED
    assert (conversion.links, conversion.cost, conversion.duration) == (BOTH, 5.55, 136.83)


def test_the_general_pages_delivery_is_read() -> None:
    """A status, one plain URL and a number for the cost."""
    conversion = payloads.parse_delivery(
        {
            "success": True,
            "conversion_type": "Extraction",
            "task_id": "t",
            "status": "COMPLETED",
            "status_msg": "Conversion completed",
            "audio_url": f"{S3}/a.mp3",
            "conversion_cost": 5.55,
            "createdAt": "2025",
            "updatedAt": "2026",
        },
        requested=["bass"],
    )
    assert conversion.links == {"bass": StemLinks(mp3=f"{S3}/a.mp3")}
    assert (conversion.progress, conversion.cost) == (Progress.COMPLETED, 5.55)


@pytest.mark.parametrize(
    "data",
    [
        {"success": False, "task_id": "t", "message": "too long"},
        {"success": False, "task_id": "t", "error": "too long"},
        {"success": "false", "task_id": "t", "error": {"message": "too long"}},
        {"task_id": "t", "status": "ERROR", "status_msg": "too long"},
        {
            "success": True,
            "conversion": {"task_id": "t", "status": "FAILED", "status_msg": "too long"},
        },
    ],
)
def test_a_failures_delivery_is_read_in_every_plausible_shape(data: dict[str, Any]) -> None:
    """``success: false`` and/or a status; the words are found."""
    conversion = payloads.parse_delivery(data)
    assert (conversion.progress, conversion.message) == (Progress.FAILED, "too long")


# Listings.


def test_a_listing_passes_over_what_is_none() -> None:
    """Entries that are not objects are skipped; a missing list is an error."""
    listing = payloads.parse_listing({"conversions": [{"task_id": "a"}, None, 3, {"task_id": "b"}]})
    assert [each.task_id for each in listing] == ["a", "b"]
    for wrong in (None, {}, "x"):
        with pytest.raises(ProtocolError, match="no list"):
            payloads.parse_listing({"conversions": wrong})


@pytest.mark.parametrize(
    ("key", "expected"), [(None, None), ("k", "k"), ({"a": 1}, '{"a": 1}'), ("", None), (7, "7")]
)
def test_a_listing_continues_after_its_key(key: Any, expected: str | None) -> None:
    """A key comes as text or as an object, and goes back as text."""
    assert payloads.listing_continues_after({"LastEvaluatedKey": key}) == expected


def test_hinted_links_fill_what_byid_leaves_out_and_replace_nothing() -> None:
    """What byId says counts; a delivery only adds."""
    believed = {"vocals": StemLinks(mp3="api"), "bass": StemLinks()}
    hinted = {"vocals": StemLinks(mp3="forged", wav="hint"), "drums": StemLinks(wav="hint")}
    assert payloads.merge_links(believed, hinted) == {
        "vocals": StemLinks(mp3="api", wav="hint"),
        "bass": StemLinks(),
        "drums": StemLinks(wav="hint"),
    }


# Requests.


def test_a_submit_has_the_fields_of_the_vendors_samples() -> None:
    """Lists are sent as JSON, an unused URL as an empty field, a webhook only if there is one."""
    assert payloads.submit_fields(stems=["vocals"], preprocessing=["Denoise"]) == {
        "audio_url": "",
        "stems": '["vocals"]',
        "preprocessing_options": '["Denoise"]',
    }
    fields = payloads.submit_fields(
        stems=[], preprocessing=[], audio_url="https://a", webhook_url="https://b"
    )
    assert list(fields) == ["audio_url", "stems", "preprocessing_options", "webhook_url"]
    assert (fields["stems"], fields["webhook_url"]) == ("[]", "https://b")


# Arbitrary input.


@given(
    st.binary(max_size=300)
    | st.text(max_size=200).map(str.encode)
    | JSON.map(lambda v: json.dumps(v).encode())
)
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"a": ' + b"9" * 5000 + b"}")
@example(b'\xff\xfe{\x00"\x00')
@example(b"\x00" * 1000)
@example("\u2028\u0085\x1b[31m".encode() * 100)
def test_any_bytes_are_an_object_or_a_protocol_error(body: bytes) -> None:
    """Nothing but a ProtocolError comes out, its message short and on one line."""
    refused = refusal_of(lambda: isinstance(payloads.parse_object(body), dict))
    assert refused is None or short(refused)
    words = payloads.parse_error_message(body)
    assert words is None or short(words)


@given(OBJECTS)
@example({"task_id": "\ud800", "message": "\udfff"})
@example({"eta": "9" * 5000, "conversion_cost": 10**4000, "task_id": 10**4000})
@example({"conversion": {"status": 10**4000}})
@example({"conversion": {"status": "\ud800", "audio_url": '{"\\ud800": "https://\\ud800"}'}})
@example({"detail": [{"loc": [[], {}, None, "\ud800"], "msg": ["a"]}] * 99})
def test_any_object_is_read_or_refused(data: dict[str, Any]) -> None:
    """For any values, no parser raises anything other than ProtocolError."""
    for read in READERS:
        refused = refusal_of(partial(read, data))
        assert refused is None or short(refused)


@given(OBJECTS)
def test_a_delivery_is_always_read(data: dict[str, Any]) -> None:
    """A hint is never an error: at worst it hints at nothing."""
    conversion = payloads.parse_delivery(data)
    assert isinstance(conversion.progress, Progress)
    assert all(isinstance(stem, str) for stem in conversion.links)
    for links in conversion.links.values():
        for url in (links.mp3, links.wav):
            assert url is None or url.startswith(("http://", "https://"))


def nested(depth: int, key: str) -> dict[str, Any]:
    """Return nested objects, as deep as a server could send them."""
    return payloads.parse_object(b'{"%b":' % key.encode() * depth + b"{}" + b"}" * depth)


@pytest.mark.parametrize(
    "key",
    [
        "message",
        "details",
        "conversion",
        "audio_url",
        "LastEvaluatedKey",
    ],
)
def test_deep_answers_are_read_or_refused(key: str) -> None:
    """JSON that parses never overflows a reader, however deep it is."""
    for depth in (100, 300, 500, 700, 900, 940, 980):
        try:
            data = nested(depth, key)
        except ProtocolError:
            continue
        for read in READERS:
            refused = refusal_of(partial(read, {key: data, "error": data}))
            assert refused is None or short(refused)


def calls_of(function: Callable[[], Any]) -> int:
    """Count the calls that a function makes inside the library."""
    count = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename == payloads.__file__

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_nested_details_take_no_longer_than_their_size() -> None:
    """A small response never blocks the loop: twice the depth takes about twice the work."""

    def details(depth: int) -> dict[str, Any]:
        inner: list[Any] = []
        for _ in range(depth):
            inner = [{"msg": inner}]
        return {"detail": inner}

    small = calls_of(lambda: payloads.error_message(details(6)))
    large = calls_of(lambda: payloads.error_message(details(12)))
    assert large < 5 * small


@given(st.binary(max_size=9000))
def test_a_snippet_is_one_short_printable_line(body: bytes) -> None:
    """An excerpt of any input fits into a sentence and on a terminal."""
    piece = payloads.excerpt(body)
    assert len(piece) <= EXCERPT_LENGTH
    assert len(piece.splitlines()) <= 1
    assert piece.isprintable() or not piece


@pytest.mark.parametrize("odd", ["\ud800", "a\0b", "t" * 513])
def test_what_no_journal_can_store_is_not_read(odd: str) -> None:
    """Ids, names of stems and links that cannot be stored are left out of a poll and a delivery."""
    url = "https://files.example/bass.mp3"
    data = {"status": "COMPLETED", "task_id": odd, "conversion_id": odd}
    data["audio_url"] = json.dumps({odd: url, "bass": url, "drums": url + "\ud800"})
    polled, delivered = payloads.parse_conversion(data), payloads.parse_delivery(data)
    assert polled == delivered
    assert (polled.task_id, polled.conversion_id, set(polled.links)) == ("", None, {"bass"})
