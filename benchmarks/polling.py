"""The CPU that one poll costs: ours, from the request to the next poll's date, beside a bare GET.

Few tables, because it hardly matters: at the pro plan's 500 polls a minute it is 0.2 % of a core.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

from comparison import Column, Table, compare
from servers import BASE, Server, trust
from uploading import connected

COLUMNS = (
    Column("CPU us/poll", lambda each: 1e6 * each["cpu"] / each["polls"], ".0f"),
    Column("wall us/poll", lambda each: 1e6 * each["wall"] / each["polls"], ".0f"),
)
QUERY = {"conversionType": "EXTRACTION", "task_id": "0191c0de-0000-7000-8000-000000000001"}
KEY = {"Authorization": "key"}

Blocking = Callable[[], dict[str, float]]
Run = Callable[[], Awaitable[dict[str, float]]]


@contextmanager
def bare(root: str, polls: int) -> Iterator[Blocking]:
    """Poll on one bare socket: the limit in Python."""
    query = "&".join(f"{name}={value}" for name, value in QUERY.items())
    lines = (f"GET {BASE}/byId?{query} HTTP/1.1", f"Host: {urlsplit(root).netloc}", "Accept: */*")
    request = "\r\n".join([*lines, "Authorization: key", "", ""]).encode()
    with connected(root) as to:

        def run() -> dict[str, float]:
            for _ in range(polls):
                to.sendall(request)
                json.loads(to.recv(65536).partition(b"\r\n\r\n")[2])
            return {"polls": polls}

        yield run


@contextmanager
def requests_anew(root: str, polls: int) -> Iterator[Blocking]:
    """Poll as MusicGPT's SDK does, on a new connection each time."""
    import requests  # noqa: PLC0415 - each client loads its own library alone

    def run() -> dict[str, float]:
        for _ in range(polls):
            requests.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY).json()
        return {"polls": polls}

    yield run


@contextmanager
def niquests_session(root: str, polls: int) -> Iterator[Blocking]:
    """Poll with a session of niquests."""
    import os  # noqa: PLC0415

    import niquests  # noqa: PLC0415

    with niquests.Session() as client:
        client.verify = os.environ["SSL_CERT_FILE"]

        def run() -> dict[str, float]:
            for _ in range(polls):
                client.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY).json()
            return {"polls": polls}

        yield run


@asynccontextmanager
async def aiohttp_get(root: str, polls: int) -> AsyncIterator[Run]:
    """Poll with aiohttp and parse the JSON, nothing else."""
    import aiohttp  # noqa: PLC0415

    async with aiohttp.ClientSession() as client:

        async def run() -> dict[str, float]:
            for _ in range(polls):
                async with client.get(f"{root}{BASE}/byId", params=QUERY, headers=KEY) as response:
                    await response.json()
            return {"polls": polls}

        yield run


@asynccontextmanager
async def ours(root: str, polls: int) -> AsyncIterator[Run]:
    """Poll an attached job as the session's schedule does, from the GET to the next date."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    limits = Limits(parallel=1, polls_per_minute=1_000_000_000)
    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=limits)
    await session.start()
    job = session.attach(QUERY["task_id"])
    runtime: Any = session._runtime
    poller = runtime._poller
    entry = poller._entries[job.id]

    async def run() -> dict[str, float]:
        for _ in range(polls):
            await poller._poll(entry)
        return {"polls": polls}

    try:
        yield run
    finally:
        await session.aclose(drain=False)


CLIENTS: dict[str, Any] = {
    "bare sockets": bare,
    "aiohttp GET": aiohttp_get,
    "ours": ours,
    "ours, uvloop": ours,
    "niquests session": niquests_session,
    "requests, as the SDK calls it": requests_anew,
}


def tables(server: Server, polls: int, rounds: int) -> Iterator[Table]:
    """Poll over TLS."""
    yield compare(
        f"Poll over TLS ({polls} one after another)",
        "polling",
        COLUMNS,
        rounds=rounds,
        arguments={"root": server.tls, "polls": polls},
        warm_up={"polls": 10},
        environment=trust(server.ca),
    )
