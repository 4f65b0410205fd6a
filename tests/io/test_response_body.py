from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import pytest

from musicgpt_async._io.http import Transport
from musicgpt_async._io.response_body import CHUNK_SIZE, iter_chunks
from musicgpt_async.errors import TransportError, TransportTimeoutError
from musicgpt_async.testing import accelerated_loop

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
BREAKS = (TransportError, ConnectionError, TimeoutError, aiohttp.ClientError)
# More than the sockets' buffers hold, and not a round number of pieces.
LENGTHY = 5 * CHUNK_SIZE + 12_345


async def body_of(
    transport: Transport, url: str, *, late: bool = False, read_timeout: float = PATIENCE
) -> bytes:
    """Bring a body together, with the loop free between its pieces."""
    whole = b""
    async with transport.stream(url, {}) as response:
        if late:  # the parser holds what it may by then
            await anyio.sleep(0.1)
        async for piece in iter_chunks(response, read_timeout=read_timeout):
            assert sum(map(len, piece)) <= 2 * CHUNK_SIZE
            await asyncio.sleep(0)
            whole += b"".join(piece)
    return whole


@pytest.fixture
def host(serve: Any, lanes: Any, certificates: Any) -> Any:
    """Serve in clear or over TLS, and open a transport to there."""

    @asynccontextmanager
    async def open_track(handler: Any, *, tls: bool) -> AsyncIterator[tuple[Any, Transport, str]]:
        theirs, ours = certificates
        async with (
            serve(handler, tls=theirs if tls else None) as server,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ours)) as http,
            lanes(http=http) as transport,
        ):
            yield server, transport, server.url.replace("http:", "https:" if tls else "http:")

    return open_track


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("size", [1, 100, 300_000, 700_000, 1_200_000, CHUNK_SIZE, LENGTHY])
async def test_bodies_arrive_completely(tls: bool, late: bool, size: int, host: Any) -> None:
    """Bodies of any size arrive completely, read at once or late, each on its connection."""
    data = secrets.token_bytes(size)

    async def give(peer: Any) -> None:
        for _ in range(3):
            await peer.head()
            await peer.answer(200, data)
        await anyio.sleep(PATIENCE)

    async with host(give, tls=tls) as (server, transport, url):
        for _ in range(3):
            assert await body_of(transport, url, late=late) == data
        assert size <= 100 or server.connections == 3  # else aiohttp has kept it


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("more", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"])
async def test_what_follows_a_body_never_becomes_the_next_file(
    more: bytes, own: bool, serve: Any, lanes: Any
) -> None:
    """A surplus second response is not part of this body, nor of the next one."""
    bodies = [secrets.token_bytes(LENGTHY) for _ in range(4)]

    async def give_more(peer: Any) -> None:
        while True:
            request = await peer.head()
            await peer.answer(
                200, bodies[int(request.path[1:])] + more, Content_Length=str(LENGTHY)
            )
            await anyio.sleep(0.02)  # a connection that is kept would be asked again

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(give_more))
        http = None if own else await stack.enter_async_context(aiohttp.ClientSession())
        transport = await stack.enter_async_context(lanes(http=http))
        for number, data in enumerate(bodies):
            assert await body_of(transport, f"{server.url}/{number}") == data
            await anyio.sleep(0.02)
        assert server.connections == len(bodies)


@pytest.mark.parametrize("speed", [0, 100, 900])
def test_a_host_that_trickles_times_out_by_its_speed(speed: int, serve: Any, lanes: Any) -> None:
    """Less than a KiB per second over a minute times out, however regular its bytes are."""
    sent = 0

    async def trickle(peer: Any) -> None:
        nonlocal sent
        await peer.head()
        await peer.answer(200, b"begin", Content_Length="1000000000")
        while True:
            await anyio.sleep(1)
            if speed:
                await peer.say(bytes(speed))
                sent += speed

    async def main() -> None:
        async with serve(trickle) as server, lanes(request_timeout=70.0) as transport:
            began = anyio.current_time()
            with pytest.raises(TransportTimeoutError, match="sen"):
                await body_of(transport, server.url, read_timeout=70.0)
            assert 60 <= anyio.current_time() - began < 120

    with asyncio.Runner(loop_factory=accelerated_loop(100)) as runner:
        runner.run(main())
    assert sent == 0 or speed * 50 < sent < speed * 110


