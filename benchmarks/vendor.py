"""The emulator as a vendor in a process of its own, in clear, over TLS, or behind a slow uplink.

python benchmarks/vendor.py SETTINGS

takes its settings as JSON, writes its base URL, and serves until standard input closes.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from comparison import cores

BLOCK = 1 << 14  # bytes that a slow uplink passes on at a time


@contextmanager
def running(**settings: Any) -> Iterator[str]:
    """Run the vendor in a process of its own; yield its base URL.

    Args:
        settings: ``seconds`` that a conversion takes, ``stem_bytes``, ``parallel`` conversions,
            and optionally ``certificate``, a file with a key and a chain, and ``uplink``, the bytes
            a second that it takes from all connections together.
    """
    command = [sys.executable, __file__, json.dumps(settings)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if (both := cores()) is not None:
            os.sched_setaffinity(process.pid, {both[0]})
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


async def serve(
    *,
    seconds: float,
    stem_bytes: int,
    parallel: int,
    certificate: str | None = None,
    uplink: float | None = None,
) -> None:
    """Be the vendor until standard input closes."""
    from musicgpt_async.emulator import Emulator  # noqa: PLC0415 - the clients do not need it

    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    emulator = Emulator(
        parallel=parallel,
        polls_per_minute=None,
        credits=1e9,
        seconds=seconds,
        separate=False,
        keep_audio=False,
        stem_bytes=stem_bytes,
        tls=tls,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(emulator)
        base = emulator.base_url
        if uplink is not None:
            proxy = await stack.enter_async_context(await SlowUplink(emulator.url, uplink).listen())
            port = proxy.sockets[0].getsockname()[1]
            base = base.replace(emulator.url, f"http://127.0.0.1:{port}")
        sys.stdout.write(base + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


class SlowUplink:
    """Passes connections on to a server, with a bound on what all of them send together.

    Args:
        url: The server.
        rate: Bytes a second.
    """

    def __init__(self, url: str, rate: float) -> None:
        self._url = urlsplit(url)
        self._rate = rate
        self._free_at = 0.0

    async def listen(self) -> asyncio.Server:
        """Return the listening server."""
        # A small buffer, so that the client feels the bound at once.
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=BLOCK)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._url.hostname, self._url.port)
        with suppress(OSError):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(reader, back))
                group.create_task(_copy(there, writer))
        for each in (writer, back):
            each.close()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while block := await reader.read(BLOCK):
            self._free_at = max(self._free_at, loop.time()) + len(block) / self._rate
            await asyncio.sleep(self._free_at - loop.time())
            writer.write(block)
            await writer.drain()
        writer.write_eof()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while block := await reader.read(1 << 16):
        writer.write(block)
        await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(serve(**json.loads(sys.argv[1])))
