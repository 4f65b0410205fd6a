"""Bodies that run ahead of their slots, on real sockets."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from factories.uploads import MORE_THAN_BUFFERS, NARROW, body_of, closing, open_track, write_track
from factories.watching import until

from musicgpt_async._io.content import BLOCK_SIZE
from musicgpt_async._io.upload import Hold
from musicgpt_async._rules.durations import DurationModel
from musicgpt_async._rules.upload_ahead import HELD_BACK, Running, Uplink, UploadAhead
from musicgpt_async.errors import JobDetachedError, TransportError

pytestmark = pytest.mark.anyio

YES = b'{"success": true, "task_id": "t"}'


def until_set(slot: anyio.Event) -> Callable[[float], Awaitable[bool]]:
    """Wait for a slot as a hold asks for it."""

    async def wait(seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await slot.wait()
        return slot.is_set()

    return wait


@attrs.define
class Sink:
    """A server that reads everything and accepts a complete body."""

    received: bytearray = attrs.field(factory=bytearray)

    async def __call__(self, peer: Any) -> None:
        """Read one submit."""
        length = int((await peer.head()).headers["content-length"])
        while len(self.received) < length:
            piece = await peer.reader.read(1 << 16)
            if not piece:
                return
            self.received.extend(piece)
        await peer.answer(200, YES)


async def test_the_end_is_held_until_the_slot_is_there(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """All but the end arrives, a little of that too as time passes, the rest with the slot."""
    data = write_track(tmp_path / "a.wav", 2 * BLOCK_SIZE + 9)
    sink, slot, steps = Sink(), anyio.Event(), list[int]()
    committed: list[int] = []

    async def commit() -> None:
        committed.append(len(sink.received))

    async with (
        serve(sink) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        hold = Hold(until_set(slot), drip=HELD_BACK / 10.0)
        body = body_of(
            content, hold=hold, stall_timeout=0.4, before_commit=commit, progress=steps.append
        )
        ahead = len(body._head) + len(data) - HELD_BACK
        async with anyio.create_task_group() as group:
            group.start_soon(transport.post, server.url, body)
            await until(lambda: len(sink.received) >= ahead)
            assert steps[-1] == len(data) - HELD_BACK
            await until(lambda: body.is_held)
            await anyio.sleep(1.0)  # more than twice the stall timeout
            dripped = len(sink.received) - ahead
            assert 0 < dripped < HELD_BACK // 4
            assert not committed
            slot.set()
    assert bytes(sink.received) == body._head + data + closing(body)
    assert committed
    assert body.delivered
    assert steps[-1] == len(data)


async def test_an_end_of_which_nothing_is_left_to_drip_is_no_stall(
    serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A hold longer than the stall timeout is none of the server's fault, however small the end."""
    sink, slot = Sink(), anyio.Event()
    async with (
        serve(sink) as server,
        lanes() as transport,
        open_track(("a.wav", b"sound"), executor) as content,
    ):
        hold = Hold(until_set(slot), drip=HELD_BACK)
        body = body_of(content, hold=hold, stall_timeout=0.4)
        async with anyio.create_task_group() as group:
            group.start_soon(transport.post, server.url, body)
            await until(lambda: b"sound" in sink.received)
            await anyio.sleep(1.0)  # more than twice the stall timeout
            await until(lambda: body.is_held)
            slot.set()
    assert body.delivered


async def test_a_held_body_that_is_aborted_is_not_delivered(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """An error from the hold keeps the boundary back and stops the body: nothing is paid."""
    write_track(tmp_path / "a.wav", 2 * BLOCK_SIZE)
    sink = Sink()

    async def refuse(_: float) -> bool:
        raise JobDetachedError("let go of")

    async with (
        serve(sink) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content, hold=Hold(refuse, drip=1.0))
        with pytest.raises(TransportError):
            await transport.post(server.url, body)
    assert isinstance(body.failure, JobDetachedError)
    assert not body.delivered
    assert closing(body) not in sink.received


async def test_a_server_that_closes_a_held_body_has_nothing(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """The connection closed while the end is held: the hold ends at once, not delivered."""
    write_track(tmp_path / "a.wav", 2 * BLOCK_SIZE)
    held = anyio.Event()

    async def close(peer: Any) -> None:
        await peer.head()
        left = 2 * BLOCK_SIZE - HELD_BACK
        while left > 0:
            left -= len(await peer.reader.read(1 << 16))
        await held.wait()

    async with (
        serve(close) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        never = until_set(anyio.Event())
        body = body_of(content, hold=Hold(never, drip=100.0, began=held.set))
        began = time.monotonic()
        with pytest.raises(TransportError):
            await transport.post(server.url, body)
        assert time.monotonic() - began < 10.0
    assert not body.delivered


@pytest.mark.parametrize("status", [402, 429])
async def test_a_refusal_before_the_body_is_complete_ends_the_hold(
    status: int, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A refusal during the hold is handled at once, and nothing was delivered."""
    write_track(tmp_path / "a.wav", 2 * BLOCK_SIZE)
    held = anyio.Event()

    async def refuse(peer: Any) -> None:
        await peer.head()
        left = 2 * BLOCK_SIZE - HELD_BACK
        while left > 0:
            left -= len(await peer.reader.read(1 << 16))
        await held.wait()
        await peer.answer(status, b'{"success": false}')
        await peer.rest()

    async with (
        serve(refuse) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        never = until_set(anyio.Event())
        body = body_of(content, hold=Hold(never, drip=100.0, began=held.set))
        began = time.monotonic()
        assert (await transport.post(server.url, body)).status == status
        assert time.monotonic() - began < 10.0
    assert not body.delivered


async def test_a_held_body_keeps_little_in_memory(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """However long the track, no more than its end is kept while it is held."""
    write_track(tmp_path / "a.wav", MORE_THAN_BUFFERS)
    sink, slot, held = Sink(), anyio.Event(), list[int]()

    async with (
        serve(sink) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):

        async def wait(_: float) -> bool:
            await until(lambda: len(sink.received) >= MORE_THAN_BUFFERS - HELD_BACK)
            held.append(body.bytes_flushed(None) - len(body._head))
            slot.set()
            return True

        body = body_of(content, hold=Hold(wait, drip=1.0))
        await transport.post(server.url, body)
    assert held == [MORE_THAN_BUFFERS - HELD_BACK]


class SlowVendor:
    """A server with a slow uplink and one slot, which counts a job when its form is complete."""

    def __init__(self, *, rate: float, seconds: float) -> None:
        self.rate, self.seconds = rate, seconds
        self.running = self.refused = 0
        self.bytes = 0
        self.jobs: list[tuple[float, float]] = []
        self._uplink_free_at = 0.0

    async def __call__(self, peer: Any) -> None:
        """Take in one submit as slowly as the uplink is."""
        left = int((await peer.head()).headers["content-length"])
        while left:
            piece = await peer.reader.read(min(left, 1 << 18))
            if not piece:
                return
            left -= len(piece)
            self.bytes += len(piece)
            now = time.monotonic()
            self._uplink_free_at = max(self._uplink_free_at, now) + len(piece) / self.rate
            await anyio.sleep(self._uplink_free_at - now)
        if self.running:
            self.refused += 1
            await peer.answer(429, b'{"success": false}')
            return
        self.running += 1
        began = time.monotonic()
        await peer.answer(200, YES)
        await anyio.sleep(self.seconds)
        self.running -= 1
        self.jobs.append((began, time.monotonic()))

    @property
    def idle(self) -> float:
        """Share of the time from the first job's start to the last one's end with none running."""
        whole = self.jobs[-1][1] - self.jobs[0][0]
        return 1.0 - sum(end - begin for begin, end in self.jobs) / whole


@attrs.define(eq=False)
class Client:
    """A client of one slot by the rule, or with the slot first; ends are seen at once."""

    url: str
    transport: Any
    vendor: SlowVendor
    rule: UploadAhead | None
    durations: DurationModel
    uplink: Uplink
    under_way: dict[int, int] = attrs.field(factory=dict)
    held: int = 0
    accepted_at: float | None = None

    async def run(self, paths: list[Path], executor: ThreadPoolExecutor) -> None:
        """Submit the tracks in their order and wait until all have ended."""
        slots = anyio.Semaphore(1)
        async with anyio.create_task_group() as group:
            for number, path in enumerate(paths):
                while not self._may_start(path.stat().st_size, free=slots.value > 0):
                    await anyio.sleep(0.01)
                self.under_way[number] = path.stat().st_size
                group.start_soon(self._submit, number, path, slots, executor)
                await anyio.lowlevel.checkpoint()

    def _may_start(self, size: int, *, free: bool) -> bool:
        if self.rule is None:
            return free and not self.under_way
        running = []
        if self.accepted_at is not None:
            running = [Running(self.vendor.seconds, anyio.current_time() - self.accepted_at)]
        return self.rule.may_start(
            size,
            free=int(free),
            uploading=list(self.under_way.values()),
            held=self.held,
            running=running,
        )

    async def _submit(
        self, number: int, path: Path, slots: anyio.Semaphore, executor: ThreadPoolExecutor
    ) -> None:
        size, sent = path.stat().st_size, 0

        def progress(total: int) -> None:
            nonlocal sent
            if number in self.under_way:
                self.uplink.sent(total - sent, now=anyio.current_time())
                self.under_way[number], sent = size - total, total

        def began() -> None:
            del self.under_way[number]
            self.uplink.stopped(now=anyio.current_time())
            self.held += 1

        has_slot = False

        async def wait(seconds: float) -> bool:
            nonlocal has_slot
            with anyio.move_on_after(seconds):
                await slots.acquire()
                has_slot = True
                self.held -= 1
            return has_slot

        async with open_track(path, executor) as content:
            self.uplink.started(now=anyio.current_time())
            hold = Hold(wait, drip=HELD_BACK / 300.0, began=began)
            answer = await self.transport.post(
                self.url, body_of(content, progress=progress, hold=hold)
            )
        assert answer.status == 200
        self.accepted_at, ended = anyio.current_time(), len(self.vendor.jobs)
        await until(lambda: len(self.vendor.jobs) > ended)
        took = anyio.current_time() - self.accepted_at
        self.durations.observe(self.vendor.seconds, 0.98 * took, took)
        self.accepted_at = None
        slots.release()


async def test_a_batch_through_a_slow_uplink_hardly_idles(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """If an upload takes a third of a job, the slot idles less than half as long as before."""
    size, rate, seconds, count = 6 * BLOCK_SIZE, 15 * BLOCK_SIZE, 1.2, 6
    paths = [tmp_path / f"{n}.wav" for n in range(count)]
    for path in paths:
        write_track(path, size)
    idle = []
    for ahead in (False, True):
        vendor = SlowVendor(rate=rate, seconds=seconds)
        async with serve(vendor, window=NARROW) as server, lanes() as transport:
            durations, uplink = DurationModel(), Uplink()
            rule = UploadAhead(durations, uplink) if ahead else None
            client = Client(server.url, transport, vendor, rule, durations, uplink)
            await client.run(paths, executor)
        assert vendor.refused == 0
        assert len(vendor.jobs) == count
        assert vendor.bytes < 1.01 * count * size
        idle.append(vendor.idle)
    assert idle[0] > 0.2
    assert idle[1] < 0.5 * idle[0]
