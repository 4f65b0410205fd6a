"""A batch as users run one, in a process that may be killed at any moment.

Takes its settings as JSON; prints a JSON object a line of what happens.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from musicgpt_async import Limits, MusicGPTSession, WebhookReceiver
from musicgpt_async.journal import Journal


def tell(**what: Any) -> None:
    """Print a line."""
    print(json.dumps(what), flush=True)  # noqa: T201 - the test reads it


class Found(logging.Handler):
    """Reports recovered responses."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print what a message says about it."""
        text = record.getMessage()
        if "was found again" in text:
            tell(found="listing" if "listing" in text else "webhook")


async def main(settings: dict[str, Any]) -> None:
    """Run the batch to its end."""
    async with AsyncExitStack() as stack:
        receiver = None
        if settings["port"]:
            public_url = f"http://127.0.0.1:{settings['port']}/hooks"
            receiver = WebhookReceiver(public_url, secret="kept between runs")
            await stack.enter_async_context(receiver.serve("127.0.0.1", settings["port"]))
        session = await stack.enter_async_context(
            MusicGPTSession(
                settings["key"],
                base_url=settings["base_url"],
                journal=Journal(settings["journal"], lease=settings["lease"]),
                webhooks=receiver,
                limits=Limits(parallel=settings["parallel"], polls_per_minute=6000),
                deadline=settings["deadline"],
                stall_timeout=1.5,
            )
        )
        tell(ready=True)
        tracks = [Path(track) for track in settings["tracks"]]
        async for outcome in session.extract_many(
            tracks, settings["out"], stems=settings["stems"], force=settings["force"]
        ):
            error = type(outcome.error).__name__ if outcome.error else None
            tell(track=outcome.source.name, error=error, words=str(outcome.error or ""))


def run(settings: str) -> None:
    """Run the batch of this process."""
    logging.getLogger("musicgpt_async").addHandler(Found())
    logging.getLogger("musicgpt_async").setLevel(logging.INFO)
    asyncio.run(main(json.loads(settings)))
