"""Whole batches: upload, wait, and download the stems of every track, ten unfinished at most.

The vendor is the emulator in a process of its own. The lower bound uses bare blocking sockets and
knows when each conversion ends; the others poll every 0.2 s, as people do. One table has large
tracks in clear, one has them over TLS, one has tiny tracks, which show what a track costs whatever
its size, and one has a slow uplink, over which uploads run ahead of their slots.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import vendor
from comparison import Column, Table, compare, without
from servers import issue_certificate, trust
from uploading import connected, memory

KIB, MIB = 1 << 10, 1 << 20
PARALLEL = 10  # conversions
SECONDS = 0.2  # that a conversion takes
POLL_INTERVAL = 0.2  # seconds
STEMS = ("vocals", "drums", "bass", "piano")
COLUMNS = (
    Column("wall s", lambda each: each["wall"]),
    Column("CPU s", lambda each: each["cpu"]),
    Column("added MiB", lambda each: each["added"], ".0f"),
)
TRACK_COLUMNS = (
    Column("CPU ms/track", lambda each: 1000 * each["cpu"] / each["tracks"]),
    Column("wall ms/track", lambda each: 1000 * each["wall"] / each["tracks"]),
)
KEY = {"Authorization": "emulator-key"}

Blocking = Callable[[], dict[str, float]]
Run = Callable[[], Awaitable[dict[str, float]]]


@contextmanager
def sources(path: str, tracks: int) -> Iterator[list[Path]]:
    """Yield a file by many names, since a journal knows the same track again."""
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as directory:
        names = [Path(directory, f"{number}.wav") for number in range(tracks)]
        for name in names:
            os.link(path, name)
        yield names


@contextmanager
def results(parent: str, files: int, size: int) -> Iterator[Path]:
    """Yield a directory, and check in the end that every stem is in it, complete."""
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


def _read_head(to: socket.socket) -> tuple[int, bytes]:
    """Return the length that a response's head tells, and what came after the head."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += to.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    lengths = [each for each in head.lower().split(b"\r\n") if each.startswith(b"content-length")]
    return int(lengths[0].split(b":")[1]), rest


def _read_json(to: socket.socket) -> Any:
    length, rest = _read_head(to)
    while len(rest) < length:
        rest += to.recv(65536)
    return json.loads(rest)


def bare_job(base: str, path: Path, stems: list[str]) -> dict[str, str]:
    """Submit a track, sleep until it is done, and return its links."""
    api = urlsplit(base).path
    head = f'--b\r\nContent-Disposition: form-data; name="stems"\r\n\r\n{json.dumps(stems)}\r\n'
    head += '--b\r\nContent-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n'
    size = len(head) + path.stat().st_size + len("\r\n--b--\r\n")
    with connected(base) as to, path.open("rb", buffering=0) as file:
        form = "Content-Type: multipart/form-data; boundary=b"
        key = "Authorization: emulator-key"
        _request(to, "POST", f"{api}/Extraction", key, form, f"Content-Length: {size}")
        to.sendall(head.encode())
        buffer = memoryview(bytearray(MIB))
        while count := file.readinto(buffer):
            to.sendall(buffer[:count])
        to.sendall(b"\r\n--b--\r\n")
        task = _read_json(to)["task_id"]
        time.sleep(SECONDS)
        while True:
            query = f"{api}/byId?conversionType=EXTRACTION&task_id={task}"
            _request(to, "GET", query, key)
            conversion = _read_json(to)["conversion"]
            if conversion["status"] == "COMPLETED":
                return _links(conversion)
            time.sleep(0.005)


