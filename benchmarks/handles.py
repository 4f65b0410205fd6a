"""Many waiting handles: memory for each, how long the loop was held, and polls in time."""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

from comparison import Column, Table, compare
from servers import BASE, Server, trust

COLUMNS = (
    Column("bytes/handle", lambda each: each["bytes"], ".0f"),
    Column("loop held ms", lambda each: 1000 * each.get("held", math.nan), ".1f"),
    Column("CPU of it ms", lambda each: 1000 * each.get("worked", math.nan), ".1f"),
)
Run = Callable[[], Awaitable[dict[str, float]]]


class Memory:
    """What Python objects made inside the block take; slows them down, so it is no timing."""

    def __enter__(self) -> Self:
        gc.collect()
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_: object) -> None:
        gc.collect()
        self.bytes = tracemalloc.get_traced_memory()[0] - self._before
        tracemalloc.stop()


@asynccontextmanager
async def ours(root: str, handles: int, seconds: float) -> AsyncIterator[Run]:
    """Attach jobs and wait for them, within the pro plan's polls."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=Limits.PRO)
    await session.start()
    with Memory() as memory:
        jobs = [session.attach(f"task-{number}") for number in range(handles)]
    await asyncio.sleep(0.2)

    async def run() -> dict[str, float]:
        await asyncio.sleep(seconds)
        return {"bytes": memory.bytes / len(jobs)}

    try:
        yield run
    finally:
        await session.aclose(drain=False)


@asynccontextmanager
async def tasks(root: str, handles: int, seconds: float) -> AsyncIterator[Run]:
    """Wait in a task for each job, as many polls in all."""
    import aiohttp  # noqa: PLC0415

    pause = 60.0 * handles / 500

    async def wait(client: aiohttp.ClientSession, task_id: str) -> None:
        query = {"conversionType": "EXTRACTION", "task_id": task_id}
        status = ""
        while status != "COMPLETED":
            await asyncio.sleep(pause)
            headers = {"Authorization": "key"}
            async with client.get(f"{root}{BASE}/byId", params=query, headers=headers) as response:
                status = (await response.json())["conversion"]["status"]

    async with aiohttp.ClientSession() as client:
        with Memory() as memory:
            waiting = [
                asyncio.create_task(wait(client, f"task-{number}")) for number in range(handles)
            ]
            await asyncio.sleep(0)

        async def run() -> dict[str, float]:
            await asyncio.sleep(seconds)
            return {"bytes": memory.bytes / handles}

        yield run
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


CLIENTS: dict[str, Any] = {"ours": ours, "a task each": tasks}


def tables(server: Server, rounds: int, *, quick: bool) -> Iterator[Table]:
    """Wait for 100 and for 10,000 jobs."""
    for handles in (100, 10_000):
        yield compare(
            f"{handles} waiting handles on the pro plan",
            "handles",
            COLUMNS,
            rounds=min(rounds, 3),
            arguments={
                "root": server.clear,
                "handles": handles,
                "seconds": 0.5 if quick else 2.0,
            },
            warm_up={"handles": 10, "seconds": 0.1},
            environment=trust(server.ca),
        )
