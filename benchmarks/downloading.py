"""Downloads to files, several at once: ours beside the machine's limit and other clients."""

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

from comparison import Column, Table, compare
from servers import Server, trust
from uploading import connected, memory

MIB = 1 << 20
COLUMNS = (
    Column("MiB/s", lambda each: each["mib"] / each["wall"], ".0f"),
    Column("CPU s/GiB", lambda each: 1024 * each["cpu"] / each["mib"], ".3f"),
    Column("added MiB", lambda each: each["added"], ".1f"),
    Column("loop held ms", lambda each: 1000 * each.get("held", math.nan), ".1f"),
    Column("of it CPU", lambda each: 1000 * each.get("worked", math.nan), ".1f"),
)

Run = Callable[[], Awaitable[dict[str, float]]]
Client = Callable[[str, str, int, int], AbstractAsyncContextManager[Run]]


def links(root: str, mib: int, count: int) -> list[str]:
    """Return the links of some files."""
    return [f"{root}/files/{mib * MIB + 44}-{number}.wav" for number in range(count)]


@contextmanager
def results(parent: str, mib: int, count: int) -> Iterator[Path]:
    """Yield a directory, and check in the end that all files are in it, complete."""
    path = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield path
        sizes = [each.stat().st_size for each in path.iterdir()]
        assert sizes == [mib * MIB + 44] * count, sizes
    finally:
        shutil.rmtree(path)


@contextmanager
def bare(root: str, parent: str, mib: int, count: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Receive a block, write a block, a thread each: the limit in Python."""

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

    with results(parent, mib, count) as path:

        def run() -> dict[str, float]:
            threads = [
                threading.Thread(target=fetch, args=(url, path / f"{number}.wav"))
                for number, url in enumerate(links(root, mib, count))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return {"mib": mib * count}

        yield run


def program(command: Callable[[list[str], Path], list[str]]) -> Any:
    """Return a client that runs a program."""

    @contextmanager
    def client(
        root: str, parent: str, mib: int, count: int
    ) -> Iterator[Callable[[], dict[str, float]]]:
        with results(parent, mib, count) as path:

            def run() -> dict[str, float]:
                urls = links(root, mib, count)
                subprocess.run(command(urls, path), check=True, stdout=subprocess.DEVNULL)
                return {"mib": mib * count, "added": math.nan}

            yield run

    return client


def curl(urls: list[str], path: Path) -> list[str]:
    """Fetch with ``curl --parallel``."""
    files = [part for url in urls for part in ("-O", url)]
    trusted = ["--cacert", os.environ["SSL_CERT_FILE"]]
    return ["curl", "-sfZ", *trusted, "--output-dir", str(path), *files]


def aria2c(urls: list[str], path: Path) -> list[str]:
    """Fetch with ``aria2c -x4``."""
    trusted = [f"--ca-certificate={os.environ['SSL_CERT_FILE']}"]
    options = ["-q", "-x4", f"-j{len(urls)}", "-Z", f"--dir={path}", "--no-conf=true"]
    return ["aria2c", *options, *trusted, *urls]


@contextmanager
def requests_threads(
    root: str, parent: str, mib: int, count: int
) -> Iterator[Callable[[], dict[str, float]]]:
    """Fetch with requests, a thread each."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    import requests  # noqa: PLC0415

    with results(parent, mib, count) as path, requests.Session() as client:
        trusted = os.environ["SSL_CERT_FILE"]

        def fetch(number: int, url: str) -> None:
            with (
                client.get(url, stream=True, verify=trusted) as response,
                (path / f"{number}.wav").open("wb") as to,
            ):
                for chunk in response.iter_content(65536):
                    to.write(chunk)

        def run() -> dict[str, float]:
            with ThreadPoolExecutor(count) as threads:
                for each in [
                    threads.submit(fetch, *link) for link in enumerate(links(root, mib, count))
                ]:
                    each.result()
            return {"mib": mib * count}

        yield run


@asynccontextmanager
async def httpx2_async(root: str, parent: str, mib: int, count: int) -> AsyncIterator[Run]:
    """Fetch with httpx2's asynchronous client."""
    import aiofiles  # noqa: PLC0415
    import httpx2  # noqa: PLC0415

    trusted = ssl.create_default_context()
    with results(parent, mib, count) as path:
        async with httpx2.AsyncClient(timeout=600, verify=trusted) as client:

            async def fetch(number: int, url: str) -> None:
                async with (
                    client.stream("GET", url) as response,
                    aiofiles.open(path / f"{number}.wav", "wb") as to,
                ):
                    async for chunk in response.aiter_bytes():
                        await to.write(chunk)

            async def run() -> dict[str, float]:
                await asyncio.gather(*(fetch(*link) for link in enumerate(links(root, mib, count))))
                return {"mib": mib * count}

            yield run


@asynccontextmanager
async def aiohttp_aiofiles(root: str, parent: str, mib: int, count: int) -> AsyncIterator[Run]:
    """Fetch with aiohttp into aiofiles by 64 KiB, as tutorials do."""
    import aiofiles  # noqa: PLC0415
    import aiohttp  # noqa: PLC0415

    with results(parent, mib, count) as path:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as client:

            async def fetch(number: int, url: str) -> None:
                async with (
                    client.get(url) as response,
                    aiofiles.open(path / f"{number}.wav", "wb") as to,
                ):
                    async for chunk in response.content.iter_chunked(65536):
                        await to.write(chunk)

            async def run() -> dict[str, float]:
                await asyncio.gather(*(fetch(*link) for link in enumerate(links(root, mib, count))))
                return {"mib": mib * count}

            yield run


@asynccontextmanager
async def ours(root: str, parent: str, mib: int, count: int) -> AsyncIterator[Run]:
    """Fetch as a session does, each file checked, forced to the disk and renamed."""
    from musicgpt_async import MusicGPTSession  # noqa: PLC0415

    session = MusicGPTSession("key", base_url=f"{root}/api/public/v1")
    await session.start()
    runtime: Any = session._runtime
    download = runtime._downloads.downloader.download
    with results(parent, mib, count) as path:

        def progress(received: int, total: int | None) -> None:
            pass

        async def run() -> dict[str, float]:
            await asyncio.gather(
                *(
                    download(url, path / f"{number}.wav", progress=progress)
                    for number, url in enumerate(links(root, mib, count))
                )
            )
            return {"mib": mib * count}

        try:
            yield run
        finally:
            await session.aclose(drain=False)


CLIENTS: dict[str, Any] = {
    "bare sockets": bare,
    "curl": program(curl),
    "aria2c": program(aria2c),
    "ours": ours,
    "ours, uvloop": ours,
    "aiohttp, aiofiles 64 KiB": aiohttp_aiofiles,
    "httpx2 async": httpx2_async,
    "requests, threads": requests_threads,
}


def tables(server: Server, mib: int, rounds: int, *, count: int = 4) -> Iterator[Table]:
    """Download over TLS, to memory."""
    with tempfile.TemporaryDirectory(dir=memory()) as directory:
        yield compare(
            f"Download of {count} x {mib} MiB over TLS",
            "downloading",
            COLUMNS,
            rounds=rounds,
            arguments={"root": server.tls, "parent": directory, "mib": mib, "count": count},
            warm_up={"mib": 0},
            environment=trust(server.ca),
        )