def bare_file(url: str, path: Path) -> None:
    """Download a file."""
    parts = urlsplit(url)
    buffer = memoryview(bytearray(MIB))
    with connected(url) as to, path.open("wb", buffering=0) as file:
        _request(to, "GET", f"{parts.path}?{parts.query}")
        length, rest = _read_head(to)
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
def lower_bound(
    base: str, path: str, parent: str, tracks: int, size: int, stems: list[str], parallel: int
) -> Iterator[Blocking]:
    """Use bare sockets and perfect knowledge."""
    with (
        sources(path, tracks) as names,
        results(parent, tracks * len(stems), size) as to,
    ):

        def fetch(number: int, links: dict[str, str]) -> None:
            for stem, url in links.items():
                bare_file(url, to / f"{number}-{stem}.wav")

        def run() -> dict[str, float]:
            with ThreadPoolExecutor(parallel) as slots, ThreadPoolExecutor(8) as downloads:

                def track(number: int) -> Future[None]:
                    return downloads.submit(fetch, number, bare_job(base, names[number], stems))

                for each in [slots.submit(track, number) for number in range(tracks)]:
                    each.result().result()
            return {"tracks": tracks}

        yield run


@contextmanager
def requests_threads(
    base: str, path: str, parent: str, tracks: int, size: int, stems: list[str], parallel: int
) -> Iterator[Blocking]:
    """Use requests, a thread for each unfinished track."""
    import requests  # noqa: PLC0415 - each client loads its own library alone

    fields = {"stems": json.dumps(stems)}

    def track(name: Path, number: int, to: Path) -> None:
        with name.open("rb") as file:
            response = requests.post(
                f"{base}/Extraction", files={"audio_file": file}, data=fields, headers=KEY
            ).json()
        query = {"conversionType": "EXTRACTION", "task_id": response["task_id"]}
        while True:
            time.sleep(POLL_INTERVAL)
            response = requests.get(f"{base}/byId", params=query, headers=KEY).json()
            if response["conversion"]["status"] == "COMPLETED":
                break
        for stem, url in _links(response["conversion"]).items():
            with (
                requests.get(url, stream=True) as got,
                (to / f"{number}-{stem}.wav").open("wb") as file,
            ):
                for chunk in got.iter_content(65536):
                    file.write(chunk)

    with (
        sources(path, tracks) as names,
        results(parent, tracks * len(stems), size) as to,
    ):

        def run() -> dict[str, float]:
            with ThreadPoolExecutor(parallel) as threads:
                for each in [threads.submit(track, names[n], n, to) for n in range(tracks)]:
                    each.result()
            return {"tracks": tracks}

        yield run


class _Aiohttp:
    """The calls of a batch with aiohttp and aiofiles."""

    def __init__(self, base: str, stems: list[str]) -> None:
        import aiohttp  # noqa: PLC0415

        self._base = base
        self._fields = {"stems": json.dumps(stems)}
        self._aiohttp = aiohttp
        self.client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))

    async def submit(self, path: Path) -> Any:
        with path.open("rb") as file:
            form = self._aiohttp.FormData(self._fields)
            form.add_field("audio_file", file, filename="a.wav")
            url = f"{self._base}/Extraction"
            async with self.client.post(url, data=form, headers=KEY) as response:
                return await response.json()

    async def poll(self, query: Mapping[str, str]) -> Any:
        url = f"{self._base}/byId"
        async with self.client.get(url, params=query, headers=KEY) as response:
            return await response.json()

    async def fetch(self, url: str, to: Path) -> None:
        import aiofiles  # noqa: PLC0415

        async with self.client.get(url) as got, aiofiles.open(to, "wb") as file:
            async for chunk in got.content.iter_chunked(65536):
                await file.write(chunk)


class _Pyreqwest:
    """The calls of a batch with pyreqwest, whose client is written in Rust, and aiofiles."""

    def __init__(self, base: str, stems: list[str]) -> None:
        from pyreqwest.client import ClientBuilder  # noqa: PLC0415

        self._base = base
        self._stems = json.dumps(stems)
        builder = ClientBuilder()
        if "SSL_CERT_FILE" in os.environ:
            certificate = Path(os.environ["SSL_CERT_FILE"]).read_bytes()
            builder = builder.add_root_certificate_pem(certificate)
        self.client = builder.build()

    async def submit(self, path: Path) -> Any:
        from pyreqwest.multipart import FormBuilder  # noqa: PLC0415

        form = await FormBuilder().text("stems", self._stems).file("audio_file", path)
        request = self.client.post(f"{self._base}/Extraction").multipart(form)
        response = await request.header("Authorization", KEY["Authorization"]).build().send()
        return await response.json()

    async def poll(self, query: Mapping[str, str]) -> Any:
        request = self.client.get(f"{self._base}/byId").query(dict(query))
        response = await request.header("Authorization", KEY["Authorization"]).build().send()
        return await response.json()

    async def fetch(self, url: str, to: Path) -> None:
        import aiofiles  # noqa: PLC0415

        async with (
            self.client.get(url).build_streamed() as response,
            aiofiles.open(to, "wb") as file,
        ):
            while chunk := await response.body_reader.read_chunk():
                await file.write(chunk)


