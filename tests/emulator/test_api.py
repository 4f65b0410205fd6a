from __future__ import annotations

import json
from typing import Any

import pytest

from musicgpt_async.emulator import SHAPES, STEMS, Fault, ResponseShape

pytestmark = pytest.mark.anyio


async def test_a_submit_is_answered_as_the_extraction_page_shows_it(open_account: Any) -> None:
    """The response has both ids, an integer eta and an estimate of credits."""
    async with open_account(seconds=11) as me:
        told = (await me.submit()).json
        record = me.vendor.submissions[0]
    assert told["success"] is True
    assert (told["task_id"], told["conversion_id"]) == (record.task_id, record.conversion_id)
    assert (told["eta"], told["status"]) == (11, "IN_QUEUE")
    assert told["credit_estimate"] > 0


@pytest.mark.parametrize(
    ("settings", "eta"),
    [({"eta": -1}, -1), ({"seconds": 0.2}, 1), ({"eta": lambda submission: submission.size}, 13)],
)
async def test_eta_is_what_is_set(open_account: Any, settings: dict[str, Any], eta: int) -> None:
    """An eta may be unknown, derived from the time taken, or any function of the submission."""
    async with open_account(**settings) as me:
        assert (await me.submit()).json["eta"] == eta


@pytest.mark.parametrize(
    ("key", "status"),
    [(None, 401), ("wrong", 401), ("Bearer emulator-key", 401), ("barred", 403)],
)
async def test_a_key_that_is_not_the_accounts_is_refused(
    open_account: Any, key: str | None, status: int
) -> None:
    """No key, a wrong one and one with Bearer before it get 401; one that may not gets 403."""
    async with open_account(forbidden_keys=["barred"]) as me:
        assert (await me.submit(key=key)).status == status
        assert (await me.api("GET", "/byId?conversionType=EXTRACTION", key=key)).status == status
        assert not me.vendor.submissions


@pytest.mark.parametrize(
    ("audio", "fields", "location"),
    [
        (b"sound", {"audio_url": "https://example.org/a.mp3"}, ["body"]),
        (None, {"audio_url": "ftp://example.org/a.mp3"}, ["body", "audio_url"]),
        (b"sound", {"webhook_url": "not a url"}, ["body", "webhook_url"]),
        (b"sound", {"stems": '["vocals", "kazoo"]'}, ["body", "stems", "1"]),
        (b"sound", {"stems": "vocals"}, ["body", "stems"]),
        (b"sound", {"stems": '"vocals"'}, ["body", "stems"]),
        (
            b"sound",
            {"preprocessing_options": '["denoise"]'},
            ["body", "preprocessing_options", "0"],
        ),
    ],
)
async def test_a_submit_that_does_not_validate_gets_a_422(
    open_account: Any, audio: bytes | None, fields: dict[str, str], location: list[str]
) -> None:
    """What is missing or unknown is refused in FastAPI's words, and nothing is accepted."""
    async with open_account() as me:
        reply = await me.submit(audio, **fields)
        assert not me.vendor.submissions
    (complaint,) = reply.json["detail"]
    assert reply.status == 422
    assert complaint["loc"] == location
    assert complaint.keys() == {"loc", "msg", "type"}


async def test_a_form_without_a_file_need_not_be_multipart(open_account: Any) -> None:
    """An audio_url can be sent in an urlencoded form, as FastAPI accepts it."""
    async with open_account() as me:
        form = {"audio_url": "https://example.org/a.mp3"}
        assert (await me.api("POST", "/Extraction", data=form)).status == 200


async def test_a_body_that_is_no_form_gets_a_422(open_account: Any) -> None:
    """A submit without a form has neither file nor URL."""
    async with open_account() as me:
        assert (await me.api("POST", "/Extraction", data=b"{}")).status == 422


@pytest.mark.parametrize("stems", ["", "[]"])
async def test_no_stem_named_means_the_vendors_four(open_account: Any, stems: str) -> None:
    """Without stems, drums, bass, piano and guitar are extracted."""
    async with open_account() as me:
        conversion = await me.extract(stems=stems)
    assert list(json.loads(conversion["audio_url"])) == ["drums", "bass", "piano", "guitar"]


