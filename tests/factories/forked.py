"""Processes that begin with their imports done: a server imports once, and forks for each."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

import anyio
import batch_process

CONTEXT = multiprocessing.get_context("forkserver")
# Only installed modules: before Python 3.13 the server does not know the path of the tests.
CONTEXT.set_forkserver_preload(
    ["musicgpt_async.journal", "musicgpt_async._io.http_server", "sqlalchemy.dialects.sqlite"]
)


class BatchProcess:
    """A process that works on a batch, as ``batch_process.py`` does.

    Attributes:
        stdout: What it prints.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.stdout = asyncio.StreamReader()
        self._reader, writer = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=run_batch, args=(json.dumps(settings), writer))
        self._process.start()
        writer.close()

    @property
    def returncode(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    async def wait(self) -> int:
        """Wait for its end; return its exit code."""
        await anyio.wait_readable(self._process.sentinel)
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    async def read(self) -> bytes:
        """Return the rest of what it prints, once it has ended."""
        printed = await self.stdout.read()
        await self.wait()
        return printed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[BatchProcess]:
        """Read what it prints; it has ended at the end of the block, or is killed."""
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.stdout),
            os.fdopen(os.dup(self._reader.fileno()), "rb"),
        )
        try:
            yield self
        finally:
            if self.returncode is None:
                self.kill()
            with anyio.CancelScope(shield=True):
                await self.wait()
            transport.close()
            self._reader.close()
            self._process.close()


def run_batch(settings: str, writer: Connection) -> None:
    """Run a batch with its standard output in the pipe."""
    os.dup2(writer.fileno(), 1)
    writer.close()
    batch_process.run(settings)
