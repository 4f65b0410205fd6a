"""What the tests of frameworks share: the documentation's code, and a vendor to run it against."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest
from factories.pages import PAGES, blocks

from musicgpt_async.emulator import Emulator


@pytest.fixture
def vendor(musicgpt_emulator: Emulator) -> Emulator:
    """The emulator of the project's own pytest plugin, which sets the environment for programs."""
    return musicgpt_emulator


@pytest.fixture
def snippet(
    vendor: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., ModuleType]:
    """Run the Python blocks of the documentation that have these lines in them, as one module.

    They run as a user's program does: in a new directory, with the emulator in the environment.
    """
    monkeypatch.chdir(tmp_path)
    found = [block for page in PAGES for block in blocks(page, "python")]

    def run(*lines: str) -> ModuleType:
        module = ModuleType("documented")
        for line in lines:
            (block,) = [block for block in found if line in block.code]
            code = "\n" * (block.line - 1) + block.code  # tracebacks have the page's lines
            exec(compile(code, str(block.page), "exec"), vars(module))  # noqa: S102 - our own
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
    # asyncio only disables Nagle's algorithm if the protocol is given.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener
