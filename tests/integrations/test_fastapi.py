"""The documentation's FastAPI service under a real uvicorn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType

import aiohttp
import anyio
import pytest
import uvicorn
from factories.sessions import SOUND

from musicgpt_async import MusicGPTError
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

Snippet = Callable[..., ModuleType]


class Service:
    """Runs the documentation's service on one port, as often as it is started."""

    def __init__(self, snippet: Snippet, listener: socket.socket) -> None:
        self.root = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._snippet = snippet
        self._listener = listener

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ModuleType]:
        """Serve it for as long as the block lasts; yields the documentation's module."""
        module = self._snippet("from fastapi import")
        config = uvicorn.Config(
            module.app, log_config=None, lifespan="on", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [self._listener.dup()])
            try:
                yield module
            finally:
                server.should_exit = True


@pytest.fixture
def service(snippet: Snippet, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service, its public URL and secret in the environment."""
    service = Service(snippet, listener)
    monkeypatch.setenv("PUBLIC_URL", f"{service.root}/hooks")
    monkeypatch.setenv("WEBHOOK_SECRET", "of the test")
    return service


async def upload(browser: aiohttp.ClientSession, service: Service) -> dict[str, object]:
    """Send a track to the service; return its response."""
    form = aiohttp.FormData()
    form.add_field("track", SOUND, filename="song.mp3", content_type="audio/mpeg")
    async with browser.post(f"{service.root}/jobs", data=form) as answer:
        return {"status": answer.status, **await answer.json()}


async def test_an_upload_becomes_a_job_whose_stems_are_streamed_out(
    service: Service, browser: aiohttp.ClientSession, vendor: Emulator
) -> None:
    """The UploadFile arrives completely, and the mounted endpoint receives the webhook."""
    async with service.running() as module:
        answer = await upload(browser, service)
        job = await module.app.state.session.retrieve(answer["id"])
        await job
        async with browser.get(f"{service.root}/jobs/{job.id}") as status:
            told = await status.json()
        async with browser.get(f"{service.root}/jobs/{job.id}/vocals") as stem:
            audio = await stem.read()
    assert answer["status"] == 202
    assert told == {"state": "completed", "error": None}
    assert vendor.submissions[0].upload.size == len(SOUND)
    assert vendor.submissions[0].upload.file_name == "song.mp3"
    assert [delivered.status for delivered in vendor.deliveries] == [200]
    assert audio == Path(f"stems/{job.id}/song - vocals.wav").read_bytes()
    assert audio[:4] == b"RIFF"


async def test_a_stem_is_downloaded_once_for_many_listeners(
    service: Service, browser: aiohttp.ClientSession, vendor: Emulator
) -> None:
    """Ten requests for one stem, some concurrent, get it completely with one download."""

    async def listen(job_id: object) -> bytes:
        async with browser.get(f"{service.root}/jobs/{job_id}/vocals") as stem:
            assert stem.status == 200
            return await stem.read()

    async with service.running():
        answer = await upload(browser, service)
        first = await asyncio.gather(*[listen(answer["id"]) for _ in range(5)])
        fetched = sum("vocals" in request.path for request in vendor.requests)
        later = await asyncio.gather(*[listen(answer["id"]) for _ in range(5)])
    assert len({*first, *later}) == 1
    assert sum("vocals" in request.path for request in vendor.requests) == fetched


async def test_a_stem_that_there_is_none_of_is_not_found(
    service: Service, browser: aiohttp.ClientSession
) -> None:
    """A wrong stem is a 404 that lists the existing ones, not a server error."""
    async with service.running():
        answer = await upload(browser, service)
        async with browser.get(f"{service.root}/jobs/{answer['id']}/drums") as refused:
            assert refused.status == 404
            assert "it has: vocals, instrumental" in await refused.text()


async def test_what_cannot_be_done_is_explained(
    service: Service, browser: aiohttp.ClientSession, vendor: Emulator
) -> None:
    """An unknown job is a 404, and MusicGPT's refusal is passed on."""
    async with service.running() as module:
        async with browser.get(f"{service.root}/jobs/nobody") as answer:
            assert answer.status == 404
        vendor.script(Fault("job", "fails", message="not music"))
        uploaded = await upload(browser, service)
        job = await module.app.state.session.retrieve(uploaded["id"])
        with suppress(MusicGPTError):
            await job
        async with browser.get(f"{service.root}/jobs/{job.id}") as answer:
            told = await answer.json()
        async with browser.get(f"{service.root}/jobs/{job.id}/vocals") as answer:
            assert (answer.status, "not music" in await answer.text()) == (502, True)
    assert told["state"] == "failed"
    assert "not music" in told["error"]
    assert len(vendor.submissions) == 1


@pytest.mark.musicgpt(seconds=1.0)
async def test_a_restart_of_the_service_loses_no_job(
    service: Service, browser: aiohttp.ClientSession, vendor: Emulator
) -> None:
    """Stopping does not wait for MusicGPT; after a restart the job continues with the same id."""
    async with service.running():
        answer = await upload(browser, service)
    assert vendor.unfinished == 1
    async with service.running() as module:
        async with browser.get(f"{service.root}/jobs/{answer['id']}/vocals") as stem:
            audio = await stem.read()
        assert (await module.app.state.session.retrieve(answer["id"])).id == answer["id"]
    assert audio[:4] == b"RIFF"
    assert len(vendor.submissions) == 1


async def test_a_finished_job_is_there_after_a_restart(
    service: Service, browser: aiohttp.ClientSession, vendor: Emulator
) -> None:
    """Its state and its stem are the same as before, and neither is asked of MusicGPT again."""

    async def fetch(job_id: object) -> tuple[object, bytes]:
        async with browser.get(f"{service.root}/jobs/{job_id}/vocals") as stem:
            audio = await stem.read()
        async with browser.get(f"{service.root}/jobs/{job_id}") as status:
            return await status.json(), audio

    async with service.running():
        job_id = (await upload(browser, service))["id"]
        before = await fetch(job_id)
    requests = len(vendor.requests)
    async with service.running():
        assert await fetch(job_id) == before
    assert before[0] == {"state": "completed", "error": None}
    assert len(vendor.requests) == requests
