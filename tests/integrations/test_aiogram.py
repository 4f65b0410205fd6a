"""The documentation's aiogram bot: its own polling, against an emulated Bot API of Telegram."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import anyio
import pytest
from aiohttp import web
from factories.sessions import SOUND

from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

TOKEN = "123456:of-the-test"
CHAT = {"id": 7, "type": "private"}


class Telegram:
    """The methods of the Bot API that a bot in one chat calls.

    Attributes:
        said: Method and fields of every call that shows something in the chat.
        busy: Whether edits get a 429.
        too_big: Whether downloads of the track are refused.
        quiet: Set when nothing more is expected.
    """

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.busy = False
        self.too_big = False
        self.quiet = asyncio.Event()
        self._updates: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._last = ""

    def send_audio(self, *, last: str) -> None:
        """Send a track as a user; ``last`` is a part of the bot's last message."""
        self._last = last
        audio = {"file_id": "f", "file_unique_id": "u", "duration": 2, "file_name": "song.mp3"}
        self._updates.put_nowait(
            {"update_id": 1, "message": {"message_id": 1, "date": 0, "chat": CHAT, "audio": audio}}
        )

    async def call(self, request: web.Request) -> web.Response:
        """Respond to a method of the Bot API."""
        method, fields = request.match_info["method"], dict(await request.post())
        if method in ("sendMessage", "sendAudio", "editMessageText"):
            self.said.append((method, fields))
            if self._last in (fields.get("title"), fields.get("text")) or (
                self._last in str(fields.get("text"))
            ):
                self.quiet.set()
        if method == "getFile" and self.too_big:
            told = {"ok": False, "error_code": 400, "description": "Bad Request: file is too big"}
            return web.json_response(told, status=400)
        if method == "editMessageText" and self.busy:
            told = {"ok": False, "error_code": 429, "description": "Too Many Requests"}
            return web.json_response({**told, "parameters": {"retry_after": 9}}, status=429)
        return web.json_response({"ok": True, "result": await self._result(method)})

    async def file(self, _request: web.Request) -> web.Response:
        """Serve the track that was sent to the chat."""
        return web.Response(body=SOUND)

    async def _result(self, method: str) -> Any:
        match method:
            case "getMe":
                return {"id": 1, "is_bot": True, "first_name": "Stems", "username": "stems_bot"}
            case "getUpdates":
                return [await self._updates.get()]
            case "getFile":
                return {"file_id": "f", "file_unique_id": "u", "file_path": "music/song.mp3"}
            case _:
                return {"message_id": 2, "date": 0, "chat": CHAT, "text": "…"}


@asynccontextmanager
async def served(telegram: Telegram) -> AsyncIterator[str]:
    """Serve the fake; yield the root of its server."""
    app = web.Application()
    app.add_routes(
        [
            web.post(f"/bot{TOKEN}/{{method}}", telegram.call),
            web.get(f"/file/bot{TOKEN}/music/song.mp3", telegram.file),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def telegram() -> Telegram:
    """A chat with a user."""
    return Telegram()


async def run_bot(module: ModuleType, telegram: Telegram) -> None:
    """Run the documentation's main() with a bot on the emulated API, to the last message."""
    # Importing aiogram takes half as long as collecting all tests: only who runs these does it.
    from aiogram import Bot  # noqa: PLC0415
    from aiogram.client.session.aiohttp import AiohttpSession  # noqa: PLC0415
    from aiogram.client.telegram import TelegramAPIServer  # noqa: PLC0415

    async with served(telegram) as root, anyio.create_task_group() as tasks:
        api = TelegramAPIServer.from_base(root)
        tasks.start_soon(module.main, Bot(TOKEN, session=AiohttpSession(api=api)))
        with anyio.fail_after(30):
            await telegram.quiet.wait()
        await module.dispatcher.stop_polling()


async def test_a_track_in_the_chat_is_answered_with_its_stems(
    snippet: Callable[..., ModuleType], telegram: Telegram, vendor: Emulator
) -> None:
    """The bot polls, fetches the audio, shows progress by edits of one message, sends the MP3s."""
    telegram.send_audio(last="guitar")
    await run_bot(snippet("async def split", "from aiogram import"), telegram)
    methods = [method for method, _ in telegram.said]
    assert methods[0] == "sendMessage"
    assert methods[-4:] == ["sendAudio"] * 4
    assert set(methods[1:-4]) == {"editMessageText"}
    assert {fields["title"] for _, fields in telegram.said[-4:]} == {
        "drums",
        "bass",
        "piano",
        "guitar",
    }
    assert vendor.submissions[0].upload.size == len(SOUND)


async def test_a_chat_that_wants_no_more_edits_gets_its_stems(
    snippet: Callable[..., ModuleType], telegram: Telegram
) -> None:
    """A 429 for the progress message does not fail the job."""
    telegram.busy = True
    telegram.send_audio(last="guitar")
    await run_bot(snippet("async def split", "from aiogram import"), telegram)
    assert [method for method, _ in telegram.said[-4:]] == ["sendAudio"] * 4


async def test_a_track_that_telegram_keeps_is_reported_in_the_chat(
    snippet: Callable[..., ModuleType], telegram: Telegram, vendor: Emulator
) -> None:
    """Of a file that bots may not have, nothing is submitted, and the note says why."""
    telegram.too_big = True
    telegram.send_audio(last="file is too big")
    await run_bot(snippet("async def split", "from aiogram import"), telegram)
    assert telegram.said[-1][0] == "editMessageText"
    assert vendor.submissions == []


async def test_a_failure_is_reported_in_the_chat(
    snippet: Callable[..., ModuleType], telegram: Telegram, vendor: Emulator
) -> None:
    """A track that MusicGPT cannot process gets a message in the chat."""
    vendor.script(Fault("job", "fails", message="not music"))
    telegram.send_audio(last="not music")
    await run_bot(snippet("async def split", "from aiogram import"), telegram)
    assert telegram.said[-1][0] == "sendMessage"