def gather(make_calls: Callable[[str, list[str]], Any]) -> Any:
    """Return a client that gathers a task for each track, behind a semaphore."""

    @asynccontextmanager
    async def client(
        base: str, path: str, parent: str, tracks: int, size: int, stems: list[str], parallel: int
    ) -> AsyncIterator[Run]:
        calls = make_calls(base, stems)
        slots = asyncio.Semaphore(parallel)

        async def track(name: Path, number: int, to: Path) -> None:
            async with slots:
                task = (await calls.submit(name))["task_id"]
                query = {"conversionType": "EXTRACTION", "task_id": task}
                while True:
                    await asyncio.sleep(POLL_INTERVAL)
                    conversion = (await calls.poll(query))["conversion"]
                    if conversion["status"] == "COMPLETED":
                        break
                links = _links(conversion).items()
                await asyncio.gather(
                    *(calls.fetch(url, to / f"{number}-{stem}.wav") for stem, url in links)
                )

        with (
            sources(path, tracks) as names,
            results(parent, tracks * len(stems), size) as to,
        ):
            async with calls.client:

                async def run() -> dict[str, float]:
                    await asyncio.gather(*(track(names[n], n, to) for n in range(tracks)))
                    return {"tracks": tracks}

                yield run

    return client


@asynccontextmanager
async def ours(
    base: str,
    path: str,
    parent: str,
    tracks: int,
    size: int,
    stems: list[str],
    parallel: int,
    *,
    has_webhooks: bool = False,
    has_journal: bool = False,
) -> AsyncIterator[Run]:
    """Use ``extract_many``, within as many polls a minute as the others make."""
    from musicgpt_async import Journal, Limits, MusicGPTSession  # noqa: PLC0415

    polls = int(60 / POLL_INTERVAL * parallel)
    with (
        sources(path, tracks) as names,
        results(parent, tracks * len(stems), size) as to,
    ):
        async with _receiver(serves=has_webhooks) as webhooks:
            session = MusicGPTSession(
                "emulator-key",
                base_url=base,
                limits=Limits(parallel=parallel, polls_per_minute=polls),
                webhooks=webhooks,
                journal=Journal(to / "journal.db") if has_journal else None,
            )
            await session.start()

            async def run() -> dict[str, float]:
                async for outcome in session.extract_many(names, to, stems=stems):
                    assert outcome.ok, outcome.error
                return {"tracks": tracks}

            try:
                yield run
            finally:
                await session.aclose()


@asynccontextmanager
async def _receiver(*, serves: bool) -> AsyncIterator[Any]:
    """Yield a receiver of webhooks that serves, or nothing."""
    if not serves:
        yield None
        return
    from musicgpt_async import WebhookReceiver  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/done")
    async with receiver.serve("127.0.0.1", port):
        yield receiver


def poll_evenly() -> None:
    """Poll every 0.2 s, as the others do, whatever was learned."""
    from musicgpt_async._rules import poll_pricing  # noqa: PLC0415

    poll_pricing.PollPricing._wait = lambda *_: POLL_INTERVAL  # type: ignore[method-assign]


def skip_sync() -> None:
    """Leave it to the system when a file reaches the disk."""
    os.fsync = lambda _: None  # type: ignore[assignment]