async def test_an_empty_audio_url_beside_a_file_is_no_url(open_account: Any) -> None:
    """MusicGPT's own samples send an empty audio_url together with the file."""
    async with open_account() as me:
        assert (await me.submit(audio_url="")).status == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"conversionType": "EXTRACTION"}, 422),
        ({"conversionType": "EXTRACTION", "task_id": "a", "conversion_id": "b"}, 422),
        ({"task_id": "a"}, 422),
        ({"conversionType": "SORCERY", "task_id": "a"}, 422),
        ({"conversionType": "EXTRACTION", "task_id": "a"}, 404),
    ],
)
async def test_a_poll_must_name_one_known_task(
    open_account: Any, query: dict[str, str], status: int
) -> None:
    """Neither id, both, no type or another one gets 422; an unknown task 404."""
    async with open_account() as me:
        assert (await me.api("GET", "/byId", params=query)).status == status


async def test_a_conversion_is_found_by_either_id(open_account: Any) -> None:
    """The task_id and the conversion_id lead to the same conversion."""
    async with open_account() as me:
        told = (await me.submit()).json
        query = {"conversionType": "Extraction", "conversion_id": told["conversion_id"]}
        found = (await me.api("GET", "/byId", params=query)).json["conversion"]
    assert found["task_id"] == told["task_id"]


async def test_status_words_go_through_the_vendors_in_order(open_account: Any) -> None:
    """A conversion is queued, pending, processing and in progress before it is completed."""
    words = []
    async with open_account(seconds=0.4) as me:
        task = (await me.submit()).json["task_id"]
        while not words or words[-1] != "COMPLETED":
            word = (await me.by_id(task)).json["conversion"]["status"]
            if [word] != words[-1:]:
                words.append(word)
    order = ["IN_QUEUE", "PENDING", "PROCESSING", "IN_PROGRESS", "COMPLETED"]
    assert words == [word for word in order if word in words]


async def test_links_come_only_at_the_end(open_account: Any) -> None:
    """An unfinished conversion has neither links nor a cost."""
    async with open_account(faults=[Fault("job", "never_finishes")]) as me:
        task = (await me.submit()).json["task_id"]
        conversion = (await me.by_id(task)).json["conversion"]
    assert conversion["audio_url"] is conversion["conversion_cost"] is None


@pytest.mark.parametrize("word", ["ERROR", "FAILED", "cancelled"])
async def test_a_scripted_failure_is_reported_and_not_charged(open_account: Any, word: str) -> None:
    """A conversion that fails has the word and the message, and costs nothing."""
    fault = Fault("job", "fails", word=word, message="The model fell over")
    async with open_account(faults=[fault]) as me:
        conversion = await me.extract()
        assert (conversion["status"], conversion["status_msg"]) == (word, "The model fell over")
        assert conversion["audio_url"] is None
        assert me.vendor.credits == 10_000
        assert me.vendor.unfinished == 0


async def test_empty_audio_fails(open_account: Any) -> None:
    """A file without a byte is accepted, and ends in ERROR."""
    async with open_account() as me:
        conversion = await me.extract(b"")
    assert (conversion["status"], conversion["status_msg"]) == ("ERROR", "The audio is empty")


LINKS = {
    "json": ("audio_url", str),
    "object": ("audio_url", dict),
    "conversion_path": ("conversion_path", str),
    "conversion_path_object": ("conversion_path", dict),
}


@pytest.mark.parametrize("shape", LINKS)
async def test_links_have_the_shape_that_is_set(open_account: Any, shape: str) -> None:
    """Links come as a string of JSON with line breaks or as an object, under either name."""
    field, kind = LINKS[shape]
    async with open_account(shape=shape) as me:
        conversion = await me.extract(stems=json.dumps(STEMS))
        for told, suffix in ((conversion[field], ".mp3"), (conversion[f"{field}_wav"], ".wav")):
            assert isinstance(told, kind)
            assert kind is dict or "\n    " in told
            links = told if kind is dict else json.loads(told)
            assert list(links) == list(STEMS)
            assert all(f"{stem}{suffix}" in links[stem] for stem in STEMS)
            assert (await me.call("GET", links["winds"])).status == 200


