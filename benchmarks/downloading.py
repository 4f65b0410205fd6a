"""Concurrent downloads to files: this library, the machine's limit and other clients."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contest import Column, Table, contest, without
from servers import Server
from uploading import connected, memory

MIB = 1 << 20
COLUMNS = (
    Column("MiB/s", lambda each: each["mib"] / each["wall"], ".0f"),
    Column("CPU s/GiB", lambda each: 1024 * each["cpu"] / each["mib"], ".3f"),
    Column("added MiB", lambda each: each["added"], ".1f"),
    Column("loop held ms", lambda each: 1000 * each.get("held", math.nan), ".1f"),
    Column("of it CPU", lambda each: 1000 * each.get("worked", math.nan), ".1f"),
)

Go = Callable[[], Awaitable[dict[str, float]]]
Contender = Callable[[str, str, int, int], AbstractAsyncContextManager[Go]]


def links(root: str, mib: int, count: int) -> list[str]:
    """Return the links of some files."""
    return [f"{root}/files/{mib * MIB + 44}-{number}.wav" for number in range(count)]


@contextmanager
def folder(parent: str, mib: int, count: int) -> Iterator[Path]:
    """Yield a folder, and check at the end that all files in it are complete."""
    path = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield path
        sizes = [each.stat().st_size for each in path.iterdir()]
        assert sizes == [mib * MIB + 44] * count, sizes
    finally:
        shutil.rmtree(path)


@contextmanager
def bare(root: str, parent: str, mib: int, count: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Receive and write blocks, with one thread per file: the limit in Python."""

    def fetch(url: str, path: Path) -> None:
        buffer = memoryview(bytearray(MIB))
        with connected(url) as to, path.open("wb", buffering=0) as file:
            to.sendall(f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: b\r\n\r\n".encode())
            left = mib * MIB + 44
            first = to.recv(65536, socket.MSG_PEEK) if not isinstance(to, ssl.SSLSocket) else b""
            head = first.find(b"\r\n\r\n") + 4
            rest = to.recv(head)[head:] if first else to.recv(65536).partition(b"\r\n\r\n")[2]
            file.write(rest)
            left -= len(rest)
            while left:
                count = to.recv_into(buffer)
                file.write(buffer[:count])
                left -= count

    with folder(parent, mib, count) as path:

        def go() -> dict[str, float]:
            threads = [
                threading.Thread(target=fetch, args=(url, path / f"{number}.wav"))
                for number, url in enumerate(links(root, mib, count))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return {"mib": mib * count}

        yield go


def program(command: Callable[[list[str], Path], list[str]]) -> Any:
    """Return a contender that runs a program."""

    @contextmanager
    def contender(
        root: str, parent: str, mib: int, count: int
    ) -> Iterator[Callable[[], dict[str, float]]]:
        with folder(parent, mib, count) as path:

            def go() -> dict[str, float]:
                urls = links(root, mib, count)
                subprocess.run(command(urls, path), check=True, stdout=subprocess.DEVNULL)
                return {"mib": mib * count, "added": math.nan}

            yield go

    return contender


def curl(urls: list[str], path: Path) -> list[str]:
    """Download with ``curl --parallel``."""
    files = [part for url in urls for part in ("-O", url)]
    trusted = ["--cacert", os.environ["SSL_CERT_FILE"]]
    return ["curl", "-sfZ", *trusted, "--output-dir", str(path), *files]


def aria2c(urls: list[str], path: Path) -> list[str]:
    """Download with ``aria2c -x4``."""
    trusted = [f"--ca-certificate={os.environ['SSL_CERT_FILE']}"]
    options = ["-q", "-x4", f"-j{len(urls)}", "-Z", f"--dir={path}", "--no-conf=true"]
    return ["aria2c", *options, *trusted, *urls]


@contextmanager
def requests_threads(
    root: str, parent: str, mib: int, count: int
) -> Iterator[Callable[[], dict[str, float]]]:
    """Download with requests, with one thread per file."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    import requests  # noqa: PLC0415

    with folder(parent, mib, count) as path, requests.Session() as client:
        trusted = os.environ["SSL_CERT_FILE"]

        def fetch(number: int, url: str) -> None:
            with (
                client.get(url, stream=True, verify=trusted) as answer,
                (path / f"{number}.wav").open("wb") as to,
            ):
                for chunk in answer.iter_content(65536):
                    to.write(chunk)

        def go() -> dict[str, float]:
            with ThreadPoolExecutor(count) as threads:
                for each in [
                    threads.submit(fetch, *link) for link in enumerate(links(root, mib, count))
                ]:
                    each.result()
            return {"mib": mib * count}

        yield go


@asynccontextmanager
async def httpx_async(root: str, parent: str, mib: int, count: int) -> AsyncIterator[Go]:
    """Download with httpx's asynchronous client."""
    import aiofiles  # noqa: PLC0415
    import httpx  # noqa: PLC0415

    trusted = ssl.create_default_context()
    with folder(parent, mib, count) as path:
        async with httpx.AsyncClient(timeout=600, verify=trusted) as client:

            async def fetch(number: int, url: str) -> None:
                async with (
                    client.stream("GET", url) as answer,
                    aiofiles.open(path / f"{number}.wav", "wb") as to,
                ):
                    async for chunk in answer.aiter_bytes():
                        await to.write(chunk)

            async def go() -> dict[str, float]:
                await asyncio.gather(*(fetch(*link) for link in enumerate(links(root, mib, count))))
                return {"mib": mib * count}

            yield go


@asynccontextmanager
async def aiohttp_aiofiles(root: str, parent: str, mib: int, count: int) -> AsyncIterator[Go]:
    """Download with aiohttp and aiofiles in blocks of 64 KiB, as tutorials do."""
    import aiofiles  # noqa: PLC0415
    import aiohttp  # noqa: PLC0415

    with folder(parent, mib, count) as path:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as client:

            async def fetch(number: int, url: str) -> None:
                async with (
                    client.get(url) as answer,
                    aiofiles.open(path / f"{number}.wav", "wb") as to,
                ):
                    async for chunk in answer.content.iter_chunked(65536):
                        await to.write(chunk)

            async def go() -> dict[str, float]:
                await asyncio.gather(*(fetch(*link) for link in enumerate(links(root, mib, count))))
                return {"mib": mib * count}

            yield go


@asynccontextmanager
async def ours(root: str, parent: str, mib: int, count: int) -> AsyncIterator[Go]:
    """Download as a session does: each file is checked, synced to disk and renamed."""
    from musicgpt_async import MusicGPTSession  # noqa: PLC0415

    session = MusicGPTSession("key", base_url=f"{root}/api/public/v1")
    await session.start()
    download = session._runtime._downloads.downloader.download  # noqa: SLF001 - no job has these links
    with folder(parent, mib, count) as path:

        def progress(received: int, total: int | None) -> None:
            pass

        async def go() -> dict[str, float]:
            await asyncio.gather(
                *(
                    download(url, path / f"{number}.wav", progress=progress)
                    for number, url in enumerate(links(root, mib, count))
                )
            )
            return {"mib": mib * count}

        try:
            yield go
        finally:
            await session.aclose(drain=False)


def small_writes() -> None:
    """Write blocks of 64 KiB."""
    from musicgpt_async._io import response_body  # noqa: PLC0415

    response_body.CHUNK_SIZE = 65536


def no_sync() -> None:
    """Do not sync files to disk."""
    os.fsync = lambda _: None  # type: ignore[assignment]


CONTENDERS: dict[str, Any] = {
    "bare": bare,
    "curl": program(curl),
    "aria2c": program(aria2c),
    "ours": ours,
    "ours, uvloop": ours,
    "aiohttp, aiofiles 64 KiB": aiohttp_aiofiles,
    "httpx async": httpx_async,
    "requests, threads": requests_threads,
    "ours, written by 64 KiB": without(ours, small_writes),
    "ours, no fsync": without(ours, no_sync),
}
PEERS = list(CONTENDERS)[:8]
ABLATIONS = ["ours", *list(CONTENDERS)[8:]]


def tables(
    server: Server, mib: int, rounds: int, names: list[str], *, count: int = 4
) -> Iterator[Table]:
    """Measure downloads to memory, with and without TLS."""
    with tempfile.TemporaryDirectory(dir=memory()) as directory:
        for tls in (False, True):
            yield contest(
                f"Download of {count} x {mib} MiB{' over TLS' if tls else ''}",
                "downloading",
                COLUMNS,
                rounds=rounds,
                arguments={
                    "root": server.root(tls=tls),
                    "parent": directory,
                    "mib": mib,
                    "count": count,
                },
                warm_up={"mib": 0},
                names=names,
                environment={"SSL_CERT_FILE": server.ca},
            )
