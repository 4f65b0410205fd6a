"""Webhooks that do not arrive: jobs finish by polling, and the silence is said once."""

from __future__ import annotations

import logging
import socket

import anyio
import pytest

from musicgpt_async import Limits, MusicGPTSession, WebhookReceiver
from musicgpt_async.emulator import Emulator

pytestmark = [pytest.mark.anyio, pytest.mark.accelerated(20)]

TRACK = b"ID3" + b"\x00" * 3000
LIMITS = Limits(parallel=10, polls_per_minute=100_000)


def nowhere() -> WebhookReceiver:
    """Return a receiver whose public URL leads nowhere."""
    return WebhookReceiver("http://127.0.0.1:9/hooks")


async def test_ten_short_jobs_without_deliveries_finish_soon(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ten jobs of half a second whose webhooks are lost are done in ten seconds; one warning."""
    vendor = Emulator(seconds=0.5, separate=False, parallel=10, polls_per_minute=None)
    async with (
        vendor,
        MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, limits=LIMITS, webhooks=nowhere()
        ) as session,
    ):
        began = anyio.current_time()
        for job in [session.submit((f"{n}.mp3", TRACK)) for n in range(10)]:
            await job
        assert anyio.current_time() - began < 10.0
    said = [each for each in caplog.records if "webhooks do not arrive" in each.getMessage()]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING


async def test_sessions_of_one_receiver_learn_together() -> None:
    """What one session learned of a receiver is known to the next one on it."""
    receiver = nowhere()
    vendor = Emulator(seconds=0.2, separate=False, parallel=10, polls_per_minute=None)
    async with vendor:
        for _ in range(2):
            async with MusicGPTSession(
                vendor.api_key, base_url=vendor.base_url, limits=LIMITS, webhooks=receiver
            ) as session:
                before = receiver._queue.reliability.loss
                await session.submit(("a.mp3", TRACK))
    assert 0.95 < before < receiver._queue.reliability.loss


async def test_a_delivery_after_the_end_teaches_that_the_receiver_hears() -> None:
    """A webhook that comes when a poll has seen the end already is not counted as lost."""
    port = free_port()
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/hooks")
    vendor = Emulator(seconds=2.0, speed=10.0, separate=False, parallel=10, webhooks="late")
    async with (
        vendor,
        receiver.serve("127.0.0.1", port),
        MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, limits=LIMITS, webhooks=receiver
        ) as session,
    ):
        await session.submit(("a.mp3", TRACK))
        with anyio.fail_after(30):
            while receiver._queue.reliability.loss > 0.5:
                await anyio.sleep(0.01)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
