"""Many waiting handles: memory per handle, CPU per poll, and how long the loop was blocked."""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

from contest import Column, Table, contest
from servers import BASE, Server


def _per_poll(each: Any) -> float:
    return 1e6 * each["cpu"] / each["polls"] if each["polls"] else math.nan


COLUMNS = (
    Column("bytes/handle", lambda each: each["bytes"], ".0f"),
    Column("CPU us/poll", _per_poll, ".0f"),
    Column("loop held ms", lambda each: 1000 * each.get("held", math.nan), ".1f"),
    Column("of it CPU", lambda each: 1000 * each.get("worked", math.nan), ".1f"),
)
LISTED = (
    Column("MiB", lambda each: each["bytes"] / (1 << 20), ".1f"),
    Column("bytes/track", lambda each: each["bytes"] / each["tracks"], ".0f"),
)
Go = Callable[[], Awaitable[dict[str, float]]]


class Memory:
    """Memory of the Python objects created in the block; tracing is slow, so do not time it."""

    def __enter__(self) -> Self:
        gc.collect()
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_: object) -> None:
        gc.collect()
        self.bytes = tracemalloc.get_traced_memory()[0] - self._before
        tracemalloc.stop()


class Counted:
    """Counter of a session's polls."""

    def __init__(self, session: Any) -> None:
        self.polls = 0
        self._ask = session._settings.http.get  # noqa: SLF001 - the function that all polls call
        session._settings.http.get = self  # noqa: SLF001

    def __call__(self, *arguments: Any) -> Any:
        """Send a poll and count it."""
        self.polls += 1
        return self._ask(*arguments)


@asynccontextmanager
async def ours(root: str, handles: int, seconds: float, calls: int) -> AsyncIterator[Go]:
    """Attach jobs and wait for them, with so many calls per minute."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    limits = Limits(parallel=10, polls_per_minute=calls)
    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=limits)
    await session.start()
    counted = Counted(session)
    with Memory() as memory:
        jobs = [session.attach(f"task-{number}") for number in range(handles)]
    await asyncio.sleep(0.2)

    async def go() -> dict[str, float]:
        before = counted.polls
        await asyncio.sleep(seconds)
        return {"bytes": memory.bytes / len(jobs), "polls": counted.polls - before}

    try:
        yield go
    finally:
        await session.aclose(drain=False)


@asynccontextmanager
async def tasks(root: str, handles: int, seconds: float, calls: int) -> AsyncIterator[Go]:
    """Wait in one task per job, each with its own timer, with as many calls in total."""
    import aiohttp  # noqa: PLC0415

    pause = 60.0 * handles / calls
    polls = 0

    async def wait(client: aiohttp.ClientSession, task_id: str) -> None:
        nonlocal polls
        query = {"conversionType": "EXTRACTION", "task_id": task_id}
        status = ""
        while status != "COMPLETED":
            await asyncio.sleep(pause)
            polls += 1
            headers = {"Authorization": "key"}
            async with client.get(f"{root}{BASE}/byId", params=query, headers=headers) as answer:
                status = (await answer.json())["conversion"]["status"]

    async with aiohttp.ClientSession() as client:
        with Memory() as memory:
            waiting = [
                asyncio.create_task(wait(client, f"task-{number}")) for number in range(handles)
            ]
            await asyncio.sleep(0)

        async def go() -> dict[str, float]:
            before = polls
            # All timers start together: wait for one complete wave, or for the given time.
            await asyncio.sleep(min(pause, seconds * 4) + 0.5)
            return {"bytes": memory.bytes / handles, "polls": polls - before}

        yield go
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@asynccontextmanager
async def listed(root: str, tracks: int) -> AsyncIterator[Go]:
    """Pass tracks to a batch on an account that finishes none of them."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=Limits.FREE)
    await session.start()

    async def go() -> dict[str, float]:
        with Memory() as memory:
            names = (f"https://example.com/{number}.flac" for number in range(tracks))
            outcomes = session.extract_many(names, "stems")
            first = asyncio.ensure_future(anext(outcomes))
            await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return {"bytes": memory.bytes, "tracks": tracks}

    try:
        yield go
    finally:
        await session.aclose(drain=False)


@asynccontextmanager
async def submitted(root: str, tracks: int) -> AsyncIterator[Go]:
    """Submit all tracks at once, each with a queued handle."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    session = MusicGPTSession("key", base_url=f"{root}{BASE}", limits=Limits.FREE)
    await session.start()

    async def go() -> dict[str, float]:
        with Memory() as memory:
            jobs = [
                session.submit(f"https://example.com/{number}.flac") for number in range(tracks)
            ]
        assert len(jobs) == tracks
        return {"bytes": memory.bytes, "tracks": tracks}

    try:
        yield go
    finally:
        await session.aclose(drain=False)


CONTENDERS: dict[str, Any] = {
    "ours": ours,
    "a task each": tasks,
    "listed": listed,
    "submitted": submitted,
}


def tables(server: Server, rounds: int, *, quick: bool) -> Iterator[Table]:
    """Measure 100, 1,000 and 10,000 waiting jobs, and 100,000 tracks that are not submitted."""
    environment = {"SSL_CERT_FILE": server.ca}
    for handles in (100, 1000, 10_000):
        for calls in (500, 60_000):
            budget = "the pro plan's calls" if calls == 500 else f"{calls} calls per minute"
            yield contest(
                f"{handles} waiting handles, {budget}",
                "handles",
                COLUMNS,
                rounds=min(rounds, 3) if quick else rounds,
                arguments={
                    "root": server.clear,
                    "handles": handles,
                    "seconds": 0.5 if quick else 2.0,
                    "calls": calls,
                },
                warm_up={"handles": 10, "seconds": 0.1},
                names=["ours"] if calls == 500 else ["ours", "a task each"],
                environment=environment,
            )
    tracks = 10_000 if quick else 100_000
    yield contest(
        f"{tracks} tracks not yet started: a batch's, and submitted one by one",
        "handles",
        LISTED,
        rounds=1,
        arguments={"root": server.clear, "tracks": tracks},
        warm_up={"tracks": 10},
        names=["listed", "submitted"],
        environment=environment,
    )
