"""A session whose uploads run ahead of their slots, through a slow uplink."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from musicgpt_async import CreditLimitError, JobState, Limits, MusicGPTError, MusicGPTSession
from musicgpt_async.events import Accepted, Uploading

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000
SIZE, RATE = 6 * MEGABYTE, 12.0 * MEGABYTE


class SlowVendor:
    """A server with few slots behind an uplink of so many bytes per second.

    Its jobs end when the test says so, or after `seconds`.

    Args:
        parallel: Its slots.
    """

    def __init__(self, *, parallel: int = 1) -> None:
        self.parallel = parallel
        self.seconds = math.inf
        self.accepted: list[str] = []  # file names
        self.received: list[int] = []
        self.whole = self.refused = 0
        self.refuse_with: int | None = None
        self._free_at = 0.0
        self._ends: dict[str, float] = {}

    async def submit(self, request: web.Request) -> web.Response:
        """Take in one body as slowly as the uplink is."""
        number, head = len(self.received), b""
        self.received.append(0)
        async for piece in request.content.iter_any():
            head += piece[: 4096 - len(head)]
            self.received[number] += len(piece)
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + len(piece) / RATE
            await asyncio.sleep(self._free_at - now)
        self.whole += 1
        if sum(end > time.monotonic() for end in self._ends.values()) >= self.parallel:
            self.refused += 1
            return web.json_response({"success": False}, status=429)
        if self.refuse_with is not None:
            return web.json_response({"success": False, "message": "no"}, status=self.refuse_with)
        self._ends[f"t{number}"] = time.monotonic() + self.seconds
        self.accepted.append(re.findall(rb'filename="([^"]+)"', head)[0].decode())
        return web.json_response({"success": True, "task_id": f"t{number}", "eta": 2})

    def finish(self, number: int) -> None:
        """End the job of a body, the first of which has number 0."""
        self._ends[f"t{number}"] = time.monotonic()

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
    """Return a session for the server, which knows its slots."""
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([web.post("/v1/Extraction", vendor.submit), web.get("/v1/byId", vendor.status)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    limits = Limits(parallel=vendor.parallel, polls_per_minute=6000)
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


async def wait_until_held(vendor: SlowVendor, count: int) -> None:
    """Wait until all but the end of so many bodies is there."""
    with anyio.fail_after(60):
        while len(vendor.received) < count or min(vendor.received) < 0.9 * SIZE:
            await anyio.sleep(0.005)


async def test_the_next_body_is_there_when_its_slot_is(tmp_path: Path) -> None:
    """While a job runs the next body goes out but for its end; none is refused or sent twice."""
    vendor = SlowVendor()
    async with session_with(vendor) as session:
        jobs = [session.submit(path) for path in write_tracks(tmp_path, 5)]
        for number in range(4):
            await wait_until_held(vendor, number + 2)
            assert vendor.whole == number + 1
            assert not jobs[number].done()
            vendor.finish(number)
        vendor.seconds = 0.1
    assert vendor.refused == 0
    assert sum(vendor.received) < 5.05 * SIZE


@pytest.mark.parametrize("how", ["detach", "402"])
async def test_a_held_body_is_never_delivered(how: str, tmp_path: Path) -> None:
    """Detached, or after a 402 of another track, a body that is held stays without its end."""
    vendor = SlowVendor(parallel=2)
    async with session_with(vendor) as session:
        jobs = [session.submit(path) for path in write_tracks(tmp_path, 4)]
        await wait_until_held(vendor, 4)
        if how == "402":
            vendor.refuse_with = 402
        else:
            for job in jobs[2:]:
                job.cancel()
        vendor.finish(0)  # the slot that the third track has waited for
        for job in jobs[2:]:
            with pytest.raises(MusicGPTError) as raised:
                await job
            if how == "402" and job is jobs[3]:
                assert isinstance(raised.value, CreditLimitError)
        vendor.finish(1)
    assert vendor.whole == (3 if how == "402" else 2)


async def test_a_ready_upload_says_that_it_waits_for_a_slot(tmp_path: Path) -> None:
    """The events of a held body say so once, and again when its slot has come."""
    vendor = SlowVendor()
    async with session_with(vendor) as session:
        jobs = [session.submit(path) for path in write_tracks(tmp_path, 2)]
        stream, seen = jobs[1].events(), list[Uploading | Accepted]()
        with anyio.fail_after(60):
            async for event in stream:
                if isinstance(event, Uploading | Accepted):
                    seen.append(event)
                if isinstance(event, Uploading) and event.is_waiting_for_slot:
                    assert jobs[1].state is JobState.UPLOADING
                    assert not jobs[0].done()
                    vendor.seconds = 0.1
                    vendor.finish(0)
                if isinstance(event, Accepted):
                    break
    waiting, sent, _ = seen[-3:]
    assert isinstance(waiting, Uploading)
    assert isinstance(sent, Uploading)
    assert [each.is_waiting_for_slot for each in (waiting, sent)] == [True, False]
    assert 0.9 * SIZE < waiting.sent < waiting.total == sent.sent == sent.total == SIZE


class SlowSource:
    """A stream whose first byte takes as long as the test likes."""

    name = "slow.wav"

    def __init__(self) -> None:
        self.began, self.may_go_on = anyio.Event(), anyio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the track."""
        self.began.set()
        await self.may_go_on.wait()
        yield bytes(SIZE)


async def test_a_track_that_opens_slowly_keeps_its_place(tmp_path: Path) -> None:
    """While a job that runs ahead opens its track, no later job takes the slot that frees up."""
    vendor, source = SlowVendor(), SlowSource()
    async with session_with(vendor) as session:
        first, last = write_tracks(tmp_path, 2)
        jobs = [session.submit(each) for each in (first, source, last)]
        with anyio.fail_after(60):
            await source.began.wait()
        assert not jobs[0].done()
        vendor.seconds = 0.1
        vendor.finish(0)
        await jobs[0]
        source.may_go_on.set()
    assert vendor.accepted == [first.name, source.name, last.name]


async def test_a_job_that_was_sent_back_goes_before_a_held_body(tmp_path: Path) -> None:
    """A job that a 429 sent back gets the next slot, though a later job's body is held for one."""
    vendor = SlowVendor(parallel=2)
    async with session_with(vendor) as session:
        jobs = [session.submit(path) for path in write_tracks(tmp_path, 4)]
        await wait_until_held(vendor, 4)
        with anyio.fail_after(60):
            vendor.parallel = 1  # another program uses the account now
            vendor.finish(0)
            while not vendor.refused or jobs[2].state is not JobState.QUEUED:
                await anyio.sleep(0.005)
        assert jobs[3].state is JobState.UPLOADING
        vendor.seconds = 0.1
        vendor.finish(1)
    assert vendor.accepted[2:] == ["2.wav", "3.wav"]
    assert vendor.refused == 1
