"""The documentation's discord.py bot: logged in, on a gateway, against an emulated Discord."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from factories.sessions import SOUND
from yarl import URL

from musicgpt_async.emulator import Emulator, Fault

pytestmark = [
    pytest.mark.anyio,
    # discord.py imports it for voice, which no bot here speaks.
    pytest.mark.filterwarnings("ignore:'audioop' is deprecated:DeprecationWarning"),
]

DISCORD_EPOCH = 1_420_070_400_000
USER = {"id": "7", "username": "anna", "discriminator": "0", "avatar": None, "global_name": None}
BOT = {**USER, "id": "1", "username": "stems", "bot": True}
CHANNEL = {"id": "9", "type": 1, "recipients": [USER], "last_message_id": None}
MESSAGE = {
    "id": "20", "channel_id": "9", "author": BOT, "content": "", "tts": False, "type": 0,
    "timestamp": "2026-01-01T00:00:00Z", "edited_timestamp": None, "mention_everyone": False,
    "mentions": [], "mention_roles": [], "attachments": [], "embeds": [], "pinned": False,
}  # fmt: skip


class Discord:
    """The calls of Discord's API and the gateway's messages that a bot with one command needs.

    Attributes:
        said: Kind and payload of everything shown in the channel, its files' names added.
        commands: What the bot has registered.
        fetched: How often the attachment was asked for.
        limit: Bytes that a file may have.
        token_ran_out: Whether the interaction's token is refused.
        quiet: Set once the last thing expected was said.
    """

    def __init__(self) -> None:
        self.root = ""
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.commands: list[dict[str, Any]] = []
        self.token_ran_out = False
        self.fetched = 0
        self.limit = 10 * 2**20
        self.last = ""
        self.quiet = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the fake."""
        return [
            web.get("/ws", self._websocket),
            web.get("/users/@me", self._myself),
            web.get("/oauth2/applications/@me", self._application),
            web.put("/applications/1/commands", self._register),
            web.post("/interactions/{id}/token/callback", self._shown("defer")),
            web.patch("/webhooks/1/token/messages/@original", self._shown("edit")),
            web.post("/webhooks/1/token", self._shown("followup")),
            web.post("/channels/9/messages", self._shown("message")),
            web.get("/attachments/song.mp3", self._attachment),
        ]

    def _shown(self, kind: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            payload = await payload_of(request)
            if self.token_ran_out and kind in ("edit", "followup"):
                return said({"code": 50027, "message": "Invalid Webhook Token"}, status=401)
            self.said.append((kind, payload))
            if self.last in str(payload.get("content")):
                self.quiet.set()
            return said({"interaction": {"id": "1", "type": 2}} if kind == "defer" else MESSAGE)

        return handle

    async def _myself(self, _request: web.Request) -> web.Response:
        return said(BOT)

    async def _application(self, _request: web.Request) -> web.Response:
        named = {"id": "1", "name": "stems", "icon": None, "description": "", "verify_key": ""}
        named["owner"] = USER
        return said({**named, "bot_public": True, "bot_require_code_grant": False})

    async def _register(self, request: web.Request) -> web.Response:
        self.commands = [
            {**command, "id": "5", "application_id": "1", "version": "1"}
            for command in await request.json()
        ]
        return said(self.commands)

    async def _attachment(self, _request: web.Request) -> web.Response:
        self.fetched += 1
        return web.Response(body=SOUND, content_type="audio/mpeg")

    @property
    def gateway(self) -> str:
        """Return the URL of the bot's web socket."""
        return f"ws{self.root.removeprefix('http')}/ws"

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Let the bot identify itself, and use its command as a user."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"op": 10, "d": {"heartbeat_interval": 40_000}})
        async for message in socket:
            match json.loads(message.data)["op"]:
                case 1:
                    await socket.send_json({"op": 11})
                case 2:
                    await socket.send_json({"op": 0, "s": 1, "t": "READY", "d": self._ready()})
                    command = {"op": 0, "s": 2, "t": "INTERACTION_CREATE", "d": self._command()}
                    await socket.send_json(command)
        return socket

    def _ready(self) -> dict[str, Any]:
        return {
            "v": 10,
            "user": BOT,
            "guilds": [],
            "session_id": "s",
            "resume_gateway_url": self.gateway,
            "application": {"id": "1", "flags": 0},
        }

    def _command(self) -> dict[str, Any]:
        url = f"{self.root}/attachments/song.mp3"
        track = {"id": "30", "filename": "song.mp3", "size": len(SOUND), "url": url}
        chosen = {"id": "5", "name": "stems", "type": 1}
        return {
            "id": str((int(time.time() * 1000) - DISCORD_EPOCH) << 22),
            "application_id": "1",
            "type": 2,
            "token": "token",
            "version": 1,
            "channel_id": "9",
            "channel": CHANNEL,
            "user": USER,
            "entitlements": [],
            "authorizing_integration_owners": {},
            "app_permissions": "0",
            "locale": "en-GB",
            "attachment_size_limit": self.limit,
            "data": {
                **chosen,
                "options": [{"name": "track", "type": 11, "value": "30"}],
                "resolved": {"attachments": {"30": {**track, "proxy_url": url}}},
            },
        }


def said(value: Any, status: int = 200) -> web.Response:
    """Return a JSON response."""
    # discord.py compares the complete content type.
    content = json.dumps(value).encode()
    return web.Response(body=content, status=status, content_type="application/json")


async def payload_of(request: web.Request) -> dict[str, Any]:
    """Return what a call says; the names of files that came with it are among it."""
    if not request.content_type.startswith("multipart/"):
        return dict(await request.json())
    form = await request.post()
    files = [part for part in form.values() if isinstance(part, web.FileField)]
    told = json.loads(str(form["payload_json"]))
    return {**told, "files": {file.filename: len(file.file.read()) for file in files}}


@asynccontextmanager
async def served(discord: Discord) -> AsyncIterator[None]:
    """Serve the fake on a free port."""
    app = web.Application()
    app.add_routes(discord.routes())
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    discord.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def discord(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Discord]:
    """A fake to which discord.py connects by its two address attributes."""
    stand_in = Discord()
    async with served(stand_in):
        # Here, for its warnings are let through only inside a test.
        from discord.gateway import DiscordWebSocket  # noqa: PLC0415
        from discord.http import Route  # noqa: PLC0415

        monkeypatch.setattr(Route, "BASE", stand_in.root)
        monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", URL(stand_in.gateway))
        monkeypatch.setenv("DISCORD_TOKEN", "of-the-test")
        yield stand_in


async def run_bot(module: ModuleType, discord: Discord) -> None:
    """Run the documentation's main() until all is said."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(module.main)
        with anyio.fail_after(20):
            await discord.quiet.wait()
        await module.client.close()


async def test_a_command_with_an_attachment_is_answered_with_the_stems(
    snippet: Callable[..., ModuleType], discord: Discord, vendor: Emulator
) -> None:
    """The bot logs in, registers the command, is called through the gateway and sends the MP3s."""
    discord.last = "guitar"
    await run_bot(snippet("async def split", "import discord"), discord)
    kinds = [kind for kind, _ in discord.said]
    assert [command["name"] for command in discord.commands] == ["stems"]
    assert kinds[0] == "defer"
    assert set(kinds[1:-4]) == {"edit"}
    assert kinds[-4:] == ["followup"] * 4
    assert [list(payload["files"]) for _, payload in discord.said[-4:]] == [
        [f"song - {stem}.mp3"] for stem in ("drums", "bass", "piano", "guitar")
    ]
    assert vendor.submissions[0].upload.fields["audio_url"].startswith(discord.root)
    assert discord.fetched == 1


async def test_plain_messages_continue_after_the_token_has_expired(
    snippet: Callable[..., ModuleType], discord: Discord
) -> None:
    """After fifteen minutes Discord refuses the interaction's token; the stems still come."""
    discord.token_ran_out = True
    discord.last = "guitar"
    await run_bot(snippet("async def split", "import discord"), discord)
    assert [kind for kind, _ in discord.said] == ["defer"] + ["message"] * 4
    assert all(min(payload["files"].values()) > 0 for _, payload in discord.said[1:])


async def test_a_stem_too_large_for_the_chat_is_sent_as_a_link(
    snippet: Callable[..., ModuleType],
    discord: Discord,
    vendor: Emulator,
    browser: aiohttp.ClientSession,
) -> None:
    """The interaction's own size limit decides; MusicGPT's links need no key."""
    discord.limit = 100
    discord.last = "guitar: http"
    await run_bot(snippet("async def split", "import discord"), discord)
    links = [payload["content"] for kind, payload in discord.said if kind == "followup"]
    assert [link.split(": ")[0] for link in links] == ["drums", "bass", "piano", "guitar"]
    async with browser.get(links[0].split(": ")[1]) as file:
        assert file.status == 200
    assert not vendor.leaked_keys


async def test_a_failure_is_reported_in_the_chat(
    snippet: Callable[..., ModuleType], discord: Discord, vendor: Emulator
) -> None:
    """A track that MusicGPT cannot process gets a message in the chat."""
    vendor.script(Fault("job", "fails", message="not music"))
    discord.last = "not music"
    await run_bot(snippet("async def split", "import discord"), discord)
    assert discord.said[-1][0] == "followup"
