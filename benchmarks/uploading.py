"""Multipart uploads of one file: this library, the machine's limit and other clients."""

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

from contest import Column, Table, contest, without
from servers import BASE, Server

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

    def go() -> dict[str, float]:
        with connected(root) as to, open(path, "rb", buffering=0) as file:
            lines = f"POST {BASE}/Extraction HTTP/1.1\r\nHost: b\r\nContent-Length: {size}\r\n"
            to.sendall(f"{lines}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
            to.sendall(head)
            while count := file.readinto(buffer):
                to.sendall(buffer[:count])
            to.sendall(tail)
            assert to.recv(65536).startswith(b"HTTP/1.1 200")
        return {"mib": mib}

    yield go


@contextmanager
def curl(root: str, path: str, mib: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Upload with ``curl -F``."""

    def go() -> dict[str, float]:
        command = ["curl", "-sf", "-o", os.devnull, "-F", f"audio_file=@{path}"]
        trusted = ["--cacert", os.environ["SSL_CERT_FILE"]]
        subprocess.run([*command, *trusted, f"{root}{BASE}/Extraction"], check=True)
        return {"mib": mib, "added": math.nan}  # Linux starts a child's peak at its parent's memory

    yield go


@contextmanager
def requests_files(root: str, path: str, mib: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Upload with requests' ``files=``."""
    import requests  # noqa: PLC0415 - each contender loads its own client alone

    def go() -> dict[str, float]:
        with open(path, "rb") as file:
            answer = requests.post(
                f"{root}{BASE}/Extraction",
                files={"audio_file": file},
                verify=os.environ["SSL_CERT_FILE"],
                timeout=600,
            )
        assert answer.json()["success"]
        return {"mib": mib}

    yield go


@contextmanager
def httpx_sync(root: str, path: str, mib: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Upload with httpx."""
    import httpx  # noqa: PLC0415

    with httpx.Client(timeout=600, verify=ssl.create_default_context()) as client:

        def go() -> dict[str, float]:
            with open(path, "rb") as file:
                answer = client.post(f"{root}{BASE}/Extraction", files={"audio_file": file})
            assert answer.json()["success"]
            return {"mib": mib}

        yield go


Go = Callable[[], Awaitable[dict[str, float]]]
Contender = Callable[[str, str, int], AbstractAsyncContextManager[Go]]


@asynccontextmanager
async def httpx_async(root: str, path: str, mib: int) -> AsyncIterator[Go]:
    """Upload with httpx's asynchronous client."""
    import httpx  # noqa: PLC0415

    async with httpx.AsyncClient(timeout=600, verify=ssl.create_default_context()) as client:

        async def go() -> dict[str, float]:
            with open(path, "rb") as file:  # noqa: ASYNC230 - what people write
                answer = await client.post(f"{root}{BASE}/Extraction", files={"audio_file": file})
            assert answer.json()["success"]
            return {"mib": mib}

        yield go


def with_aiohttp(body: Callable[[Any, Any], Any]) -> Contender:
    """Return a contender that posts the form that ``body`` builds from an open file."""

    @asynccontextmanager
    async def contender(root: str, path: str, mib: int) -> AsyncIterator[Go]:
        import aiohttp  # noqa: PLC0415

        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as client:

            async def go() -> dict[str, float]:
                with open(path, "rb") as file:  # noqa: ASYNC230 - what people write
                    form = aiohttp.FormData()
                    body(form, file)
                    async with client.post(f"{root}{BASE}/Extraction", data=form) as answer:
                        assert (await answer.json())["success"]
                return {"mib": mib}

            yield go

    return contender


def open_file(form: Any, file: Any) -> None:
    """Pass the file to aiohttp."""
    form.add_field("audio_file", file, filename="a.wav")


def generator(form: Any, file: Any) -> None:
    """Pass a generator over aiofiles to aiohttp, as tutorials do."""
    import aiofiles  # noqa: PLC0415

    async def blocks() -> AsyncIterator[bytes]:
        async with aiofiles.open(file.name, "rb") as again:
            while block := await again.read(65536):
                yield block

    form.add_field("audio_file", blocks(), filename="a.wav")


@asynccontextmanager
async def ours(root: str, path: str, mib: int) -> AsyncIterator[Go]:
    """Submit with a session, until the job is accepted."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=Limits.FREE)
    await session.start()

    async def go() -> dict[str, float]:
        job = session.submit(path)
        await job.accepted()
        job.cancel()
        return {"mib": mib}

    try:
        yield go
    finally:
        await session.aclose(drain=False)


def small_blocks() -> None:
    """Read blocks of 64 KiB."""
    from musicgpt_async._io import content, upload  # noqa: PLC0415

    content.BLOCK_SIZE = upload.READ_SIZE = 65536


def on_the_loop() -> None:
    """Read files on the event loop, not on the executor."""
    from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415

    def submit(_: Any, call: Any, /, *args: Any, **more: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args, **more))
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            done.set_exception(error)
        return done

    ThreadPoolExecutor.submit = submit  # type: ignore[method-assign,assignment]


CONTENDERS: dict[str, Any] = {
    "bare": bare,
    "curl": curl,
    "ours": ours,
    "ours, uvloop": ours,
    "aiohttp, open file": with_aiohttp(open_file),
    "aiohttp, aiofiles 64 KiB": with_aiohttp(generator),
    "httpx": httpx_sync,
    "httpx async": httpx_async,
    "requests": requests_files,
    "ours, blocks of 64 KiB": without(ours, small_blocks),
    "ours, read on the loop": without(ours, on_the_loop),
}
PEERS = list(CONTENDERS)[:9]
ABLATIONS = ["ours", *list(CONTENDERS)[9:]]


def tables(server: Server, mib: int, rounds: int, names: list[str]) -> Iterator[Table]:
    """Measure uploads with and without TLS."""
    with tempfile.TemporaryDirectory(dir=memory()) as directory:
        path, small = Path(directory, "track.wav"), Path(directory, "small.wav")
        small.write_bytes(bytes(65536))
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(bytes(MIB))
        for tls in (False, True):
            yield contest(
                f"Upload of {mib} MiB{' over TLS' if tls else ''}",
                "uploading",
                COLUMNS,
                rounds=rounds,
                arguments={"root": server.root(tls=tls), "path": str(path), "mib": mib},
                warm_up={"path": str(small), "mib": 0},
                # requests keeps the file in memory, and sends it in one piece over TLS.
                names=[name for name in names if name != "requests" or (mib <= 256 and not tls)],
                environment={"SSL_CERT_FILE": server.ca},
            )


def memory() -> str | None:
    """Return a directory in memory, so that the disk is not measured, or ``None``."""
    return "/dev/shm" if sys.platform == "linux" and os.access("/dev/shm", os.W_OK) else None  # noqa: S108
