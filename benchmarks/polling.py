"""The cost of one byId poll: this library, the machine's limit and other clients."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

from contest import Column, Table, contest
from servers import BASE, Server
from uploading import connected

COLUMNS = (
    Column("CPU us/poll", lambda each: 1e6 * each["cpu"] / each["polls"], ".0f"),
    Column("wall us/poll", lambda each: 1e6 * each["wall"] / each["polls"], ".0f"),
)
QUERY = {"conversionType": "EXTRACTION", "task_id": "0191c0de-0000-7000-8000-000000000001"}
KEY = {"Authorization": "key"}

Blocking = Callable[[], dict[str, float]]
Go = Callable[[], Awaitable[dict[str, float]]]


@contextmanager
def bare(root: str, polls: int) -> Iterator[Blocking]:
    """Poll on one bare socket: the limit in Python."""
    query = "&".join(f"{name}={value}" for name, value in QUERY.items())
    lines = (f"GET {BASE}/byId?{query} HTTP/1.1", f"Host: {urlsplit(root).netloc}", "Accept: */*")
    request = "\r\n".join([*lines, "Authorization: key", "", ""]).encode()
    with connected(root) as to:

        def go() -> dict[str, float]:
            for _ in range(polls):
                to.sendall(request)
                json.loads(to.recv(65536).partition(b"\r\n\r\n")[2])
            return {"polls": polls}

        yield go


@contextmanager
def requests_session(root: str, polls: int) -> Iterator[Blocking]:
    """Poll with a requests session."""
    import requests  # noqa: PLC0415 - each contender loads its own client alone

    with requests.Session() as client:
        trusted = os.environ["SSL_CERT_FILE"]

        def go() -> dict[str, float]:
            for _ in range(polls):
                client.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY, verify=trusted).json()
            return {"polls": polls}

        yield go


@contextmanager
def requests_anew(root: str, polls: int) -> Iterator[Blocking]:
    """Poll as MusicGPT's SDK does, on a new connection each time."""
    import requests  # noqa: PLC0415

    trusted = os.environ["SSL_CERT_FILE"]

    def go() -> dict[str, float]:
        for _ in range(polls):
            requests.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY, verify=trusted).json()
        return {"polls": polls}

    yield go


@contextmanager
def httpx_sync(root: str, polls: int) -> Iterator[Blocking]:
    """Poll with httpx."""
    import httpx  # noqa: PLC0415

    with httpx.Client(verify=ssl.create_default_context()) as client:

        def go() -> dict[str, float]:
            for _ in range(polls):
                client.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY).json()
            return {"polls": polls}

        yield go


@asynccontextmanager
async def httpx_async(root: str, polls: int) -> AsyncIterator[Go]:
    """Poll with httpx's asynchronous client."""
    import httpx  # noqa: PLC0415

    async with httpx.AsyncClient(verify=ssl.create_default_context()) as client:

        async def go() -> dict[str, float]:
            for _ in range(polls):
                (await client.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY)).json()
            return {"polls": polls}

        yield go


@asynccontextmanager
async def aiohttp_get(root: str, polls: int) -> AsyncIterator[Go]:
    """Poll with aiohttp and parse the JSON, nothing else."""
    import aiohttp  # noqa: PLC0415

    async with aiohttp.ClientSession() as client:

        async def go() -> dict[str, float]:
            for _ in range(polls):
                async with client.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY) as answer:
                    await answer.json()
            return {"polls": polls}

        yield go


@asynccontextmanager
async def ours(root: str, polls: int) -> AsyncIterator[Go]:
    """Poll an attached job as the session does, from the request to the next scheduled time."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    limits = Limits(parallel=1, polls_per_minute=1_000_000_000)
    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=limits)
    await session.start()
    job = session.attach(QUERY["task_id"])
    poller = session._runtime._poller  # noqa: SLF001 - to poll without waiting for the schedule
    watch = poller._entries[job.id]  # noqa: SLF001

    async def go() -> dict[str, float]:
        for _ in range(polls):
            await poller._poll(watch)  # noqa: SLF001
        return {"polls": polls}

    try:
        yield go
    finally:
        await session.aclose(drain=False)


@asynccontextmanager
async def ours_read(root: str, polls: int) -> AsyncIterator[Go]:
    """Send the call and parse its response, without the schedule."""
    from musicgpt_async import MusicGPTSession  # noqa: PLC0415
    from musicgpt_async._rules import payloads, protocol  # noqa: PLC0415

    session = MusicGPTSession("key", base_url=f"{root}{BASE}")
    await session.start()
    ask = session._settings.http.get  # noqa: SLF001

    async def go() -> dict[str, float]:
        for _ in range(polls):
            answer = await ask(f"{root}{BASE}/byId", protocol.status_query(QUERY["task_id"]))
            data = protocol.parse_response(answer, now=0.0, subject="The poll")
            payloads.parse_conversion(data, requested=())
        return {"polls": polls}

    try:
        yield go
    finally:
        await session.aclose(drain=False)


@asynccontextmanager
async def ours_asked(root: str, polls: int) -> AsyncIterator[Go]:
    """Poll once by the schedule: add an entry, wake the poller, poll in a task, remove it."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    limits = Limits(parallel=1, polls_per_minute=1_000_000_000)
    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=limits)
    await session.start()

    async def go() -> dict[str, float]:
        for _ in range(polls):
            await session._runtime._poller.poll_once(QUERY["task_id"], ())  # noqa: SLF001
        return {"polls": polls}

    try:
        yield go
    finally:
        await session.aclose(drain=False)


@asynccontextmanager
async def tasks(root: str, polls: int) -> AsyncIterator[Go]:
    """Poll in a loop that sleeps between two polls, as one task per job would."""
    import aiohttp  # noqa: PLC0415

    async with aiohttp.ClientSession() as client:

        async def go() -> dict[str, float]:
            for _ in range(polls):
                async with client.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY) as answer:
                    await answer.json()
                await asyncio.sleep(0.001)
            return {"polls": polls}

        yield go


CONTENDERS: dict[str, Any] = {
    "aiohttp GET": aiohttp_get,
    "ours": ours,
    "ours, uvloop": ours,
    "ours, call and answer alone": ours_read,
    "ours, asked once by the schedule": ours_asked,
    "bare": bare,
    "aiohttp GET and a sleep": tasks,
    "httpx": httpx_sync,
    "httpx async": httpx_async,
    "requests session": requests_session,
    "requests, as the SDK calls it": requests_anew,
}
PEERS = list(CONTENDERS)


def tables(server: Server, polls: int, rounds: int, names: list[str]) -> Iterator[Table]:
    """Measure polls with and without TLS."""
    for tls in (False, True):
        yield contest(
            f"A poll ({polls} one after another){' over TLS' if tls else ''}",
            "polling",
            COLUMNS,
            rounds=rounds,
            arguments={"root": server.root(tls=tls), "polls": polls},
            warm_up={"polls": 10},
            names=names,
            environment={"SSL_CERT_FILE": server.ca},
        )