def test_a_slow_host_that_keeps_sending_is_waited_for(serve: Any, lanes: Any) -> None:
    """Two KiB per second is slow, but the download completes."""
    data = secrets.token_bytes(400_000)

    async def give_slowly(peer: Any) -> None:
        await peer.head()
        await peer.answer(200, b"", Content_Length=str(len(data)))
        for start in range(0, len(data), 20_000):
            await anyio.sleep(10)
            await peer.say(data[start : start + 20_000])

    async def main() -> None:
        async with serve(give_slowly) as server, lanes() as transport:
            assert await body_of(transport, server.url, read_timeout=60.0) == data
            assert anyio.current_time() - began > 190

    with asyncio.Runner(loop_factory=accelerated_loop(100)) as runner:
        began = runner.get_loop().time()
        runner.run(main())


async def test_a_chunked_body_arrives_completely(serve: Any, lanes: Any) -> None:
    """A chunked body without a length arrives completely too."""
    data = secrets.token_bytes(3 * CHUNK_SIZE)

    async def give_chunks(peer: Any) -> None:
        for _ in range(2):
            await peer.head()
            peer.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in range(0, len(data), 100_000):
                chunk = data[start : start + 100_000]
                peer.writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            peer.writer.write(b"0\r\n\r\n")
        await anyio.sleep(PATIENCE)

    async with serve(give_chunks) as server, lanes() as transport:
        for _ in range(2):
            assert await body_of(transport, server.url) == data
        assert server.connections == 2


@pytest.mark.parametrize("came", [0, 1000, CHUNK_SIZE + 1000])
@pytest.mark.parametrize("manner", ["close", "reset", "silence"])
@pytest.mark.parametrize("tls", [False, True])
async def test_what_came_before_a_break_is_handed_out(
    came: int, manner: str, tls: bool, host: Any
) -> None:
    """Received bytes are yielded before the error, for all kinds of errors."""
    data = secrets.token_bytes(LENGTHY)
    taken = b""
    is_read = anyio.Event()

    async def give_a_part(peer: Any) -> None:
        await peer.head()
        await peer.answer(200, data[:came], Content_Length=str(len(data)))
        if manner == "silence":
            await anyio.sleep(PATIENCE)
        elif manner == "reset":
            await is_read.wait()
            peer.reset()

    async def read(transport: Transport, url: str, read_timeout: float) -> None:
        nonlocal taken
        async with transport.stream(url, {}) as response:
            if manner == "reset":
                asyncio.get_running_loop().call_later(0.3, is_read.set)
            async for each in iter_chunks(response, read_timeout=read_timeout):
                taken += b"".join(each)

    async with host(give_a_part, tls=tls) as (_, transport, url):
        read_timeout = 0.5 if manner == "silence" else PATIENCE
        # aiohttp waits as long for a TLS connection to end that it closes itself.
        with anyio.fail_after(PATIENCE / 2), pytest.raises(BREAKS):
            await read(transport, url, read_timeout)
        if manner == "silence":
            assert taken == data[:came]
        else:  # aiohttp forgets what it has not handed out yet
            assert data[:came].startswith(taken)


async def test_a_silent_host_over_tls_is_hung_up_on_at_once(
    lanes: Any, certificates: Any, executor: ThreadPoolExecutor
) -> None:
    """Asyncio would wait half a minute for the goodbye of TLS, which a dead host never says."""
    theirs, ours = certificates
    over = threading.Event()

    def fall_silent(listener: socket.socket) -> None:
        with listener, theirs.wrap_socket(listener.accept()[0], server_side=True) as peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            over.wait(PATIENCE)

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    serving = executor.submit(fall_silent, listener)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ours)) as http,
            lanes(http=http) as transport,
        ):
            with (
                anyio.fail_after(PATIENCE / 2),
                pytest.raises(TransportTimeoutError, match="sent"),
            ):
                await body_of(transport, url, read_timeout=0.3)
    finally:
        over.set()
        serving.result(PATIENCE)
