"""A session whose uploads run ahead of their slots, through a slow uplink."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from musicgpt_async import CreditLimitError, Limits, MusicGPTError, MusicGPTSession

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000
SIZE, RATE, SECONDS = 6 * MEGABYTE, 12.0 * MEGABYTE, 1.5


class SlowVendor:
    """A server with one slot behind an uplink of so many bytes per second."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.ahead: list[int] = []  # bytes of later bodies that were there at each job's end
        self.whole = self.refused = 0
        self.refuse_with: int | None = None
        self._free_at = 0.0
        self._ends: dict[str, float] = {}

    async def submit(self, request: web.Request) -> web.Response:
        """Take in one body as slowly as the uplink is."""
        number = len(self.received)
        self.received.append(0)
        async for piece in request.content.iter_any():
            self.received[number] += len(piece)
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + len(piece) / RATE
            await asyncio.sleep(self._free_at - now)
        self.whole += 1
        if any(end > time.monotonic() for end in self._ends.values()):
            self.refused += 1
            return web.json_response({"success": False}, status=429)
        if self.refuse_with is not None:
            return web.json_response({"success": False, "message": "no"}, status=self.refuse_with)
        self._ends[f"t{number}"] = time.monotonic() + SECONDS
        asyncio.get_running_loop().call_later(SECONDS, self._note_end, number)
        return web.json_response({"success": True, "task_id": f"t{number}", "eta": 2})

    def _note_end(self, number: int) -> None:
        self.ahead.append(sum(self.received[number + 1 :]))

    async def status(self, request: web.Request) -> web.Response:
        """Say whether a job has ended."""
        task = request.query["task_id"]
        done = self._ends[task] <= time.monotonic()
        conversion = {"task_id": task, "status": "COMPLETED" if done else "PROCESSING"}
        if done:
            conversion["audio_url"] = '{"bass": "https://example.com/b.mp3"}'
        return web.json_response({"success": True, "conversion": conversion})


@asynccontextmanager
async def session_with(vendor: SlowVendor) -> AsyncIterator[MusicGPTSession]:
    """Return a session for the server, which has one slot."""
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([web.post("/v1/Extraction", vendor.submit), web.get("/v1/byId", vendor.status)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    limits = Limits(parallel=1, polls_per_minute=6000)
    try:
        async with MusicGPTSession(
            "key", base_url=f"http://127.0.0.1:{port}/v1", limits=limits
        ) as s:
            yield s
    finally:
        await runner.cleanup()


def write_tracks(directory: Path, count: int) -> list[Path]:
    """Write tracks of the same size."""
    paths = [directory / f"{n}.wav" for n in range(count)]
    for path in paths:
        path.write_bytes(bytes(SIZE))
    return paths


async def test_the_next_body_is_there_when_its_slot_is(tmp_path: Path) -> None:
    """From the third job on, the next body is out but for its end when a job ends; none refused."""
    vendor = SlowVendor()
    async with session_with(vendor) as session:
        for job in [session.submit(path) for path in write_tracks(tmp_path, 6)]:
            await job
    assert vendor.refused == 0
    assert sum(vendor.received) < 6.05 * SIZE
    assert sum(there > 0.9 * SIZE for there in vendor.ahead[1:5]) >= 3


@pytest.mark.parametrize("how", ["detach", "402"])
async def test_a_held_body_is_never_delivered(how: str, tmp_path: Path) -> None:
    """Detached, or after a 402 of another track, a body that is held stays without its end."""
    vendor = SlowVendor()
    async with session_with(vendor) as session:
        jobs = [session.submit(path) for path in write_tracks(tmp_path, 4)]
        await jobs[1].accepted()
        with anyio.fail_after(60):
            while len(vendor.received) < 3 or vendor.received[2] < 0.9 * SIZE:
                await anyio.sleep(0.005)
        if how == "402":
            vendor.refuse_with = 402
        else:
            for job in jobs[2:]:
                job.cancel()
        for job in jobs[2:]:
            with pytest.raises(MusicGPTError) as raised:
                await job
            if how == "402" and job is jobs[3]:
                assert isinstance(raised.value, CreditLimitError)
    assert vendor.whole == (3 if how == "402" else 2)