async def test_every_other_shape(open_account: Any) -> None:
    """A plain URL, numbers as strings, lower case words, links of one format, unknown names."""
    shapes = [
        SHAPES["plain"],
        SHAPES["strings"],
        SHAPES["lower"],
        SHAPES["mp3_only"],
        ResponseShape(links="object", also=("../evil",)),
    ]
    async with open_account(shape=lambda submission: shapes[submission.number]) as me:
        plain, strings, lower, mp3_only, evil = [await me.extract() for _ in shapes]
    assert plain["audio_url"].startswith("http://")
    assert isinstance(strings["conversion_cost"], str)
    assert lower["status"] == "completed"
    assert "audio_url_wav" not in mp3_only
    assert list(evil["audio_url"]) == ["drums", "bass", "piano", "guitar", "../evil"]


async def test_numbers_as_strings_in_the_submits_answer(open_account: Any) -> None:
    """The eta and the estimate may be strings as well."""
    async with open_account(shape="strings", seconds=7) as me:
        told = (await me.submit()).json
    assert told["eta"] == "7"
    assert isinstance(told["credit_estimate"], str)


@pytest.mark.parametrize(
    ("error", "body"),
    [
        ("message", {"success": False, "message": "Conversion not found"}),
        ("error", {"success": False, "error": "Conversion not found"}),
        ("detail", {"detail": "Conversion not found"}),
    ],
)
async def test_refusals_have_the_shape_that_is_set(
    open_account: Any, error: str, body: dict[str, Any]
) -> None:
    """Refusals have any of the documented shapes."""
    async with open_account(shape=ResponseShape(error=error)) as me:
        assert (await me.by_id("nobody")).json == body


async def test_what_there_is_no_route_for(open_account: Any) -> None:
    """Unknown paths get 404 and wrong methods 405, in JSON."""
    async with open_account() as me:
        nowhere = await me.api("GET", "/nowhere")
        method = await me.api("GET", "/Extraction")
    assert (nowhere.status, nowhere.json) == (404, {"detail": "Not Found"})
    assert method.status == 405


async def test_the_listing_goes_page_by_page(open_account: Any) -> None:
    """ByUser lists the account's conversions, newest first, a page at a time."""
    async with open_account() as me:
        tasks = [(await me.submit()).json["task_id"] for _ in range(5)]
        query = {"conversionType": "EXTRACTION", "limit": "2"}
        found, last = [], ""
        while last is not None:
            page = (await me.api("GET", "/byUser", params={**query, "LastEvaluatedKey": last})).json
            assert len(page["conversions"]) <= 2
            found += [each["task_id"] for each in page["conversions"]]
            last = page.get("LastEvaluatedKey")
        assert found == tasks[::-1]
        upwards = {"conversionType": "EXTRACTION", "sortOrder": "asc"}
        told = (await me.api("GET", "/byUser", params=upwards)).json["conversions"]
        assert [each["task_id"] for each in told] == tasks


async def test_the_listing_heeds_dates(open_account: Any) -> None:
    """StartDate and endDate limit the listing; an invalid date gets a 422."""
    async with open_account() as me:
        task = (await me.submit()).json["task_id"]
        created = (await me.by_id(task)).json["conversion"]["createdAt"]
        kind = {"conversionType": "EXTRACTION"}
        for bounds, count in (
            ({"startDate": "2020-01-01"}, 1),
            ({"startDate": "2920-01-01"}, 0),
            ({"endDate": "2020-01-01T00:00:00Z"}, 0),
            ({"startDate": created[:10], "endDate": "2920-01-01"}, 1),
        ):
            told = (await me.api("GET", "/byUser", params=kind | bounds)).json
            assert len(told["conversions"]) == count
        for wrong in ({"startDate": "soon"}, {"limit": "0"}, {"LastEvaluatedKey": "nobody"}):
            assert (await me.api("GET", "/byUser", params=kind | wrong)).status == 422


async def test_the_listing_can_be_left_out(open_account: Any) -> None:
    """Without byUser, the call gets a 404."""
    async with open_account(listing=False) as me:
        assert (await me.api("GET", "/byUser?conversionType=EXTRACTION")).status == 404


async def test_requests_are_logged(open_account: Any) -> None:
    """The log has method, path and status of every request, in order."""
    async with open_account() as me:
        url = await me.link()
        await me.call("GET", url, headers={"Range": "bytes=0-3"})
        log = [(each.method, each.path.split("/")[-1], each.status) for each in me.vendor.requests]
    assert log[0] == ("POST", "Extraction", 200)
    assert log[1] == ("GET", "byId", 200)
    assert log[-1] == ("GET", "drums.wav", 206)
    assert me.vendor.polls == sum(path == "byId" for _, path, _ in log)
