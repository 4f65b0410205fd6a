"""One of several processes behind one webhook URL, on one journal.

Takes its settings as JSON in its only argument; prints a JSON object a line: its port, and when it
hears of a delivery for which of its jobs. It begins when a line comes in.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from musicgpt_async import Limits, MusicGPTSession, WebhookReceiver
from musicgpt_async.events import WebhookReceived


def report(**what: Any) -> None:
    """Print a line."""
    print(json.dumps(what), flush=True)  # noqa: T201 - the test reads it


async def follow_events(session: MusicGPTSession) -> None:
    """Say when deliveries are heard of."""
    async for event in session.events():
        if isinstance(event, WebhookReceived):
            report(heard=event.title, at=time.time())


async def main(settings: dict[str, Any]) -> None:
    """Submit tracks and wait for them."""
    receiver = WebhookReceiver(settings["public_url"])
    session = MusicGPTSession(
        settings["key"],
        base_url=settings["base_url"],
        journal=settings["journal"],
        webhooks=receiver,
        limits=Limits(parallel=50, polls_per_minute=settings["polls_per_minute"]),
    )
    async with receiver.serve("127.0.0.1", 0) as root, session:
        events = asyncio.create_task(follow_events(session))
        report(root=root)
        await asyncio.to_thread(sys.stdin.readline)
        names = settings["tracks"]
        jobs = [session.submit((name, b"ID3" + name.encode()), label=name) for name in names]
        for job in jobs:
            await job
        report(done=len(jobs))
        await asyncio.to_thread(sys.stdin.readline)
        events.cancel()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
