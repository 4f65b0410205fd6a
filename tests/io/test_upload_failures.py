"""Uploads that are cancelled, stalled, disconnected or refused early."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import pytest
from factories.uploads import (
    MORE_THAN_BUFFERS,
    NARROW,
    PATIENCE,
    body_of,
    closing,
    open_track,
    stream,
    write_track,
)
from factories.watching import held, until

from musicgpt_async._io.content import BLOCK_SIZE
from musicgpt_async._io.upload import MultipartBody
from musicgpt_async._rules.protocol import Response
from musicgpt_async._rules.retrying import SubmitOutcome, submit_outcome
from musicgpt_async.errors import (
    MusicGPTError,
    TransportError,
    TransportTimeoutError,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancelling_midway_closes_the_file(
    how: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """No descriptor remains open, and no closing boundary is sent."""
    path = tmp_path / "a.wav"
    write_track(path, MORE_THAN_BUFFERS)
    received: list[bytes] = []
    started, read_on = anyio.Event(), anyio.Event()

    async def stop_reading(peer: Any) -> None:
        start = await peer.reader.readexactly(NARROW)
        started.set()
        await read_on.wait()
        received.append(start + await peer.rest())

    async with serve(stop_reading, window=NARROW) as server, lanes() as transport:
        bodies: list[MultipartBody] = []

        async def submit() -> None:
            async with open_track(path, executor) as content:
                bodies.append(body_of(content))
                await transport.post(server.url, bodies[0])

        if how == "task":
            task = asyncio.create_task(submit())
            await started.wait()
            assert held(path)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(submit)
                await started.wait()
                assert held(path)
                group.cancel_scope.cancel()
        await until(lambda: not held(path))
        read_on.set()
        await until(lambda: received)
    assert not bodies[0].delivered
    assert closing(bodies[0]) not in received[0]


async def test_a_spooled_stream_leaves_no_file_behind(executor: ThreadPoolExecutor) -> None:
    """The temporary file of a stream goes with the submit."""
    async with open_track(("a.wav", stream(b"x" * 100)), executor) as content:
        spool = content._path
        assert (content.size, spool.stat().st_size) == (100, 100)
    assert not spool.exists()


@pytest.mark.parametrize("kind", ["path", "stream"])
@pytest.mark.parametrize("ends", ["normally", "cancelled"])
def test_the_file_is_closed_though_the_shared_threads_are_busy(
    ends: str, kind: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """Slow lookups of names hold up neither the end of a submit nor the closing of its file."""
    write_track(tmp_path / "a.wav", 100)
    free = threading.Event()
    kept: list[Any] = []  # so that no collection closes what the submit forgot

    async def submit() -> None:
        shared = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(shared)
        source = tmp_path / "a.wav" if kind == "path" else ("a.wav", stream(b"x" * 100))
        with anyio.CancelScope() as scope:
            async with open_track(source, executor) as content:
                shared.submit(free.wait, PATIENCE)
                kept.append(content)
                if ends == "cancelled":
                    scope.cancel()
                    await anyio.sleep(PATIENCE)

    async def main() -> None:
        try:
            with anyio.fail_after(2):
                await submit()
        finally:
            free.set()
        path = kept[0]._path
        with anyio.fail_after(2):
            await until(lambda: not held(path) and (kind == "path" or not path.exists()))

    asyncio.run(main())


# A server that does not read, disconnects, or responds early.


async def test_a_vendor_that_stops_reading_is_noticed(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """No byte taken for the stall timeout ends the upload, not delivered and thus sent again."""
    write_track(tmp_path / "a.wav", MORE_THAN_BUFFERS)

    async def read_nothing(peer: Any) -> None:
        await peer.head()
        await anyio.sleep(PATIENCE * 2)

    async with (
        serve(read_nothing, window=NARROW) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content, stall_timeout=0.4)
        began = anyio.current_time()
        with anyio.fail_after(PATIENCE), pytest.raises(TransportError):
            await transport.post(server.url, body)
        assert anyio.current_time() - began >= 0.4
    assert isinstance(body.failure, TransportTimeoutError)
    assert "0.4 s" in str(body.failure)
    assert not body.delivered
    assert submit_outcome(body.failure, delivered=False) is SubmitOutcome.NOT_DELIVERED


async def test_a_slow_upload_outlasts_every_timeout(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """As long as bytes are taken, neither the request's nor the stall timeout cuts an upload."""
    data = write_track(tmp_path / "a.wav", MORE_THAN_BUFFERS)
    received: list[bytes] = []
    timeout = 0.8

    async def sip_then_gulp(peer: Any) -> None:
        length = int((await peer.head()).headers["content-length"])
        began = anyio.current_time()
        while sum(map(len, received)) < length:
            received.append(await peer.reader.read(NARROW))
            if anyio.current_time() - began < 3 * timeout:
                await anyio.sleep(timeout / 40)
        await peer.answer(200, b"{}")

    async with (
        serve(sip_then_gulp, window=NARROW) as server,
        lanes(request_timeout=timeout) as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content, stall_timeout=timeout)
        began = anyio.current_time()
        answer = await transport.post(server.url, body)
        assert anyio.current_time() - began > 3 * timeout
    assert answer.status == 200
    assert b"".join(received).endswith(data + closing(body))


