"""What the tests of other frameworks share: the README's code, and a vendor to run it against."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest

from musicgpt_async.emulator import Emulator

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def vendor(musicgpt_emulator: Emulator) -> Emulator:
    """The vendor of the project's own pytest plugin, which tells programs of it by environment."""
    return musicgpt_emulator


@pytest.fixture
def snippet(
    vendor: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., ModuleType]:
    """Run the README's Python blocks that have these lines in them, as one module.

    They run as a user's program does: in a directory of its own, the vendor in the environment.
    """
    monkeypatch.chdir(tmp_path)
    text = README.read_text("utf-8")
    blocks = [
        "\n" * text.count("\n", 0, match.start(1)) + match[1]  # tracebacks tell README's lines
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]

    def run(*lines: str) -> ModuleType:
        module = ModuleType("readme")
        for line in lines:
            (code,) = [block for block in blocks if line in block]
            exec(compile(code, str(README), "exec"), vars(module))  # noqa: S102 - the README's own
        return module

    return run


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the service under test."""
    async with aiohttp.ClientSession() as client:
        yield client


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket on a free port, for a service that has to know its address before it runs."""
    # asyncio turns Nagle's algorithm off only where the protocol is named.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener
