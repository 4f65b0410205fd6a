"""Processes that share an account: each runs account_process.py."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

from musicgpt_async.emulator import Emulator

PROCESS = Path(__file__).parents[1] / "account" / "account_process.py"


@attrs.define
class AccountProcess:
    """A process that has opened its session and waits for the word to begin.

    Attributes:
        running: The process.
        lines: What it has printed, as far as that was read.
    """

    running: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = attrs.field(factory=list)

    def begin(self) -> None:
        """Let it begin."""
        assert self.running.stdin is not None
        self.running.stdin.write(b"\n")

    async def finish(self) -> None:
        """Wait for its end and read what it printed."""
        output, _ = await self.running.communicate()
        self.lines += [json.loads(line) for line in output.splitlines()]
        assert self.running.returncode == 0

    @property
    def tracks(self) -> dict[str, str | None]:
        """Its tracks and their errors."""
        return {line["track"]: line["error"] for line in self.lines if "track" in line}

    @property
    def seconds(self) -> float:
        """How long it took from the word to begin."""
        return float(self.lines[-1]["seconds"])


@asynccontextmanager
async def open_process(
    vendor: Emulator, journal: str, tracks: Sequence[str] = (), **changes: Any
) -> AsyncIterator[AccountProcess]:
    """Start a process; it is killed at the end of the block if it still runs."""
    settings = {
        "base_url": vendor.base_url,
        "key": vendor.api_key,
        "journal": journal,
        "lease": 5.0,
        "parallel": 10,
        "polls_per_minute": 500,
        "max_credits": None,
        "resume": False,
        "size": 20_000,
        "tracks": list(tracks),
        **changes,
    }
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), json.dumps(settings), stdin=pipe, stdout=pipe
    )
    try:
        assert running.stdout is not None
        assert b"ready" in await running.stdout.readline()
        yield AccountProcess(running)
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def run_together(*processes: AccountProcess) -> None:
    """Let processes begin at once, and wait for their ends."""
    for process in processes:
        process.begin()
    async with asyncio.TaskGroup() as group:
        for process in processes:
            group.create_task(process.finish())
