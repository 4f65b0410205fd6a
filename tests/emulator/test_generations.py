"""The two generations of the API: their routes, and the differences of their responses."""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from musicgpt_async._rules import payloads
from musicgpt_async.emulator.catalogue import (
    CONVERSION_TYPES,
    DEFAULT_STEMS,
    PREPROCESSING,
    STEMS,
)
from musicgpt_async.models import Preprocessing, Stem

pytestmark = pytest.mark.anyio

URL = {"audio_url": "https://example.org/a.mp3"}


async def submit(me: Any, path: str, *, key: str | None = "the right one", **fields: str) -> Any:
    """Submit a URL, and other fields, to a path below the base URL."""
    form = aiohttp.FormData({**URL, **fields}, default_to_multipart=True)
    return await me.api("POST", path, key=key, data=form)


@pytest.mark.parametrize(
    ("generation", "routes", "missing"),
    [
        (1, ["/v1/Extraction"], ["/Extraction", "/v2/Extraction"]),
        (2, ["/v1/Extraction", "/v2/Extraction"], ["/Extraction"]),
    ],
)
async def test_each_generation_has_its_routes(
    open_account: Any, generation: int, routes: list[str], missing: list[str]
) -> None:
    """`/v1/Extraction` still works on the second, the status is on `/v1` alone, and others 404."""
    async with open_account(generation=generation) as me:
        root = me.vendor.base_url.removesuffix("/v1")
        key = {"Authorization": me.vendor.api_key}
        for path in routes:
            reply = await me.call("POST", root + path, data=URL, headers=key)
            assert reply.status == 200
        for path in missing:
            reply = await me.call("POST", root + path, data=URL, headers=key)
            assert (reply.status, reply.json) == (404, {"detail": "Not Found"})
        query = {"conversionType": "EXTRACTION", "task_id": me.vendor.submissions[0].task_id}
        for path, status in (("/v1/byId", 200), ("/v2/byId", 404), ("/byId", 404)):
            reply = await me.call("GET", root + path, params=query, headers=key)
            assert reply.status == status
        assert (await me.call("GET", f"{root}/v2/byUser", headers=key)).status == 404
        assert (await me.call("GET", f"{root}/v1/byUser", headers=key)).status == 200


async def test_the_base_url_of_each_generation(open_account: Any) -> None:
    """The first has its version in the base, the second in its paths; a prefix may precede."""
    async with open_account() as me:
        assert me.vendor.base_url == f"{me.vendor.url}/api/public/v1"
    async with open_account(generation=2, path="/gateway/api/public") as me:
        assert me.vendor.base_url == f"{me.vendor.url}/gateway/api/public"
        assert (await submit(me, "/v2/Extraction")).status == 200


