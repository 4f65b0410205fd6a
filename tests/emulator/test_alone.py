from __future__ import annotations

import ast
import json
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import anyio
import pytest

import musicgpt_async.emulator
from musicgpt_async.emulator import Emulator

ROOM = Path(musicgpt_async.emulator.__file__).parent

STANDING = """
import asyncio, sys
from musicgpt_async.emulator import Emulator

async def main():
    async with Emulator(separate=False, seconds=0) as vendor:
        print(vendor.base_url, vendor.api_key, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(len(vendor.submissions), "numpy" in sys.modules, "soundfile" in sys.modules)

asyncio.run(main())
"""

WITHOUT_NUMPY = """
import sys
sys.modules[sys.argv[1]] = None
from musicgpt_async.emulator import Emulator
Emulator(separate=False)
try:
    Emulator()
except ImportError as error:
    print(error)
"""


def test_it_imports_nothing_of_the_client() -> None:
    """No module of the emulator imports the client, neither lazily nor for types."""
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                assert not name.startswith("musicgpt_async") or name.startswith(
                    "musicgpt_async.emulator"
                ), f"{path.name} imports {name}"


@pytest.mark.parametrize("missing", ["numpy", "soundfile"])
def test_a_missing_extra_is_named(missing: str) -> None:
    """Without numpy or soundfile the pretence works, and the separation says what to install."""
    command = [sys.executable, "-c", WITHOUT_NUMPY, missing]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert 'pip install "musicgpt-async[emulator]"' in told.stdout


def test_settings_that_contradict_each_other_are_refused() -> None:
    """Separation requires kept audio, and a clock must move."""
    with pytest.raises(ValueError, match="keep_audio"):
        Emulator(keep_audio=False)
    with pytest.raises(ValueError, match="speed"):
        Emulator(speed=0)


@pytest.mark.anyio
async def test_a_port_that_is_taken_is_an_oserror_and_leaves_nothing() -> None:
    """The error is raised at once, and everything that was created is removed."""
    async with Emulator(separate=False) as vendor:
        port = int(vendor.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with Emulator(separate=False, port=port):
                pass


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for loopback, and a client's that trusts it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    return serving, ssl.create_default_context(cafile=certificate)


@pytest.mark.anyio
async def test_it_serves_over_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """With a context both hosts speak https, and so do the links."""
    serving, trusting = contexts
    form = {"audio_url": "https://example.org/a.mp3", "stems": '["bass"]'}
    async with (
        Emulator(separate=False, seconds=0, tls=serving) as vendor,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as http,
    ):
        headers = {"Authorization": vendor.api_key}
        async with http.post(f"{vendor.base_url}/Extraction", data=form, headers=headers) as told:
            assert told.status == 200
        while not vendor.submissions[0].is_completed:
            await anyio.sleep(0.01)
        query = {"conversionType": "EXTRACTION", "task_id": vendor.submissions[0].task_id}
        async with http.get(f"{vendor.base_url}/byId", params=query, headers=headers) as told:
            links = json.loads((await told.json())["conversion"]["audio_url_wav"])
        assert links["bass"].startswith("https://127.0.0.1:")
        async with http.get(links["bass"]) as file:
            assert len(await file.read()) == 65_536


@pytest.mark.anyio
async def test_it_runs_in_its_own_process() -> None:
    """It runs in another process, without numpy unless it separates, and ends on request."""
    with subprocess.Popen(  # noqa: ASYNC220  nothing else runs while its pipes are read
        [sys.executable, "-c", STANDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url, key = process.stdout.readline().split()
        form = aiohttp.FormData({"stems": json.dumps(["bass"])})
        form.add_field("audio_file", b"sound", filename="song.wav")
        async with (
            aiohttp.ClientSession(headers={"Authorization": key}) as http,
            http.post(f"{url}/Extraction", data=form) as answer,
        ):
            assert answer.status == 200
        told, _ = process.communicate("\n", timeout=60)
    assert told.split() == ["1", "False", "False"]
    assert process.returncode == 0