async def test_a_total_timeout_of_the_callers_session_does_not_cut_an_upload(
    tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """Aiohttp's total (300 s by default) covers upload and response: it must not apply."""
    write_track(tmp_path / "a.wav", BLOCK_SIZE)

    async def take_longer(peer: Any) -> None:
        await peer.head()
        await anyio.sleep(0.6)
        await peer.reader.readexactly(BLOCK_SIZE)
        await peer.answer(200, b"{}")

    timeout = aiohttp.ClientTimeout(total=0.2)
    async with (
        serve(take_longer, window=NARROW) as server,
        aiohttp.ClientSession(timeout=timeout) as http,
        lanes(http=http) as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        assert (await transport.post(server.url, body_of(content))).status == 200


@pytest.mark.parametrize("status", [402, 413, 429])
@pytest.mark.parametrize("manner", ["keeps reading", "stops reading", "closes its side"])
async def test_an_early_answer_is_read(
    status: int,
    manner: str,
    tmp_path: Path,
    serve: Any,
    lanes: Any,
    executor: ThreadPoolExecutor,
) -> None:
    """A refusal while the upload runs arrives, and the rest of the track is kept back."""
    write_track(tmp_path / "a.wav", MORE_THAN_BUFFERS)

    async def refuse(peer: Any) -> None:
        await peer.head()
        await peer.reader.readexactly(1 << 16)
        await peer.answer(status, b'{"success": false, "message": "no"}', Connection="close")
        if manner == "keeps reading":
            await peer.rest()
            return
        if manner == "closes its side":
            peer.writer.write_eof()
        await anyio.sleep(PATIENCE)

    async with (
        serve(refuse, window=NARROW) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content)
        with anyio.fail_after(PATIENCE):
            answer = await transport.post(server.url, body)
    assert (answer.status, answer.body[:17]) == (status, b'{"success": false')
    assert not body.delivered


@pytest.mark.parametrize("manner", ["reset", "close"])
async def test_an_answer_is_read_though_the_vendor_hangs_up(
    manner: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A 402 before a disconnect is read if the kernel still has it, and is never a delivery."""
    write_track(tmp_path / "a.wav", MORE_THAN_BUFFERS)
    answers: list[Response] = []

    async def refuse(peer: Any) -> None:
        await peer.head()
        await peer.reader.readexactly(1 << 16)
        await peer.answer(402, b'{"message": "add credit"}', Connection="close")
        if manner == "reset":
            peer.reset()

    async with (
        serve(refuse, window=NARROW) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        for _ in range(10):
            body = body_of(content)
            # A reset may discard a response that was sent before: on a busy machine some do.
            with suppress(TransportError):
                answers.append(await transport.post(server.url, body))
            assert not body.delivered
    assert {answer.status for answer in answers} == {402}


@pytest.mark.parametrize("manner", ["reset", "close"])
async def test_hanging_up_midway_is_not_delivered(
    manner: str, tmp_path: Path, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A connection that breaks under the track leaves nothing that could be paid for."""
    write_track(tmp_path / "a.wav", MORE_THAN_BUFFERS)

    async def hang_up(peer: Any) -> None:
        await peer.reader.readexactly(1 << 16)
        if manner == "reset":
            peer.reset()

    async with (
        serve(hang_up, window=NARROW) as server,
        lanes() as transport,
        open_track(tmp_path / "a.wav", executor) as content,
    ):
        body = body_of(content)
        with anyio.fail_after(PATIENCE), pytest.raises(TransportError) as caught:
            await transport.post(server.url, body)
    assert not held(tmp_path / "a.wav")
    assert not body.delivered
    error = body.failure or caught.value
    assert isinstance(error, MusicGPTError)
    assert submit_outcome(error, delivered=body.delivered) is SubmitOutcome.NOT_DELIVERED


@pytest.mark.parametrize("manner", ["reset", "close"])
async def test_hanging_up_before_the_boundary_is_not_delivered(
    manner: str, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """A connection seen to be closed when the boundary is due never gets it."""
    received: list[bytes] = []

    async def hang_up(peer: Any) -> None:
        head = await peer.head()
        missing = int(head.headers["content-length"]) - len(closing(body))
        received.append(await peer.reader.readexactly(missing))
        if manner == "reset":
            peer.reset()

    async with (
        serve(hang_up) as server,
        lanes() as transport,
        open_track(("a.wav", b"x" * 1000), executor) as content,
    ):

        async def before_commit() -> None:
            await until(lambda: received and not server.open)
            await anyio.sleep(0.05)

        body = body_of(content, before_commit=before_commit)
        with pytest.raises(TransportError) as caught:
            await transport.post(server.url, body)
    assert not body.delivered
    assert submit_outcome(caught.value, delivered=body.delivered) is SubmitOutcome.NOT_DELIVERED


@pytest.mark.parametrize("manner", ["reset", "close", "half an answer", "silence"])
async def test_a_delivered_track_without_a_response_is_unknown(
    manner: str, serve: Any, lanes: Any, executor: ThreadPoolExecutor
) -> None:
    """After the boundary was sent, a missing response never means "not delivered"."""

    async def say_nothing(peer: Any) -> None:
        await peer.request()
        if manner == "reset":
            peer.reset()
        elif manner == "half an answer":
            await peer.say(b'HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"success": tr')
        elif manner == "silence":
            await anyio.sleep(PATIENCE)

    async with (
        serve(say_nothing) as server,
        lanes(request_timeout=0.5) as transport,
        open_track(("a.wav", b"x" * 1000), executor) as content,
    ):
        body = body_of(content)
        with pytest.raises(TransportError) as caught:
            await transport.post(server.url, body)
        assert server.connections == 1
    assert body.delivered
    assert body.failure is None
    assert submit_outcome(caught.value, delivered=body.delivered) is SubmitOutcome.UNKNOWN


async def test_no_server_at_all_is_not_delivered(
    lanes: Any, executor: ThreadPoolExecutor, unused_port: int
) -> None:
    """A refused connection hands nothing over."""
    async with lanes() as transport, open_track(("a.wav", b"x"), executor) as content:
        body = body_of(content)
        with pytest.raises(TransportError) as caught:
            await transport.post(f"http://127.0.0.1:{unused_port}", body)
    assert submit_outcome(caught.value, delivered=body.delivered) is SubmitOutcome.NOT_DELIVERED
