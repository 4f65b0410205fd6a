from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from asyncio.protocols import _feed_data_to_buffered_proto
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import pytest

from musicgpt_async._io.http import Transport
from musicgpt_async._io.receiving import GATHERED, pieces
from musicgpt_async.errors import TransportError

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
BREAKS = (TransportError, ConnectionError, TimeoutError, aiohttp.ClientError)
# More than the sockets' buffers hold, and not a round number of pieces.
LENGTHY = 5 * GATHERED + 12_345


async def body_of(
    transport: Transport, url: str, *, late: bool = False, patience: float = PATIENCE
) -> bytes:
    """Bring a body together, with the loop free between its pieces."""
    whole = b""
    async with transport.fetch(url, {}) as response:
        if late:  # the parser holds what it may by then
            await anyio.sleep(0.1)
        async for piece in pieces(response, patience=patience):
            assert sum(map(len, piece)) <= 2 * GATHERED
            await asyncio.sleep(0)
            whole += b"".join(piece)
    return whole


def is_taken_over(wire: asyncio.Transport) -> bool:
    """Whether a body goes past aiohttp now."""
    return isinstance(wire.get_protocol(), asyncio.BufferedProtocol)


@pytest.fixture
def host(serve: Any, lanes: Any, certificates: Any) -> Any:
    """Serve in clear or over TLS, and open a transport to there."""

    @asynccontextmanager
    async def opened(handler: Any, *, tls: bool) -> AsyncIterator[tuple[Any, Transport, str]]:
        theirs, ours = certificates
        async with (
            serve(handler, tls=theirs if tls else None) as server,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ours)) as http,
            lanes(http=http) as transport,
        ):
            yield server, transport, server.url.replace("http:", "https:" if tls else "http:")

    return opened


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("size", [1, 100, 300_000, 700_000, 1_200_000, GATHERED, LENGTHY])
async def test_bodies_come_whole_over_one_connection(
    tls: bool, late: bool, size: int, host: Any
) -> None:
    """Whatever their size, read at once or late, bodies come whole and share a connection."""
    data = secrets.token_bytes(size)

    async def give(peer: Any) -> None:
        for _ in range(3):
            await peer.head()
            await peer.answer(200, data)
        await anyio.sleep(PATIENCE)

    async with host(give, tls=tls) as (server, transport, url):
        for _ in range(3):
            assert await body_of(transport, url, late=late) == data
        assert server.connections == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_nothing_is_written_into_what_was_handed_out(tls: bool, host: Any) -> None:
    """Whoever resumes the transport meanwhile, a piece stays as it was until the next is taken."""
    data = secrets.token_bytes(LENGTHY)
    whole = b""

    async def give(peer: Any) -> None:
        await peer.head()
        await peer.answer(200, data)
        await anyio.sleep(PATIENCE)

    async with host(give, tls=tls) as (_, transport, url), transport.fetch(url, {}) as response:
        wire = response.connection.transport
        async for came in pieces(response, patience=PATIENCE):
            before = b"".join(came)
            for _ in range(10):  # as aiohttp does for one who reads an earlier answer late
                if response.connection is not None:
                    wire.resume_reading()
                await anyio.sleep(0.002)
            assert b"".join(came) == before
            whole += before
    assert whole == data


@pytest.mark.parametrize("excess", [b"", b"too much"])
@pytest.mark.parametrize("at_once", [100_000, GATHERED, GATHERED + 100_000, 8 * GATHERED])
@pytest.mark.parametrize("size", [1000, 2 * GATHERED, LENGTHY])
async def test_a_transport_that_cannot_be_held_back_mixes_nothing(
    size: int, at_once: int, excess: bytes, host: Any
) -> None:
    """Windows' loop delivers all that it has: in order, and kept only where nothing follows."""
    data = secrets.token_bytes(size)
    whole = b""

    async def announce(peer: Any) -> None:
        await peer.head()
        await peer.answer(200, b"", Content_Length=str(size))
        await anyio.sleep(PATIENCE)

    async with host(announce, tls=False) as (_, transport, url):
        async with transport.fetch(url, {}) as response:
            wire = response.connection.transport

            async def take() -> None:
                nonlocal whole
                async for came in pieces(response, patience=PATIENCE):
                    whole += b"".join(came)

            async with anyio.create_task_group() as both:
                both.start_soon(take)
                while not is_taken_over(wire):
                    await anyio.lowlevel.checkpoint()
                sink = wire.get_protocol()
                deliveries = [data[start : start + at_once] for start in range(0, size, at_once)]
                deliveries[-1] += excess
                for delivered in deliveries:
                    # What asyncio's Proactor loop hands its data on with.
                    _feed_data_to_buffered_proto(sink, delivered)
                    await asyncio.sleep(0)
        assert whole == data
        assert wire.is_closing() == bool(excess)


@pytest.mark.parametrize("more", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"])
async def test_what_follows_a_body_is_not_of_it(more: bytes, serve: Any, lanes: Any) -> None:
    """A host that sends more than it announced spoils neither this body nor the next one."""
    data = secrets.token_bytes(20_000)  # one segment, so that all of it comes at once
    wires: list[asyncio.Transport] = []

    async def give_more(peer: Any) -> None:
        while True:
            await peer.head()
            before = len(wires)
            await peer.answer(200, b"", Content_Length=str(len(data)))
            # aiohttp itself refuses what follows with the head.
            while len(wires) == before or not is_taken_over(wires[-1]):
                await anyio.lowlevel.checkpoint()
            await peer.say(data + more)

    async with serve(give_more) as server, lanes() as transport:
        for _ in range(3):
            async with transport.fetch(server.url, {}) as response:
                wires.append(response.connection.transport)
                came = [b"".join(each) async for each in pieces(response, patience=PATIENCE)]
            assert b"".join(came) == data


async def test_a_body_in_chunks_comes_through_the_parser(serve: Any, lanes: Any) -> None:
    """A body that tells no length comes whole, and its connection is used again as well."""
    data = secrets.token_bytes(3 * GATHERED)

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
        assert server.connections == 1


@pytest.mark.parametrize("came", [0, 1000, GATHERED + 1000])
@pytest.mark.parametrize("manner", ["close", "reset", "silence"])
@pytest.mark.parametrize("tls", [False, True])
async def test_what_came_before_a_break_is_handed_out(
    came: int, manner: str, tls: bool, host: Any
) -> None:
    """Bytes that arrived are given before the break is raised, whoever breaks off and how."""
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

    async def read(transport: Transport, url: str, patience: float) -> None:
        nonlocal taken
        async with transport.fetch(url, {}) as response:
            if manner == "reset":
                asyncio.get_running_loop().call_later(0.3, is_read.set)
            async for each in pieces(response, patience=patience):
                taken += b"".join(each)

    async with host(give_a_part, tls=tls) as (_, transport, url):
        patience = 0.5 if manner == "silence" else PATIENCE
        # aiohttp waits as long for a TLS connection to end that it closes itself.
        with anyio.fail_after(PATIENCE / 2), pytest.raises(BREAKS):
            await read(transport, url, patience)
        if manner == "reset":  # which takes along what the kernel has not handed out yet
            assert data[:came].startswith(taken)
        else:
            assert taken == data[:came]


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
            with anyio.fail_after(PATIENCE / 2), pytest.raises(TransportError, match="in time"):
                await body_of(transport, url, patience=0.3)
    finally:
        over.set()
        serving.result(PATIENCE)
