"""The documentation's aiohttp application, served for real."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import ModuleType

import aiohttp
import pytest
from aiohttp import web
from factories.sessions import SOUND

from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio


async def test_a_body_goes_in_and_its_vocals_come_out(
    snippet: Callable[..., ModuleType],
    listener: socket.socket,
    browser: aiohttp.ClientSession,
    vendor: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The body is streamed up, the routes receive the webhook, the response is the stem."""
    root = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("PUBLIC_URL", f"{root}/hooks")
    runner = web.AppRunner(snippet("from aiohttp import web").app, shutdown_timeout=5)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        async with browser.post(f"{root}/vocals/song.mp3", data=SOUND) as answer:
            audio = await answer.read()
        vendor.script(Fault("submit", "status", status=402, times=None))
        async with browser.post(f"{root}/vocals/song.mp3", data=SOUND) as refused:
            words = await refused.json()
    finally:
        await runner.cleanup()
    assert (answer.status, audio[:4]) == (200, b"RIFF")
    assert vendor.submissions[0].upload.size == len(SOUND)
    assert list(vendor.submissions[0].stems) == ["vocals"]
    assert [delivered.status for delivered in vendor.deliveries] == [200]
    assert refused.status == 502
    assert "credit" in words["error"]
