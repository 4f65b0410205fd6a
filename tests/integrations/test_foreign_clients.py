"""Other clients against the emulator: it accepts what they send, and they accept its responses.

`curl` and `requests` send what MusicGPT's documents describe; MusicGPT's npm package `musicgpt` is
installed from the npm registry if node is available.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import requests

from musicgpt_async.emulator import Emulator

pytestmark = pytest.mark.anyio

NPM_PACKAGE = "musicgpt@1.0.1"
SCRIPT = """
const { MusicGPTClient } = require('musicgpt');
const client = new MusicGPTClient(process.env.KEY, 'ERROR');
client.base_url = process.env.BASE;
(async () => {
  const stems = ['vocals', 'bass'];
  const told = await client.extraction({ audio_url: process.argv[2], stems });
  const done = await client.waitForCompletion(told.task_id, 'EXTRACTION', 50, 30000, -1);
  console.log(JSON.stringify({ told, done }));
})().catch((error) => { console.error(error.message); process.exit(1); });
"""


@asynccontextmanager
async def emulated(**settings: Any) -> AsyncIterator[Emulator]:
    """A fast emulator."""
    async with Emulator(seconds=0.1, separate=False, stem_bytes=4096, **settings) as vendor:
        yield vendor


@pytest.fixture
def track(tmp_path: Path) -> Path:
    """A track on disk."""
    path = tmp_path / "Mårten's song.wav"
    path.write_bytes(b"RIFF" + bytes(3000))
    return path


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with MusicGPT's npm package; the tests are skipped if it is not available."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed, so that the npm package cannot be run")
    folder = tmp_path_factory.mktemp("npm")
    command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund"]
    try:
        installed = subprocess.run(
            [*command, "--ignore-scripts", NPM_PACKAGE],
            check=False,
            capture_output=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry did not answer in time")
    if installed.returncode:
        pytest.skip(f"the npm registry did not give {NPM_PACKAGE}; is there a network?")
    (folder / "client.js").write_text(SCRIPT)
    return folder


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("kind", ["file", "URL"])
async def test_the_vendors_npm_package_extracts(
    node_modules: Path, track: Path, generation: Any, kind: str
) -> None:
    """It submits a file or a URL, waits for the end and reads the links, on `/v1` of either."""
    async with emulated(generation=generation) as vendor:
        base = vendor.base_url.removesuffix("/v1") + "/v1"
        source = str(track) if kind == "file" else "https://example.org/a.mp3"
        ended = await anyio.run_process(
            ["node", "client.js", source],
            cwd=node_modules,
            check=False,
            env={**os.environ, "KEY": vendor.api_key, "BASE": base, "NO_PROXY": "127.0.0.1"},
        )
        assert ended.returncode == 0, ended.stderr.decode()
        seen = json.loads(ended.stdout.decode().splitlines()[-1])
        (submission,) = vendor.submissions
    assert seen["told"]["task_id"] == submission.task_id
    assert seen["done"]["conversion"]["status"] == "COMPLETED"
    assert json.loads(seen["done"]["conversion"]["audio_url"]).keys() == {"vocals", "bass"}
    assert submission.stems == ("vocals", "bass")
    assert submission.file_name == (track.name if kind == "file" else None)


async def test_the_npm_package_reports_a_wrong_key(node_modules: Path, track: Path) -> None:
    """It knows a 401 by its status."""
    async with emulated() as vendor:
        ended = await anyio.run_process(
            ["node", "client.js", str(track)],
            cwd=node_modules,
            check=False,
            env={**os.environ, "KEY": "no", "BASE": vendor.base_url, "NO_PROXY": "127.0.0.1"},
        )
    assert ended.returncode == 1
    assert "Invalid or missing API key" in ended.stderr.decode()


class Requests:
    """Calls of the API as in MusicGPT's Python samples."""

    def __init__(self, vendor: Emulator, version: str) -> None:
        self._root = vendor.base_url.removesuffix("/v1")
        self._version = version
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = vendor.api_key

    async def submit(self, **options: Any) -> Any:
        """POST to Extraction."""
        url = f"{self._root}{self._version}/Extraction"
        return await anyio.to_thread.run_sync(partial(self._session.post, url, **options))

    async def get(self, call: str, **query: str) -> Any:
        """GET byId or byUser, on version 1."""
        url = f"{self._root}/v1/{call}"
        return await anyio.to_thread.run_sync(partial(self._session.get, url, params=query))

    async def completed(self, **ids: str) -> Any:
        """Poll a conversion until it is completed."""
        with anyio.fail_after(30):
            while True:
                told = (await self.get("byId", conversionType="EXTRACTION", **ids)).json()
                if told["conversion"]["status"] == "COMPLETED":
                    return told["conversion"]
                await anyio.sleep(0.02)


