"""Uploads of one file as multipart: ours beside the machine's limit and other clients."""

from __future__ import annotations

import math
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from comparison import Column, Table, compare
from servers import BASE, Server, trust, wav_head

MIB = 1 << 20
COLUMNS = (
    Column("MiB/s", lambda each: each["mib"] / each["wall"], ".0f"),
    Column("CPU s/GiB", lambda each: 1024 * each["cpu"] / each["mib"], ".3f"),
    Column("added MiB", lambda each: each["added"], ".1f"),
    Column("loop held ms", lambda each: 1000 * each.get("held", math.nan), ".1f"),
    Column("of it CPU", lambda each: 1000 * each.get("worked", math.nan), ".1f"),
)


def connected(root: str) -> socket.socket:
    """Return a bare socket to the server."""
    parts = urlsplit(root)
    raw = socket.create_connection((parts.hostname or "", parts.port or 0))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.scheme == "https":
        return ssl.create_default_context().wrap_socket(raw, server_hostname="127.0.0.1")
    return raw


@contextmanager
def bare(root: str, path: str, mib: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Read a block, send a block: the limit in Python."""
    head = b'--b\r\nContent-Disposition: form-data; name="audio_file"; filename="a"\r\n\r\n'
    tail = b"\r\n--b--\r\n"
    size = len(head) + Path(path).stat().st_size + len(tail)
    buffer = memoryview(bytearray(MIB))

    def run() -> dict[str, float]:
        with connected(root) as to, open(path, "rb", buffering=0) as file:
            lines = f"POST {BASE}/Extraction HTTP/1.1\r\nHost: b\r\nContent-Length: {size}\r\n"
            to.sendall(f"{lines}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
            to.sendall(head)
            while count := file.readinto(buffer):
                to.sendall(buffer[:count])
            to.sendall(tail)
            assert to.recv(65536).startswith(b"HTTP/1.1 200")
        return {"mib": mib}

    yield run


@contextmanager
def curl(root: str, path: str, mib: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Upload with ``curl -F``."""

    def run() -> dict[str, float]:
        command = ["curl", "-sf", "-o", os.devnull, "-F", f"audio_file=@{path}"]
        trusted = ["--cacert", os.environ["SSL_CERT_FILE"]]
        subprocess.run([*command, *trusted, f"{root}{BASE}/Extraction"], check=True)
        return {"mib": mib, "added": math.nan}  # what Linux tells of a child begins at its parent's

    yield run


@contextmanager
def requests_files(root: str, path: str, mib: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Upload with requests' ``files=``."""
    import requests  # noqa: PLC0415 - each client loads its own client alone

    def run() -> dict[str, float]:
        with open(path, "rb") as file:
            response = requests.post(
                f"{root}{BASE}/Extraction",
                files={"audio_file": file},
                verify=os.environ["SSL_CERT_FILE"],
                timeout=600,
            )
        assert response.json()["success"]
        return {"mib": mib}

    yield run


Run = Callable[[], Awaitable[dict[str, float]]]
Client = Callable[[str, str, int], AbstractAsyncContextManager[Run]]


@asynccontextmanager
async def httpx2_async(root: str, path: str, mib: int) -> AsyncIterator[Run]:
    """Upload with httpx2's asynchronous client."""
    import httpx2  # noqa: PLC0415

    async with httpx2.AsyncClient(timeout=600, verify=ssl.create_default_context()) as client:

        async def run() -> dict[str, float]:
            with open(path, "rb") as file:  # noqa: ASYNC230 - what people write
                response = await client.post(f"{root}{BASE}/Extraction", files={"audio_file": file})
            assert response.json()["success"]
            return {"mib": mib}

        yield run


def with_aiohttp(body: Callable[[Any, Any], Any]) -> Client:
    """Return a client that posts what ``body`` makes of a form and an open file."""

    @asynccontextmanager
    async def client(root: str, path: str, mib: int) -> AsyncIterator[Run]:
        import aiohttp  # noqa: PLC0415

        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as client:

            async def run() -> dict[str, float]:
                with open(path, "rb") as file:  # noqa: ASYNC230 - what people write
                    form = aiohttp.FormData()
                    body(form, file)
                    async with client.post(f"{root}{BASE}/Extraction", data=form) as response:
                        assert (await response.json())["success"]
                return {"mib": mib}

            yield run

    return client


def open_file(form: Any, file: Any) -> None:
    """Give aiohttp the file itself."""
    form.add_field("audio_file", file, filename="a.wav")


def generator(form: Any, file: Any) -> None:
    """Give aiohttp a generator over aiofiles, as tutorials do."""
    import aiofiles  # noqa: PLC0415

    async def blocks() -> AsyncIterator[bytes]:
        async with aiofiles.open(file.name, "rb") as again:
            while block := await again.read(65536):
                yield block

    form.add_field("audio_file", blocks(), filename="a.wav")


@asynccontextmanager
async def ours(root: str, path: str, mib: int) -> AsyncIterator[Run]:
    """Submit with a session, until the vendor has accepted."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=Limits.FREE)
    await session.start()

    async def run() -> dict[str, float]:
        job = session.submit(path)
        await job.accepted()
        job.cancel()
        return {"mib": mib}

    try:
        yield run
    finally:
        await session.aclose(drain=False)


CLIENTS: dict[str, Any] = {
    "bare sockets": bare,
    "curl": curl,
    "ours": ours,
    "ours, uvloop": ours,
    "aiohttp, open file": with_aiohttp(open_file),
    "aiohttp, aiofiles 64 KiB": with_aiohttp(generator),
    "httpx2 async": httpx2_async,
    "requests": requests_files,
}


def tables(server: Server, mib: int, rounds: int) -> Iterator[Table]:
    """Upload over TLS."""
    with tempfile.TemporaryDirectory(dir=memory()) as directory:
        path, small = Path(directory, "track.wav"), Path(directory, "small.wav")
        small.write_bytes(wav_head(65536) + bytes(65536 - 44))
        with path.open("wb") as file:
            file.write(wav_head(mib * MIB) + bytes(MIB - 44))
            for _ in range(mib - 1):
                file.write(bytes(MIB))
        yield compare(
            f"Upload of {mib} MiB over TLS",
            "uploading",
            COLUMNS,
            rounds=rounds,
            arguments={"root": server.tls, "path": str(path), "mib": mib},
            warm_up={"path": str(small), "mib": 0},
            # requests keeps the whole file in memory and sends it in one piece.
            names=[name for name in CLIENTS if name != "requests" or mib <= 256],
            environment=trust(server.ca),
        )


def memory() -> str | None:
    """Return a directory in memory, so that the disk decides nothing."""
    return "/dev/shm" if sys.platform == "linux" and os.access("/dev/shm", os.W_OK) else None  # noqa: S108
