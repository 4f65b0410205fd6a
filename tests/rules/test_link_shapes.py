"""Every place and shape in which the links of stems have been seen gives its stems."""

from __future__ import annotations

import json
from typing import Any

import pytest

from musicgpt_async._rules import payloads
from musicgpt_async._rules.payloads import Progress, parse_conversion, parse_delivery, stem_in
from musicgpt_async._rules.reconciliation import is_of_job, reconcile
from musicgpt_async.models import JobRecord, StemLinks

HOST = "https://lalals.s3.amazonaws.com/c"
MP3 = {"vocals": f"{HOST}/1.mp3", "drums": f"{HOST}/2.mp3"}
WAV = {"vocals": f"{HOST}/1.wav", "drums": f"{HOST}/2.wav"}
BOTH = {stem: StemLinks(mp3=MP3[stem], wav=WAV[stem]) for stem in MP3}
ASKED = ("vocals", "drums")
DONE = {"task_id": "t", "conversion_id": "c", "status": "COMPLETED"}


def links(answer: dict[str, Any], requested: tuple[str, ...] = ASKED) -> Any:
    """Return the links of a byId response."""
    return parse_conversion(answer, requested=requested).links


@pytest.mark.parametrize(
    "fields",
    [
        {"audio_url": MP3, "audio_url_wav": WAV},
        {"conversion_path": json.dumps(MP3), "conversion_path_wav": json.dumps(WAV)},
        {"audio_url": json.dumps(MP3, indent=4), "conversion_path_wav": WAV},
        {"audio_url_1": {"vocals": MP3["vocals"]}, "audio_url_2": {"drums": MP3["drums"]},
         "audio_url_wav": WAV},
        {"conversion_path_1": MP3, "conversion_path_wav_1": WAV},
        {"audio_path": MP3, "audio_path_wav": WAV},
        {**MP3, "vocals_wav": WAV["vocals"], "drums_wav": WAV["drums"]},
        {"vocals_url": MP3["vocals"], "drums_path": MP3["drums"], "audio_url_wav": WAV},
        {"audio_url": {stem: f"\n  {url} " for stem, url in MP3.items()}, "audio_url_wav": WAV},
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["inside", "beside"])
def test_links_are_found_inside_and_beside_the_conversion(
    fields: dict[str, Any], place: str
) -> None:
    """Maps, JSON in strings, numbered and `_path` fields, flat stem keys, blanks around URLs."""
    if place == "inside":
        answer = {"success": True, "conversion": {**DONE, **fields}}
    else:
        answer = {"success": True, "conversion": DONE, **fields}
    assert links(answer) == BOTH
    assert parse_delivery({**DONE, **fields}, requested=ASKED).links == BOTH


def test_a_files_ending_goes_before_its_fields_name() -> None:
    """The second generation's pages show `audio_url` links that end in .wav."""
    found = links({"conversion": {**DONE, "audio_url": WAV}})
    assert found == {stem: StemLinks(wav=WAV[stem]) for stem in WAV}
    signed = {"vocals": f"{WAV['vocals']}?signature=x.mp3"}
    assert links({"conversion": {**DONE, "audio_url": signed}})["vocals"].wav == signed["vocals"]
    bare = {"vocals": f"{HOST}/vocals"}
    assert links({"conversion": {**DONE, "audio_url_wav": bare}})["vocals"].wav == bare["vocals"]


def test_numbered_plain_urls_are_named_by_their_files() -> None:
    """A file's name that holds one stem names it; what holds none or several is not guessed at."""
    fields = {
        "conversion_path_1": f"{HOST}/My song_drums.mp3",
        "conversion_path_2": f"{HOST}/acoustic_guitar.mp3",
        "conversion_path_10": f"{HOST}/x.mp3",
        "conversion_path_11": f"{HOST}/bass and drums.mp3",
    }
    found = links({"conversion": {**DONE, **fields}}, ())
    assert list(found) == ["drums", "acoustic_guitar", "audio", "audio_4"]
    assert [each.mp3 for each in found.values()] == list(fields.values())


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("drums.mp3", "drums"),
        ("song - Lead Vocal.wav", "lead_vocal"),
        ("hi-hat.wav", "hi_hat"),
        ("kick_drum (2).mp3", "kick_drum"),
        ("bass_drums.mp3", None),
        ("drumstick.mp3", None),
        ("drums", None),
        ("", None),
    ],
)
def test_the_stem_in_a_files_name(name: str, stem: str | None) -> None:
    """Only complete words count, and a longer stem name beats a shorter one inside it."""
    assert stem_in(name) == stem


@pytest.mark.parametrize(
    "value",
    [
        "conversions/standard/1/1.mp3",
        "s3://musicgpt/1.mp3",
        "https://lalals.s3.amazonaws.com/",
        "https://lalals.s3.amazonaws.com",
        {"vocals": "conversions/1.mp3"},
    ],
)
def test_a_key_without_a_host_or_a_host_without_a_key_is_no_link(value: Any) -> None:
    """No document says which bucket a bare key belongs to."""
    assert links({"conversion": {**DONE, "audio_url": value}}) == {}


@pytest.mark.parametrize(
    ("requested", "told", "progress"),
    [
        (ASKED, MP3, Progress.COMPLETED),
        (("vocals",), MP3, Progress.COMPLETED),
        ((*ASKED, "bass"), MP3, Progress.UNFINISHED),
        ((), MP3, Progress.UNFINISHED),
        ((), dict.fromkeys(["drums", "bass", "piano", "guitar"], f"{HOST}/x"), Progress.COMPLETED),
        (ASKED, {}, Progress.UNFINISHED),
    ],
)
def test_a_word_never_seen_counts_as_completed_with_all_links_there(
    requested: tuple[str, ...], told: dict[str, str], progress: Progress
) -> None:
    """An unknown word means completed if it has the links of every requested stem."""
    answer = {"conversion": {**DONE, "status": "REMASTERED", "audio_url": told}}
    conversion = parse_conversion(answer, requested=requested)
    assert (conversion.progress, conversion.is_known_status) == (progress, False)
    answer["conversion"]["status"] = "PROCESSING"
    assert parse_conversion(answer, requested=requested).progress is Progress.UNFINISHED


def test_a_url_that_cannot_be_read_breaks_nothing() -> None:
    """It stays a link, for the message of the download that refuses it."""
    fields = {"audio_url": {"vocals": "https://["}, "audio_url_wav": "https://[::"}
    assert links({"conversion": {**DONE, **fields}})["vocals"].mp3 == "https://["


def entry(task_id: str, **fields: Any) -> payloads.Conversion:
    """One entry of the account's listing."""
    created = "1970-01-01T00:16:41.000Z"
    told = {"task_id": task_id, "createdAt": created, **fields}
    return payloads.parse_listing({"conversions": [told]})[0]


def test_a_webhook_url_decides_by_the_jobs_own_token() -> None:
    """An entry with another job's webhook URL never belongs to a lost submit."""
    record = JobRecord(id="j", fingerprint="f", source="a", sent_at=1000.0, token="pub.secret")
    ours, theirs = "https://h/pub.secret", "https://h/pub.other"
    assert is_of_job(record, entry("a", webhook_url=ours)) is True
    assert is_of_job(record, entry("a", webhook_url=theirs)) is False
    assert is_of_job(record, entry("a")) is None
    assert is_of_job(record, entry("a", webhook_url="")) is None
    assert reconcile([record], [entry("a", webhook_url=theirs)], claimed=()) == {}
    both = [entry("a", webhook_url=theirs), entry("b")]
    assert reconcile([record], both, claimed=())["j"].task_id == "b"
