"""A complete batch: upload, wait, and download four stems of every track, ten at a time.

The server is the emulator in its own process. The bound uses bare blocking sockets, knows when each
conversion ends, and releases its slot at that moment; the other clients poll every 0.2 s.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from contest import Column, Table, contest, cores, without
from downloading import no_sync
from uploading import connected, memory

if TYPE_CHECKING:
    from musicgpt_async import WebhookReceiver

MIB = 1 << 20
AT_ONCE = 10
SECONDS = 0.2
POLL = 0.2
STEMS = ("vocals", "drums", "bass", "piano")
COLUMNS = (
    Column("wall s", lambda each: each["wall"]),
    Column("CPU s", lambda each: each["cpu"]),
    Column("added MiB", lambda each: each["added"], ".0f"),
)
KEY = {"Authorization": "emulator-key"}
FIELDS = {"stems": json.dumps(STEMS)}

Blocking = Callable[[], dict[str, float]]
Go = Callable[[], Awaitable[dict[str, float]]]


async def serve(stem_bytes: int) -> None:
    """Run the emulator until standard input is closed."""
    from musicgpt_async.emulator import Emulator  # noqa: PLC0415 - the clients do not need it

    async with Emulator(
        parallel=AT_ONCE,
        polls_per_minute=None,
        credits=1e9,
        seconds=SECONDS,
        separate=False,
        keep_audio=False,
        stem_bytes=stem_bytes,
    ) as emulator:
        sys.stdout.write(emulator.base_url + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def vendor(stem_bytes: int) -> Iterator[str]:
    """Run the emulator in its own process; yield its base URL."""
    command = [sys.executable, __file__, str(stem_bytes)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        if (both := cores()) is not None:
            os.sched_setaffinity(process.pid, {both[0]})
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@contextmanager
def folder(parent: str, files: int, size: int) -> Iterator[Path]:
    """Yield a folder, and check at the end that every stem in it is complete."""
    path = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield path
        sizes = {each.stat().st_size for each in path.rglob("*.wav")}
        assert (len(list(path.rglob("*.wav"))), sizes) == (files, {size})
    finally:
        shutil.rmtree(path)


def _request(to: socket.socket, method: str, path: str, *lines: str) -> None:
    head = (f"{method} {path} HTTP/1.1", f"Host: {to.getpeername()[0]}", *lines)
    to.sendall("\r\n".join([*head, "", ""]).encode())


def _received(to: socket.socket) -> tuple[int, bytes]:
    """Return the Content-Length of a response, and the bytes after its head."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += to.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    lengths = [each for each in head.lower().split(b"\r\n") if each.startswith(b"content-length")]
    return int(lengths[0].split(b":")[1]), rest


def _json(to: socket.socket) -> Any:
    length, rest = _received(to)
    while len(rest) < length:
        rest += to.recv(65536)
    return json.loads(rest)


def bare_job(base: str, path: str) -> dict[str, str]:
    """Submit a track, sleep until it is finished, and return its links."""
    api = urlsplit(base).path
    head = f'--b\r\nContent-Disposition: form-data; name="stems"\r\n\r\n{FIELDS["stems"]}\r\n'
    head += '--b\r\nContent-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n'
    size = len(head) + Path(path).stat().st_size + len("\r\n--b--\r\n")
    with connected(base) as to, open(path, "rb", buffering=0) as file:
        form = "Content-Type: multipart/form-data; boundary=b"
        key = "Authorization: emulator-key"
        _request(to, "POST", f"{api}/Extraction", key, form, f"Content-Length: {size}")
        to.sendall(head.encode())
        buffer = memoryview(bytearray(MIB))
        while count := file.readinto(buffer):
            to.sendall(buffer[:count])
        to.sendall(b"\r\n--b--\r\n")
        task = _json(to)["task_id"]
        time.sleep(SECONDS)
        while True:
            query = f"{api}/byId?conversionType=EXTRACTION&task_id={task}"
            _request(to, "GET", query, key)
            conversion = _json(to)["conversion"]
            if conversion["status"] == "COMPLETED":
                return _links(conversion)
            time.sleep(0.005)


def bare_file(url: str, path: Path) -> None:
    """Download a file."""
    parts = urlsplit(url)
    buffer = memoryview(bytearray(MIB))
    with connected(url) as to, path.open("wb", buffering=0) as file:
        _request(to, "GET", f"{parts.path}?{parts.query}")
        length, rest = _received(to)
        file.write(rest)
        left = length - len(rest)
        while left:
            count = to.recv_into(buffer)
            file.write(buffer[:count])
            left -= count


def _links(conversion: dict[str, Any]) -> dict[str, str]:
    links = conversion["audio_url_wav"]
    found: dict[str, str] = json.loads(links) if isinstance(links, str) else links
    return found


@contextmanager
def bound(
    base: str, path: str, parent: str, tracks: int, polls: int, size: int
) -> Iterator[Blocking]:
    """Run the batch with bare sockets and perfect knowledge of the ends."""
    with folder(parent, tracks * len(STEMS), size) as to:

        def fetch(number: int, links: dict[str, str]) -> None:
            for stem, url in links.items():
                bare_file(url, to / f"{number}-{stem}.wav")

        def go() -> dict[str, float]:
            with ThreadPoolExecutor(AT_ONCE) as slots, ThreadPoolExecutor(8) as downloads:

                def track(number: int) -> Future[None]:
                    return downloads.submit(fetch, number, bare_job(base, path))

                for each in [slots.submit(track, number) for number in range(tracks)]:
                    each.result().result()
            return {}

        yield go


