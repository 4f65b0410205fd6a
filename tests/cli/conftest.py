"""The command as its users run it: a process of its own, against a vendor in the test's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.abc
import attrs
import pytest

from musicgpt_async.emulator import Emulator

COMMAND = (sys.executable, "-m", "musicgpt_async.cli")
# Seconds after which something hangs.
HANG = 60


@attrs.frozen
class Ended:
    """What a process left behind."""

    code: int
    out: str
    err: str

    @property
    def tracks(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@attrs.frozen
class Running:
    """A process that has not ended."""

    process: anyio.abc.Process

    async def ended(self) -> Ended:
        """Wait for its end."""
        parts: dict[str, bytes] = {}

        async def read(name: str, stream: anyio.abc.ByteReceiveStream) -> None:
            parts[name] = b"".join([chunk async for chunk in stream])

        with anyio.fail_after(HANG):
            async with anyio.create_task_group() as tasks:
                for name, stream in (("out", self.process.stdout), ("err", self.process.stderr)):
                    if stream is not None:
                        tasks.start_soon(read, name, stream)
            code = await self.process.wait()
        return Ended(code, parts.get("out", b"").decode(), parts.get("err", b"").decode())

    async def says(self, words: str, *, times: int = 1) -> None:
        """Wait until stderr has said something so often."""
        assert self.process.stderr
        told = b""
        with anyio.fail_after(HANG):
            while told.decode(errors="replace").count(words) < times:
                told += await self.process.stderr.receive()

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send a signal."""
        self.process.send_signal(number)


@attrs.frozen
class Shell:
    """Runs the command in a directory, with an environment that knows a vendor."""

    directory: Path
    environment: dict[str, str]

    @asynccontextmanager
    async def start(
        self,
        *arguments: str | Path,
        stdin: int | IO[bytes] | None = None,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        **environment: str,
    ) -> AsyncIterator[Running]:
        """Start the command; it is killed at the end of the block if it still runs."""
        async with await anyio.open_process(
            [*COMMAND, *map(str, arguments)],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        ) as process:
            try:
                yield Running(process)
            finally:
                if process.returncode is None:
                    process.kill()

    async def run(
        self, *arguments: str | Path, stdin: int | IO[bytes] | None = None, **environment: str
    ) -> Ended:
        """Run the command to its end."""
        async with self.start(*arguments, stdin=stdin, **environment) as running:
            return await running.ended()

    async def together(self, *runs: Coroutine[Any, Any, Ended]) -> list[Ended]:
        """Await several processes at once."""
        ended: dict[int, Ended] = {}

        async def one(number: int, run: Coroutine[Any, Any, Ended]) -> None:
            ended[number] = await run

        async with anyio.create_task_group() as tasks:
            for number, run in enumerate(runs):
                tasks.start_soon(one, number, run)
        return [ended[number] for number in range(len(runs))]

    def track(self, name: str, size: int = 20_000) -> Path:
        """Make a track, different for each name."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name).ljust(size, b"~"))
        return path


OpenVendor = Callable[..., AbstractAsyncContextManager[tuple[Emulator, Shell]]]


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of a user who has set nothing."""
    # LINES and COLUMNS are no user's: readline sets them in the workers of pytest-xdist.
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("MUSICGPT_") and name not in {"LINES", "COLUMNS"}
    }
    return {**kept, "TERM": "xterm-256color"}


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Shell:
    """A shell that knows no vendor."""
    return Shell(tmp_path, environment)


@pytest.fixture
def open_vendor(tmp_path: Path, environment: dict[str, str]) -> OpenVendor:
    """Makes a vendor, and a shell that knows it."""

    @asynccontextmanager
    async def make(**settings: Any) -> AsyncIterator[tuple[Emulator, Shell]]:
        settings = {"separate": False, "stem_bytes": 4096, "polls_per_minute": None, **settings}
        async with Emulator(**settings) as emulator:
            known = {
                "MUSICGPT_API_KEY": emulator.api_key,
                "MUSICGPT_BASE_URL": emulator.base_url,
            }
            yield emulator, Shell(tmp_path, {**environment, **known})

    return make
