from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from factories.sessions import free_port

from musicgpt_async import WebhookReceiver
from musicgpt_async.emulator import Fault

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """Serve one answer to everything."""
    app = web.Application()
    app.add_routes([web.route("*", "/{tail:.*}", handle)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def redirect(request: web.Request) -> web.StreamResponse:
    """Lead elsewhere."""
    return web.Response(status=308, headers={"Location": f"https://example.com{request.path}"})


async def page(_: web.Request) -> web.StreamResponse:
    """Answer as any web site does."""
    return web.Response(text="<html>hello</html>", content_type="text/html")


async def test_all_is_well(open_vendor: Any) -> None:
    """A good key, an API that answers and a webhook URL that leads here are all ok."""
    async with open_vendor() as (vendor, shell):
        port = free_port()
        url = f"http://127.0.0.1:{port}/hook"
        ended = await shell.run("doctor", "--webhook", url, "--listen", f"127.0.0.1:{port}")
        assert (ended.code, ended.err) == (0, "")
        assert [line[:2] for line in ended.out.splitlines()][-5:] == ["ok"] * 5
        assert "BAD" not in ended.out
        assert "the key is accepted" in ended.out
        assert "leads to this receiver" in ended.out
        assert not vendor.submissions


async def test_keys_are_judged(open_vendor: Any) -> None:
    """A wrong key, a key without rights and a missing key get different messages."""
    async with open_vendor(forbidden_keys=["poor"]) as (_, shell):
        wrong, poor, none = await shell.together(
            *(shell.run("doctor", MUSICGPT_API_KEY=key) for key in ("wrong", "poor", ""))
        )
        assert wrong.code == 1
        assert "BAD   the key is not accepted" in wrong.out
        assert "BAD   the key is wrong, or may not do this" in poor.out
        assert none.code == 1
        assert "BAD   MUSICGPT_API_KEY is not set" in none.out
        assert "musicgpt-async emulate" in none.out
        assert "answers in" in none.out


async def test_what_is_not_the_api_is_found_out(open_vendor: Any) -> None:
    """No server, another server, and an API that fails each get their advice."""
    fault = Fault("byId", "status", status=503, early=True)
    async with open_vendor(faults=[fault]) as (_, shell), serving(page) as url:
        nowhere = f"http://127.0.0.1:{free_port()}"
        unwell, *others = await shell.together(
            shell.run("doctor"),
            *(
                shell.run("doctor", MUSICGPT_BASE_URL=base)
                for base in (nowhere, url, "http://example.com")
            ),
        )
        assert unwell.code == 1
        assert "is unwell" in unwell.out
        nobody, other, clear = (each.out for each in others)
        assert "does not answer" in nobody
        assert "is not the API" in other
        assert "MUSICGPT_BASE_URL" in other
        assert "unencrypted" in clear


async def test_a_wrong_webhook_url_is_found_out(open_vendor: Any) -> None:
    """A redirect, a foreign server, another receiver and no server at all get their advice."""
    async with open_vendor() as (_, shell):
        listen = ("--listen", f"127.0.0.1:{free_port()}")

        async def verdict(url: str) -> str:
            ended = await shell.run("doctor", "--webhook", url, *listen)
            assert ended.code == 1
            *_, last = ended.out.splitlines()
            assert last.startswith("BAD")
            return str(last)

        async with serving(redirect) as url:
            assert "redirects to https://example.com/hook" in await verdict(f"{url}/hook")
        async with serving(page) as url:
            assert "something else answers there" in await verdict(f"{url}/hook")
        other = WebhookReceiver("http://127.0.0.1/hook")
        async with other.serve("127.0.0.1", 0) as url:
            assert "another receiver answers there" in await verdict(f"{url}/hook")
        assert "cannot be reached" in await verdict(f"http://127.0.0.1:{free_port()}/hook")


async def test_a_private_webhook_url_is_found_out(shell: Any) -> None:
    """Against the real vendor an address of a private network is refused without asking."""
    # A name that never resolves replaces the real API.
    base = {"MUSICGPT_API_KEY": "key", "MUSICGPT_BASE_URL": "https://vendor.invalid"}
    ended = await shell.run("doctor", "--webhook", "http://192.168.1.2/hook", **base)
    assert ended.code == 1
    assert "is in a private network" in ended.out