@contextmanager
def requests_threads(
    base: str, path: str, parent: str, tracks: int, polls: int, size: int
) -> Iterator[Blocking]:
    """Run the batch with requests, with one thread per running track."""
    import requests  # noqa: PLC0415 - each contender loads its own client alone

    def track(number: int, to: Path) -> None:
        with open(path, "rb") as file:
            answer = requests.post(
                f"{base}/Extraction", files={"audio_file": file}, data=FIELDS, headers=KEY
            ).json()
        query = {"conversionType": "EXTRACTION", "task_id": answer["task_id"]}
        while True:
            time.sleep(POLL)
            answer = requests.get(f"{base}/byId", params=query, headers=KEY).json()
            if answer["conversion"]["status"] == "COMPLETED":
                break
        for stem, url in _links(answer["conversion"]).items():
            with (
                requests.get(url, stream=True) as got,
                (to / f"{number}-{stem}.wav").open("wb") as file,
            ):
                for chunk in got.iter_content(65536):
                    file.write(chunk)

    with folder(parent, tracks * len(STEMS), size) as to:

        def go() -> dict[str, float]:
            with ThreadPoolExecutor(AT_ONCE) as threads:
                for each in [threads.submit(track, number, to) for number in range(tracks)]:
                    each.result()
            return {}

        yield go


@asynccontextmanager
async def aiohttp_gather(
    base: str, path: str, parent: str, tracks: int, polls: int, size: int
) -> AsyncIterator[Go]:
    """Run the batch with aiohttp, aiofiles, a semaphore and gather."""
    import aiofiles  # noqa: PLC0415
    import aiohttp  # noqa: PLC0415

    slots = asyncio.Semaphore(AT_ONCE)

    async def fetch(client: aiohttp.ClientSession, url: str, to: Path) -> None:
        async with client.get(url) as got, aiofiles.open(to, "wb") as file:
            async for chunk in got.content.iter_chunked(65536):
                await file.write(chunk)

    async def track(client: aiohttp.ClientSession, number: int, to: Path) -> None:
        async with slots:
            with open(path, "rb") as file:  # noqa: ASYNC230 - as people write it
                form = aiohttp.FormData(FIELDS)
                form.add_field("audio_file", file, filename="a.wav")
                async with client.post(f"{base}/Extraction", data=form, headers=KEY) as answer:
                    task = (await answer.json())["task_id"]
            query = {"conversionType": "EXTRACTION", "task_id": task}
            while True:
                await asyncio.sleep(POLL)
                async with client.get(f"{base}/byId", params=query, headers=KEY) as answer:
                    conversion = (await answer.json())["conversion"]
                if conversion["status"] == "COMPLETED":
                    break
            links = _links(conversion)
            await asyncio.gather(
                *(fetch(client, url, to / f"{number}-{stem}.wav") for stem, url in links.items())
            )

    with folder(parent, tracks * len(STEMS), size) as to:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as client:

            async def go() -> dict[str, float]:
                await asyncio.gather(*(track(client, number, to) for number in range(tracks)))
                return {}

            yield go


@asynccontextmanager
async def ours(
    base: str,
    path: str,
    parent: str,
    tracks: int,
    polls: int,
    size: int,
    webhooks: WebhookReceiver | None = None,
) -> AsyncIterator[Go]:
    """Run the batch with ``extract_many``, with as many calls per minute as the others."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    limits = Limits(parallel=AT_ONCE, polls_per_minute=polls)
    session = MusicGPTSession("emulator-key", base_url=base, limits=limits, webhooks=webhooks)
    with folder(parent, tracks * len(STEMS), size) as to:
        await session.start()

        async def go() -> dict[str, float]:
            async for outcome in session.extract_many([path] * tracks, to, stems=STEMS):
                assert outcome.ok, outcome.error
            return {}

        try:
            yield go
        finally:
            await session.aclose()


@asynccontextmanager
async def ours_webhooks(
    base: str, path: str, parent: str, tracks: int, polls: int, size: int
) -> AsyncIterator[Go]:
    """Run the batch with webhooks."""
    from musicgpt_async import WebhookReceiver  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/done")
    async with (
        receiver.serve("127.0.0.1", port),
        ours(base, path, parent, tracks, polls, size, receiver) as go,
    ):
        yield go


def even_polls() -> None:
    """Poll every 0.2 s, as the other clients do."""
    from musicgpt_async._rules import poll_pricing  # noqa: PLC0415

    poll_pricing.PollPricing._wait = lambda *_: POLL  # type: ignore[method-assign] # noqa: SLF001


CONTENDERS: dict[str, Any] = {
    "bound": bound,
    "ours": ours,
    "ours, webhooks": ours_webhooks,
    "ours, uvloop": ours,
    "aiohttp gather": aiohttp_gather,
    "requests, threads": requests_threads,
    "ours, a poll every 0.2 s": without(ours, even_polls),
    "ours, no fsync": without(ours, no_sync),
}
PEERS = list(CONTENDERS)[:6]
ABLATIONS = ["ours", *list(CONTENDERS)[6:]]


def tables(rounds: int, names: list[str], *, quick: bool) -> Iterator[Table]:
    """Measure the batch."""
    tracks, mib = (20, 1) if quick else (100, 5)
    with (
        tempfile.TemporaryDirectory(dir=memory()) as directory,
        vendor(mib * MIB) as base,
    ):
        path = Path(directory, "track.wav")
        path.write_bytes(os.urandom(mib * MIB))
        yield contest(
            f"A batch of {tracks} tracks of {mib} MiB, {len(STEMS)} stems of {mib} MiB each",
            "batches",
            COLUMNS,
            rounds=rounds,
            arguments={
                "base": base,
                "path": str(path),
                "parent": directory,
                "tracks": tracks,
                "polls": int(60 / POLL * AT_ONCE),
                "size": mib * MIB,
            },
            warm_up={"tracks": 2},
            names=names,
        )


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
