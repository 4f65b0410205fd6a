"""What `doctor` says of each form of the base URL."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("generation", [1, 2])
async def test_doctor_tells_a_base_from_what_is_none(open_vendor: Any, generation: int) -> None:
    """Good forms answer; a version that is not there, or a place that is none, is said to be."""
    async with open_vendor(generation=generation, path="/x/api/public") as (vendor, shell):
        root = f"{vendor.url}/x/api/public"
        forms = ("/v1", "/v2", "", "/nowhere/v1", "/v3")
        ended = await shell.together(
            *(shell.run("doctor", MUSICGPT_BASE_URL=root + form) for form in forms)
        )
        good = ("/v1",) if generation == 1 else ("/v1", "/v2", "")
        for form, each in zip(forms, ended, strict=True):
            assert each.code == (form not in good), (form, each.out)
            assert ("is not the API" in each.out) is (form not in good)
            assert form in good or "MUSICGPT_BASE_URL" in each.out
            assert form not in good or "the key is accepted" in each.out
        assert not vendor.submissions


async def test_doctor_says_that_a_key_refused_with_403_may_be_wrong(open_vendor: Any) -> None:
    """The second generation answers a wrong key with 403."""
    async with open_vendor(generation=2) as (_, shell):
        ended = await shell.run("doctor", MUSICGPT_API_KEY="wrong")
        assert ended.code == 1
        assert "BAD   the key is wrong, or may not do this" in ended.out
        assert "key may be wrong" in ended.out


async def test_doctor_shows_where_a_redirect_leads(shell: Any) -> None:
    """A host that has moved is not the API, and its new address is shown."""

    async def moved(request: web.Request) -> web.Response:
        place = f"https://api.wav.com{request.path}"
        return web.Response(status=308, headers={"Location": place})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", moved)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}/api/public/v1"
        ended = await shell.run("doctor", MUSICGPT_BASE_URL=base, MUSICGPT_API_KEY="key")
    finally:
        await runner.cleanup()
    assert ended.code == 1
    assert "MUSICGPT_BASE_URL=https://api.wav.com/api/public/v1" in ended.out
