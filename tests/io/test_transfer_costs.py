"""What a transfer costs: memory, and turns of the loop that others need."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from aiohttp.abc import AbstractStreamWriter
from factories.downloads import MIB, Get
from factories.uploads import body_of, open_track, stream, write_track
from factories.watching import largest_gap

from musicgpt_async._io.content import BLOCK_SIZE

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


_SINK = """
import socket
s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True)
block = memoryview(bytearray(1 << 20))
while True:
    c, _ = s.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += c.recv(1 << 16)
    head, _, start = head.partition(b"\\r\\n\\r\\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\\r\\n")[0]) - len(start)
    while length:
        length -= c.recv_into(block)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}"); c.close()
"""

_UPLOAD = """
import asyncio, resource, sys
from concurrent.futures import ThreadPoolExecutor
from musicgpt_async._io import content as content_, sources, upload
from musicgpt_async._io.http import Transport

async def nothing(): pass

async def send(transport, executor, path, url):
    async with sources.open_track(sources.parse_source(path), executor) as content:
        body = upload.MultipartBody({"a": "b"}, content, stall_timeout=60, before_commit=nothing,
            progress=lambda _: None, digest=content_.Digest(executor))
        assert (await transport.post(url, body)).status == 200 and body.delivered

def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def main(small, large, url):
    transport = Transport("key", request_timeout=60, downloads=1, is_allowed=lambda _: True)
    transport.open()
    with ThreadPoolExecutor(6) as executor:
        await send(transport, executor, small, url)
        before = most()
        await send(transport, executor, large, url)
        print(before, most(), flush=True)
    await transport.close()

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def sink() -> AsyncIterator[str]:
    """Run a server in another process that reads uploads as fast as they arrive."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SINK, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.communicate()


async def test_a_file_of_a_gibibyte_adds_less_than_16_mebibytes(tmp_path: Path) -> None:
    """Memory is flat: a large file costs what a small one costs, and a little for its blocks."""
    write_track(tmp_path / "small.wav", 1000)
    (tmp_path / "large.wav").touch()
    os.truncate(tmp_path / "large.wav", 1 << 30)
    async with sink() as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _UPLOAD,
            str(tmp_path / "small.wav"),
            str(tmp_path / "large.wav"),
            url,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    before, after = (int(word) for word in out.split())
    print(f"1 GiB added {after - before} KiB")  # noqa: T201 - the figure for pytest -rP
    assert after - before < 16 * 1024


class _Swallows(AbstractStreamWriter):
    """A writer that accepts everything at once and never blocks."""

    async def write(self, chunk: Any) -> None:
        """Take it."""

    async def write_eof(self, chunk: bytes = b"") -> None:
        """End."""

    async def drain(self) -> None:
        """Return at once, as aiohttp's does while the other side keeps up."""

    def enable_compression(self, encoding: str = "deflate", strategy: Any = None) -> None:
        """Never."""

    def enable_chunking(self) -> None:
        """Never."""

    async def write_headers(self, status_line: str, headers: Any) -> None:
        """Take them."""


@pytest.mark.parametrize("kind", ["path", "bytes", "stream"])
async def test_others_have_their_turn_after_every_block(
    kind: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """An upload yields to the loop even if neither reading nor writing ever waits."""
    read_blocks = 32
    data = write_track(tmp_path / "a.wav", read_blocks * BLOCK_SIZE)
    source = {"path": tmp_path / "a.wav", "bytes": ("a", data), "stream": ("a", stream(data))}
    turns, done = 0, anyio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with open_track(source[kind], executor) as content, anyio.create_task_group() as group:
        group.start_soon(count)
        await body_of(content).write(_Swallows())
        done.set()
    assert turns >= read_blocks


@pytest.mark.parametrize("kind", ["path", "bytes"])
async def test_an_upload_does_not_starve_the_loop(
    kind: str, tmp_path: Path, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Others get their turn all through a transfer: no gap is near as long as the transfer."""
    size = 512 << 20
    if kind == "path":
        (tmp_path / "large.wav").touch()
        os.truncate(tmp_path / "large.wav", size)
        source: Any = tmp_path / "large.wav"
    else:
        source = ("large.wav", bytes(size))
    async with sink() as url, lanes() as transport, open_track(source, executor) as content:
        stop, gaps = anyio.Event(), []

        async def watch() -> None:
            gaps.append(await largest_gap(stop))

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            began = anyio.current_time()
            await transport.post(url, body_of(content))
            took = anyio.current_time() - began
            stop.set()
    print(f"{kind}: {took:.2f} s, largest gap {gaps[0]:.4f} s")  # noqa: T201 - for pytest -rP
    assert gaps[0] < took / 3


_SOURCE = """
import socket, sys
s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True)
size = int(sys.argv[1]); block = b"\\xff\\xfb" + bytes((1 << 20) - 2)
while True:
    c, _ = s.accept()
    c.recv(1 << 16)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % size)
    for _ in range(size // len(block)):
        c.sendall(block)
    c.close()
"""


async def test_a_download_does_not_starve_the_loop(get: Get, tmp_path: Path) -> None:
    """Others get their turn all through a transfer: no gap is near as long as the transfer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SOURCE, str(256 * MIB), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(await process.stdout.readline())}/"
        stop, gaps = anyio.Event(), []

        async def watch() -> None:
            gaps.append(await largest_gap(stop))

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            began = anyio.current_time()
            fetched = await get(url, tmp_path / "a.mp3")
            took = anyio.current_time() - began
            stop.set()
    finally:
        process.kill()
        await process.communicate()
    print(f"256 MiB: {took:.2f} s, largest gap {gaps[0]:.4f} s")  # noqa: T201 - for pytest -rP
    assert fetched.size == 256 * MIB
    assert gaps[0] < took / 3