@pytest.mark.parametrize(("generation", "version"), [(1, "/v1"), (2, "/v1"), (2, "/v2")])
async def test_requests_as_the_documents_describe_them(
    track: Path, generation: Any, version: str
) -> None:
    """A file with all fields, an empty `audio_url` beside it, a URL alone, both ids, byUser."""
    async with emulated(generation=generation) as vendor:
        client = Requests(vendor, version)
        content = await anyio.Path(track).read_bytes()
        fields = {
            "audio_url": "",
            "stems": '["vocals", "drums"]',
            "preprocessing_options": '["Denoise", "Deecho", "Dereverb"]',
            "eco_mode": "true",
            "webhook_url": "http://127.0.0.1:9/hook",
        }
        whole = await client.submit(
            data=fields, files={"audio_file": ("song.wav", content, "audio/wav")}
        )
        assert whole.status_code == 200
        told = whole.json()
        assert told["success"] is True
        assert isinstance(told["eta"], int)
        by_task = await client.completed(task_id=told["task_id"])
        by_conversion = await client.completed(conversion_id=told["conversion_id"])
        assert by_task == by_conversion
        assert ("audio_url_wav" in by_task) is (generation == 1)
        url = await client.submit(data={"audio_url": "https://example.org/a.mp3"})
        assert (await client.completed(task_id=url.json()["task_id"]))["conversion_cost"]
        first, second = vendor.submissions
        assert first.preprocessing == ("Denoise", "Deecho", "Dereverb")
        assert first.eco_mode is (generation == 2)
        assert (first.size, second.stems) == (
            track.stat().st_size,
            ("drums", "bass", "piano", "guitar"),
        )
        listed = await client.get("byUser", sortOrder="ASC", limit="1")
        assert [each["task_id"] for each in listed.json()["conversions"]] == [first.task_id]


async def curl(*arguments: str) -> tuple[int, Any]:
    """Run curl; the status and the JSON that it got."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--noproxy", "*", "--write-out", "\n%{http_code}", *arguments]
    ended = await anyio.run_process(command)
    body, _, status = ended.stdout.decode().rpartition("\n")
    return int(status), json.loads(body)


@pytest.mark.parametrize(("generation", "version"), [(1, "/v1"), (2, "/v1"), (2, "/v2")])
async def test_curl_as_the_documents_describe_it(
    track: Path, generation: Any, version: str
) -> None:
    """A multipart form, a bare key, byId by its query; and what is refused has its body."""
    async with emulated(generation=generation) as vendor:
        root = vendor.base_url.removesuffix("/v1")
        key = ("--header", f"Authorization: {vendor.api_key}")
        form = ("--form", f"audio_file=@{track}", "--form", 'stems=["vocals"]')
        status, told = await curl("--request", "POST", f"{root}{version}/Extraction", *key, *form)
        assert (status, told["success"]) == (200, True)
        query = f"conversionType=EXTRACTION&task_id={told['task_id']}"
        with anyio.fail_after(30):
            while True:
                status, seen = await curl(f"{root}/v1/byId?{query}", *key)
                if seen["conversion"]["status"] == "COMPLETED":
                    break
        assert list(json.loads(seen["conversion"]["audio_url"])) == ["vocals"]
        assert vendor.submissions[0].file_name == track.name
        status, refused = await curl(f"{root}{version}/Extraction", *key, "--form", "stems=[]")
        words = "Either audio_url or audio_file must be provided."
        assert (status, refused) == (422, {"success": False, "message": words})
        status, refused = await curl(f"{root}/v1/byId?{query}")
        assert status == (401 if generation == 1 else 403)
        assert refused["success"] is False
