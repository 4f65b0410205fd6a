"""`emulate` as either generation of the API."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("options", "base", "ending"),
    [
        ((), "/api/public/v1", ".wav"),
        (("--generation", "2"), "/api/public", ".mp3"),
        (("--generation", "2", "--wav"), "/api/public", ".wav"),
        (("--no-wav",), "/api/public/v1", ".mp3"),
    ],
)
async def test_emulate_stands_in_for_either_generation(
    shell: Any, options: tuple[str, ...], base: str, ending: str
) -> None:
    """The default command brings the stems from each, by what `emulate` prints."""
    async with shell.start(
        "emulate", "--pretend", "--seconds", "0", "--key", "k", *options
    ) as running:
        assert running.process.stdout
        line = b""
        while b"MUSICGPT_API_KEY" not in line:
            line += await running.process.stdout.receive()
        found = re.search(rb"MUSICGPT_BASE_URL=(\S+)", line)
        assert found
        url = found[1].decode()
        assert url.endswith(base)
        known = {"MUSICGPT_BASE_URL": url, "MUSICGPT_API_KEY": "k"}
        ended = await shell.run("extract", "--out", "o", shell.track("a.mp3"), **known)
        assert ended.code == 0, ended.err
        made = {path.suffix for path in (shell.directory / "o").glob("a - *")}
        assert made == {ending}
