"""One of several processes that use an account, on one journal.

Takes its settings as JSON in its only argument; prints a JSON object a line of what happens. It
begins when a line comes in.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from musicgpt_async import ExtractionJob, Limits, MusicGPTError, MusicGPTSession
from musicgpt_async.journal import Journal


def report(**what: Any) -> None:
    """Print a line."""
    print(json.dumps(what), flush=True)  # noqa: T201 - the test reads it


async def follow(job: ExtractionJob, began: float) -> None:
    """Wait for a job and say how it ended."""
    error = None
    try:
        await job
    except MusicGPTError as raised:
        error = f"{type(raised).__name__}: {raised}"
    report(track=job.label or job.id, error=error, after=time.monotonic() - began)


async def main(settings: dict[str, Any]) -> None:
    """Resume the journal's jobs, submit tracks and wait for all jobs."""
    limits = Limits(parallel=settings["parallel"], polls_per_minute=settings["polls_per_minute"])
    session = MusicGPTSession(
        settings["key"],
        base_url=settings["base_url"],
        journal=Journal(settings["journal"], lease=settings["lease"]),
        limits=limits,
        max_credits=settings["max_credits"],
    )
    async with session:
        report(ready=True)
        await asyncio.to_thread(sys.stdin.readline)
        began = time.monotonic()
        jobs = await session.resume() if settings["resume"] else []
        for name in settings["tracks"]:
            track = (name, b"ID3" + name.encode().ljust(settings["size"]))
            jobs.append(session.submit(track, label=name))
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(follow(job, began))
        slots, credits_estimated = session.slots, session.credits_estimated
        report(slots=slots, credits=credits_estimated, seconds=time.monotonic() - began)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
