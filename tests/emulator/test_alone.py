from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

import musicgpt_async.emulator

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
    """No module of the emulator's reaches out of its own room, lazily or for types either."""
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


@pytest.mark.anyio
async def test_it_stands_in_a_process_of_its_own() -> None:
    """Another process serves, without numpy where nothing is split, and ends when told to."""
    with subprocess.Popen(  # noqa: ASYNC220  its pipes are read where nothing else runs
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
