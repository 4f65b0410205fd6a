from __future__ import annotations

import asyncio
import secrets
import ssl
from typing import Any

import aiohttp
import anyio
import pytest
import trustme

from musicgpt_async._io.http import Transport
from musicgpt_async._io.receiving import GATHERED, pieces

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
# More than the sockets' buffers hold, and not a round number of pieces.
LENGTHY = 5 * GATHERED + 12_345


async def body_of(transport: Transport, url: str, *, patience: float = PATIENCE) -> bytes:
    """Bring a body together, with the loop free between its pieces."""
    whole = b""
    async with transport.fetch(url, {}) as response:
        async for piece in pieces(response, patience=patience):
            assert sum(map(len, piece)) <= 2 * GATHERED
            await asyncio.sleep(0)
            whole += b"".join(piece)
    return whole


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("size", [1, 100, 300_000, GATHERED, LENGTHY])
async def test_bodies_come_whole_over_one_connection(
    tls: bool, size: int, serve: Any, lanes: Any
) -> None:
    """Whatever their size, bodies come as they were sent, and the connection is used again."""
    data = secrets.token_bytes(size)

    async def give(peer: Any) -> None:
        for _ in range(3):
            await peer.head()
            await peer.answer(200, data)
        await anyio.sleep(PATIENCE)

    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    connector = aiohttp.TCPConnector(ssl=ours)
    async with (
        serve(give, tls=theirs if tls else None) as server,
        aiohttp.ClientSession(connector=connector) as http,
        lanes(http=http) as transport,
    ):
        url = server.url.replace("http:", "https:") if tls else server.url
        for _ in range(3):
            assert await body_of(transport, url) == data
        assert server.connections == 1


@pytest.mark.parametrize("more", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"])
async def test_what_follows_a_body_is_not_of_it(more: bytes, serve: Any, lanes: Any) -> None:
    """A host that sends more than it announced spoils neither this body nor the next one."""
    data = secrets.token_bytes(2 * GATHERED)

    async def give_more(peer: Any) -> None:
        while True:
            await peer.head()
            await peer.answer(200, data + more, Content_Length=str(len(data)))

    async with serve(give_more) as server, lanes() as transport:
        for _ in range(3):
            assert await body_of(transport, server.url) == data


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
async def test_what_came_before_a_break_is_handed_out(
    came: int, manner: str, serve: Any, lanes: Any
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
            await is_read.wait()  # a reset takes along what the kernel has not handed out
            peer.reset()

    async with serve(give_a_part) as server, lanes() as transport:
        patience = 0.3 if manner == "silence" else PATIENCE
        with pytest.raises((ConnectionError, TimeoutError, aiohttp.ClientError)) as caught:  # noqa: PT012
            async with transport.fetch(server.url, {}) as response:
                if manner == "reset":
                    asyncio.get_running_loop().call_later(0.3, is_read.set)
                async for each in pieces(response, patience=patience):
                    taken += b"".join(each)
        assert taken == data[:came]
        assert isinstance(caught.value.__cause__ or caught.value, Exception)
