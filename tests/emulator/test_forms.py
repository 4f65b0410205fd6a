"""Unusual forms are taken as FastAPI takes them: by its own parsing, run beside the emulator's."""

from __future__ import annotations

from typing import Annotated, Any

import aiohttp
import anyio
import pytest
import uvicorn
from fastapi import FastAPI, File, Form, UploadFile
from fastapi.responses import JSONResponse

pytestmark = pytest.mark.anyio

HEAD = 'Content-Disposition: form-data; name="{}"'


def body(*parts: tuple[str, str | None, str]) -> bytes:
    """A multipart body of (name, file name, content); without a file name a part is text."""
    lines = []
    for name, filename, content in parts:
        head = HEAD.format(name) + ("" if filename is None else f'; filename="{filename}"')
        lines.append(f"--edge\r\n{head}\r\n\r\n{content}\r\n")
    return ("".join(lines) + "--edge--\r\n").encode()


URL = ("audio_url", None, "https://example.org/a.mp3")
FORMS = {
    "an empty file part beside a URL": body(("audio_file", "", ""), URL),
    "an empty text in place of the file, beside a URL": body(("audio_file", None, ""), URL),
    "an empty file part alone": body(("audio_file", "", "")),
    "neither": body(("stems", None, "[]")),
    "an empty URL alone": body(("audio_url", None, "")),
    "stems as a file": body(("stems", "stems.json", '["vocals"]'), URL),
    "preprocessing_options as a file": body(("preprocessing_options", "p.json", "[]"), URL),
    "webhook_url as a file": body(("webhook_url", "w", "https://h/"), URL),
    "the file as text": body(("audio_file", None, "sound"), URL),
    "an unknown field": body(("tempo", None, "120"), URL),
    "an unknown file": body(("cover", "cover.jpg", "jpeg"), URL),
    "a field named filename": body(("filename", None, "x"), URL),
    "a file and an empty URL": body(("audio_url", None, ""), ("audio_file", "a.wav", "sound")),
    "eco_mode that is no boolean": body(("eco_mode", None, "perhaps"), URL),
    "eco_mode on": body(("eco_mode", None, "on"), URL),
}


def service() -> FastAPI:
    """A service with the fields of MusicGPT's OpenAPI page, and its message for a missing file."""
    app = FastAPI()

    @app.post("/Extraction", response_model=None)
    async def extraction(
        audio_url: Annotated[str | None, Form()] = None,
        audio_file: Annotated[UploadFile | None, File()] = None,
        stems: Annotated[str | None, Form()] = None,
        preprocessing_options: Annotated[str | None, Form()] = None,
        eco_mode: Annotated[bool, Form()] = False,
        webhook_url: Annotated[str | None, Form()] = None,
    ) -> Any:
        if not audio_url and (audio_file is None or not audio_file.filename):
            words = "Either audio_url or audio_file must be provided."
            return JSONResponse({"success": False, "message": words}, 422)
        return {"success": True}

    return app


async def answers_of(url: str, key: str) -> dict[str, tuple[int, Any]]:
    """Return the status, and the location or the message of a refusal, for each form."""
    headers = {"Authorization": key, "Content-Type": "multipart/form-data; boundary=edge"}
    found: dict[str, tuple[int, Any]] = {}
    async with aiohttp.ClientSession() as http:
        for name, form in FORMS.items():
            async with http.post(f"{url}/Extraction", data=form, headers=headers) as reply:
                told = await reply.json()
                detail = [each["loc"] for each in told.get("detail", ())]
                words = None if reply.status == 200 else told.get("message")
                found[name] = (reply.status, detail or words)
    return found


async def test_unusual_forms_are_taken_as_fastapi_takes_them(open_account: Any) -> None:
    """Status, and place or words, are those of a real FastAPI service, form by form."""
    server = uvicorn.Server(
        uvicorn.Config(service(), port=0, log_level="error", ws="none", lifespan="off")
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        with anyio.fail_after(30):
            while not server.started:
                await anyio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        expected = await answers_of(f"http://127.0.0.1:{port}", "key")
        server.should_exit = True
    async with open_account(generation=2, parallel=None) as me:
        assert await answers_of(f"{me.vendor.base_url}/v2", me.vendor.api_key) == expected
    assert {status for status, _ in expected.values()} == {200, 422}


async def test_neither_url_nor_file_has_the_documented_words(open_account: Any) -> None:
    """Extraction's own 422 is not a list of details."""
    async with open_account() as me:
        reply = await me.submit(None)
    assert (reply.status, reply.json) == (
        422,
        {"success": False, "message": "Either audio_url or audio_file must be provided."},
    )
