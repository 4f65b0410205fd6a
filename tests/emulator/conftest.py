"""A plain client of the emulator, which uses aiohttp and nothing of this project's client."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import attrs
import pytest

from musicgpt_async.emulator import Emulator
from musicgpt_async.emulator.audio.song import compose

FINISHED = {"COMPLETED", "ERROR", "FAILED", "CANCELLED"}


@attrs.frozen
class Reply:
    """A response with its complete body."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@attrs.frozen
class Customer:
    """A client of the emulator."""

    vendor: Emulator
    http: aiohttp.ClientSession

    @staticmethod
    async def until(is_so: Callable[[], bool]) -> None:
        """Wait until a condition on the emulator's state is true."""
        with anyio.fail_after(60):
            while not is_so():
                await anyio.sleep(0.01)

    async def call(self, method: str, url: str, **options: Any) -> Reply:
        """Request any URL."""
        options.setdefault("allow_redirects", False)
        with anyio.fail_after(60):
            async with self.http.request(method, url, **options) as answer:
                return Reply(answer.status, answer.headers.copy(), await answer.read())

    async def api(
        self, method: str, path: str, *, key: str | None = "the right one", **options: Any
    ) -> Reply:
        """Request a path of the API."""
        key = self.vendor.api_key if key == "the right one" else key
        headers = {} if key is None else {"Authorization": key}
        return await self.call(method, self.vendor.base_url + path, headers=headers, **options)

    async def submit(
        self,
        audio: bytes | Path | None = b"so much sound",
        *,
        name: str = "song.wav",
        key: str | None = "the right one",
        **fields: str,
    ) -> Reply:
        """Send audio, or only fields, to Extraction."""
        form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
        for field, value in fields.items():
            form.add_field(field, value)
        if isinstance(audio, Path):
            audio = await anyio.Path(audio).read_bytes()
        if audio is not None:
            form.add_field("audio_file", io.BytesIO(audio), filename=name)
        return await self.api("POST", "/Extraction", key=key, data=form)

    async def by_id(self, task_id: str, **query: str) -> Reply:
        """Poll a task."""
        query = {"conversionType": "EXTRACTION", "task_id": task_id, **query}
        return await self.api("GET", "/byId", params=query)

    async def finished(self, task_id: str) -> dict[str, Any]:
        """The conversion, once it has come to an end."""
        with anyio.fail_after(120):
            while True:
                conversion = (await self.by_id(task_id)).json["conversion"]
                if conversion["status"].upper() in FINISHED:
                    return dict(conversion)
                await anyio.sleep(0.01)

    async def extract(self, audio: bytes | Path | None = b"so much sound", **fields: str) -> Any:
        """Submit, wait, and return the conversion."""
        reply = await self.submit(audio, **fields)
        assert reply.status == 200, reply.body
        return await self.finished(reply.json["task_id"])

    async def link(self, suffix: str = "_wav", **fields: str) -> str:
        """The link of one finished stem."""
        conversion = await self.extract(stems='["drums"]', **fields)
        return str(json.loads(conversion[f"audio_url{suffix}"])["drums"])


OpenAccount = Callable[..., AbstractAsyncContextManager[Customer]]


@pytest.fixture
def open_account() -> OpenAccount:
    """Run an emulator with these settings, and yield a client of it."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Customer]:
        settings = {"separate": False, "seconds": 0.0, "polls_per_minute": None, **settings}
        async with Emulator(**settings) as vendor, aiohttp.ClientSession() as http:
            yield Customer(vendor, http)

    return opened


@pytest.fixture(scope="session")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of the composed song."""
    return compose(tmp_path_factory.mktemp("song") / "song.flac", seconds=6)