@pytest.mark.parametrize(
    ("settings", "has_wav"),
    [
        ({"generation": 1}, True),
        ({"generation": 2}, False),
        ({"generation": 2, "wav": True}, True),
        ({"generation": 1, "wav": False}, False),
    ],
)
async def test_results_are_mp3_alone_or_both_by_a_setting(
    open_account: Any, settings: dict[str, Any], has_wav: bool
) -> None:
    """The setting applies to byId and to webhooks; no link leads to a missing WAV."""
    posted: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        posted.append(await request.json())
        return web.Response()

    application = web.Application()
    application.router.add_post("/hook", take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        async with open_account(**settings) as me:
            root = me.vendor.base_url.removesuffix("/v1")
            key = {"Authorization": me.vendor.api_key}
            form = {**URL, "webhook_url": hook}
            await me.call("POST", f"{root}/v1/Extraction", data=form, headers=key)
            await me.until(lambda: bool(posted))
            query = {"conversionType": "EXTRACTION", "task_id": posted[0]["task_id"]}
            told = await me.call("GET", f"{root}/v1/byId", params=query, headers=key)
    finally:
        await runner.cleanup()
    assert json.loads(told.json["conversion"]["audio_url"]).keys() == {
        "drums", "bass", "piano", "guitar",
    }  # fmt: skip
    assert ("audio_url_wav" in told.json["conversion"]) is has_wav
    assert ("audio_url_wav" in posted[0]) is has_wav
    assert "status" not in posted[0]


@pytest.mark.parametrize(
    ("generation", "status", "words"),
    [(1, 401, "Invalid or missing API key"), (2, 403, "may be due to incorrect API key")],
)
async def test_a_wrong_key_gets_401_or_403(
    open_account: Any, generation: int, status: int, words: str
) -> None:
    """The newer page lists no 401: it says of 403 that it may be due to an incorrect key."""
    async with open_account(generation=generation) as me:
        for key in (None, "wrong", f"Bearer {me.vendor.api_key}"):
            reply = await submit(me, "/v2/Extraction" * (generation - 1) or "/Extraction", key=key)
            assert reply.status == status
            assert words in reply.json["message"]


async def test_the_documented_refusals_of_the_second_generation(open_account: Any) -> None:
    """400 for a URL that cannot be fetched or options that cannot be read, 402 without credit."""
    async with open_account(generation=2, credits=0.01) as me:
        gone = await submit(me, "/v2/Extraction", audio_url=f"{me.vendor.url}/nothing.mp3")
        assert (gone.status, gone.json) == (
            400,
            {
                "success": False,
                "message": "The file could not be downloaded from the provided URL",
            },
        )
        for field, value in (("stems", "vocals"), ("stems", '["kazoo"]'), ("stems", '"vocals"')):
            reply = await submit(me, "/v2/Extraction", **{field: value})
            assert (reply.status, reply.json["message"]) == (400, "Invalid request parameters")
        poor = await submit(me, "/v2/Extraction")
        assert (poor.status, poor.json["message"]) == (402, "Insufficient credit balance")
        assert not me.vendor.submissions


@pytest.mark.parametrize(
    ("generation", "value", "status", "eco_mode"),
    [
        (2, "true", 200, True),
        (2, "false", 200, False),
        (2, "True", 200, True),
        (2, "1", 200, True),
        (2, "", 200, False),
        (2, "perhaps", 422, None),
        (1, "true", 200, False),
        (1, "perhaps", 200, False),
    ],
)
async def test_eco_mode_is_a_boolean_of_the_second_generation(
    open_account: Any, generation: int, value: str, status: int, eco_mode: bool | None
) -> None:
    """It is read as FastAPI reads booleans; the first generation ignores an unknown field."""
    async with open_account(generation=generation) as me:
        path = "/v2/Extraction" if generation == 2 else "/Extraction"
        reply = await submit(me, path, eco_mode=value)
        assert reply.status == status
        if status == 200:
            assert me.vendor.submissions[0].eco_mode is eco_mode
        else:
            assert reply.json["detail"][0]["loc"] == ["body", "eco_mode"]


async def test_the_second_generations_byid_has_more_fields(open_account: Any) -> None:
    """`feature`, `message`, `webhook_url`, and times with microseconds and an offset."""
    async with open_account(generation=2) as me:
        told = (await submit(me, "/v2/Extraction", webhook_url="http://127.0.0.1:9/t0ken")).json
        query = {"conversionType": "EXTRACTION", "task_id": told["task_id"]}
        conversion = (await me.api("GET", "/v1/byId", params=query)).json["conversion"]
    assert conversion["feature"] == "EXTRACTION"
    assert conversion["message"]
    assert conversion["webhook_url"] == "http://127.0.0.1:9/t0ken"
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"
    assert re.fullmatch(pattern, conversion["createdAt"])


def test_the_emulator_and_the_client_know_the_same_names() -> None:
    """The stems, the preprocessing options and the four default stems agree on both sides."""
    assert list(STEMS) == [str(stem) for stem in Stem]
    assert list(PREPROCESSING) == [str(option) for option in Preprocessing]
    assert set(DEFAULT_STEMS) == payloads.DEFAULT_STEMS == {"drums", "bass", "piano", "guitar"}


def test_there_are_23_conversion_types() -> None:
    """As many as the status page lists, among them those that API.md names."""
    assert len(set(CONVERSION_TYPES)) == 23
    assert {
        "EXTRACTION", "STEMS_SEPARATION", "VOCAL_EXTRACTION", "DENOISING", "DEECHO", "DEREVERB",
    } <= set(CONVERSION_TYPES)  # fmt: skip


async def test_every_conversion_type_is_known_and_only_extraction_has_tasks(
    open_account: Any,
) -> None:
    """A task of Extraction is unknown under any other type; an invalid type gets a 422."""
    async with open_account() as me:
        task_id = (await me.submit()).json["task_id"]
        for kind in CONVERSION_TYPES:
            query = {"conversionType": kind, "task_id": task_id}
            reply = await me.api("GET", "/byId", params=query)
            assert reply.status == (200 if kind == "EXTRACTION" else 404)
            assert kind == "EXTRACTION" or reply.json["message"] == "Conversion not found"
            listed = await me.api("GET", "/byUser", params={"conversionType": kind})
            assert len(listed.json["conversions"]) == (kind == "EXTRACTION")


async def test_byuser_may_be_asked_for_without_a_type(open_account: Any) -> None:
    """The node leaves `conversionType` out at will, and gets 50 conversions by default."""
    async with open_account(parallel=None) as me:
        for _ in range(51):
            await me.submit()
        page = (await me.api("GET", "/byUser")).json
    assert len(page["conversions"]) == 50
    assert page["LastEvaluatedKey"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"sortOrder": "ASC", "startDate": "2026-02-01T00:00:00.000Z", "limit": "1"}, 200),
        ({"sortOrder": "DESC", "endDate": "2026-02-01T00:00:00.000Z"}, 200),
        ({}, 200),
        ({"sortOrder": "asc"}, 422),
        ({"startDate": "2026-02-01T00:00:00+00:00"}, 422),
        ({"endDate": "2026-02-01"}, 422),
        ({"limit": "0"}, 422),
    ],
)
async def test_a_strict_byuser_takes_only_what_the_node_sends(
    open_account: Any, query: dict[str, str], status: int
) -> None:
    """`ASC` or `DESC`, dates with milliseconds and a Z, a limit of at least 1."""
    async with open_account(listing="strict") as me:
        assert (await me.api("GET", "/byUser", params=query)).status == status


@pytest.mark.parametrize("shape", ["beside", "numbered", "flat"])
async def test_links_can_be_in_every_known_place(open_account: Any, shape: str) -> None:
    """Beside the conversion, in numbered fields, or as fields named like the stems."""
    async with open_account(shape=shape) as me:
        task_id = (await me.submit(stems='["drums", "bass"]')).json["task_id"]
        await me.finished(task_id)
        told = (await me.by_id(task_id)).json
    match shape:
        case "beside":
            assert "audio_url" not in told["conversion"]
            assert json.loads(told["audio_url"]).keys() == {"drums", "bass"}
        case "numbered":
            assert "bass.wav" in told["conversion"]["conversion_path_wav_2"]
        case _:
            assert "drums.mp3" in told["conversion"]["drums"]