def upload_in_slots() -> None:
    """Start no upload before its slot is free."""
    from musicgpt_async._rules.upload_ahead import UploadAhead  # noqa: PLC0415

    may_start = UploadAhead.may_start
    UploadAhead.may_start = lambda self, size, **at: (  # type: ignore[method-assign]
        may_start(self, size, **{**at, "running": ()})
    )


CLIENTS: dict[str, Any] = {
    "lower bound": lower_bound,
    "ours": ours,
    "ours, webhooks": partial(ours, has_webhooks=True),
    "ours, uvloop": ours,
    "ours, journal": partial(ours, has_journal=True),
    "aiohttp, gather": gather(_Aiohttp),
    "pyreqwest, gather": gather(_Pyreqwest),
    "requests, threads": requests_threads,
    "ours, polls every 0.2 s": without(ours, poll_evenly),
    "ours, no fsync": without(ours, skip_sync),
    "ours, no upload ahead": without(ours, upload_in_slots),
}
LARGE = list(CLIENTS)[:8]
SMALL = ["ours", "ours, journal", "aiohttp, gather", "pyreqwest, gather", "requests, threads"]
AHEAD = ["ours", "ours, no upload ahead", "aiohttp, gather"]
PARTS = ["ours", "ours, polls every 0.2 s", "ours, no fsync"]


def tables(rounds: int, names: list[str], *, tls: bool, quick: bool) -> Iterator[Table]:
    """Run a batch of large tracks."""
    tracks, mib = (20, 1) if quick else (100, 5)
    yield _compare(
        f"Batch of {tracks} tracks of {mib} MiB, {len(STEMS)} stems of {mib} MiB each",
        COLUMNS,
        names,
        rounds=rounds,
        tracks=tracks,
        size=mib * MIB,
        stems=STEMS,
        tls=tls,
    )


def small_tables(rounds: int, *, quick: bool) -> Iterator[Table]:
    """Run a batch of tiny tracks, which cost next to nothing to move."""
    for stems in (STEMS[:1], STEMS):
        yield _compare(
            f"Cost of a track of 4 KiB with {len(stems)} stem{'s'[: len(stems) - 1]}",
            TRACK_COLUMNS,
            SMALL,
            rounds=rounds,
            tracks=50 if quick else 100,
            size=4 * KIB,
            stems=stems,
        )


def uplink_tables(rounds: int, *, quick: bool) -> Iterator[Table]:
    """Run a batch over an uplink on which an upload takes as long as a conversion."""
    tracks = 10 if quick else 30
    yield _compare(
        f"Batch of {tracks} tracks of 1 MiB on one slot, 4 MiB/s uplink, conversions of 0.25 s",
        COLUMNS,
        AHEAD,
        rounds=min(rounds, 3),
        tracks=tracks,
        size=MIB,
        stems=STEMS[:1],
        parallel=1,
        seconds=0.25,
        uplink=4.0 * MIB,
    )


def _compare(
    title: str,
    columns: tuple[Column, ...],
    names: list[str],
    *,
    rounds: int,
    tracks: int,
    size: int,
    stems: tuple[str, ...],
    parallel: int = PARALLEL,
    seconds: float = SECONDS,
    tls: bool = False,
    **settings: Any,
) -> Table:
    with tempfile.TemporaryDirectory(dir=memory()) as directory:
        path = Path(directory, "track.wav")
        path.write_bytes(b"RIFF" + os.urandom(size - 4))
        ca, certificate = issue_certificate(Path(directory))
        if tls:
            settings["certificate"] = str(certificate)
        with vendor.running(
            seconds=seconds, stem_bytes=size, parallel=parallel, **settings
        ) as base:
            return compare(
                f"{title}{', over TLS' if tls else ''}",
                "batches",
                columns,
                rounds=rounds,
                arguments={
                    "base": base,
                    "path": str(path),
                    "parent": directory,
                    "tracks": tracks,
                    "size": size,
                    "stems": list(stems),
                    "parallel": parallel,
                },
                warm_up={"tracks": 2},
                names=names,
                environment=trust(ca) if tls else {},
            )
