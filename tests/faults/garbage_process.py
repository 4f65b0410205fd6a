"""Send garbage to an endpoint from another process; print a report of the responses."""

from __future__ import annotations

import asyncio
import json
import sys

from musicgpt_async.webhooks import MAX_BODY_BYTES


def garbage(token: str) -> list[tuple[int, bytes]]:
    """Return requests that an endpoint refuses, each with the expected status."""

    def post(status: int, path: str, body: bytes) -> tuple[int, bytes]:
        head = f"POST /hooks/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        return status, head.encode() + body

    public = token.partition(".")[0]
    return [
        *(post(404, f"{n:032x}.{n:032x}", b'{"task_id": "%d"}' % n) for n in range(50)),
        post(404, public, b"{}"),
        post(404, f"{public}.{'0' * 32}", b"x" * 20_000),
        post(400, token, b""),
        post(400, token, b"[" * 20_000),
        post(400, token, b"\xff" * 50_000),
        post(413, token, b"x" * (MAX_BODY_BYTES + 1)),
        (405, f"GET /hooks/{token} HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
        (405, b"DELETE /hooks/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    ]


async def send_garbage(port: int, token: str, number: int) -> None:
    """Send garbage over a few connections and print a report of what came back, as JSON."""
    requests = garbage(token)
    queue = iter(requests[n % len(requests)] for n in range(number))
    wrong: list[tuple[int, int]] = []
    answers = bytes_sent = 0

    async def one_after_another() -> None:
        nonlocal answers, bytes_sent
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for expected, request in queue:
            writer.write(request)
            bytes_sent += len(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
            await writer.drain()
            answers += 1
            if (status := int(head.split()[1])) != expected:
                wrong.append((status, expected))
            if b"connection: close" in head:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    await asyncio.gather(*(one_after_another() for _ in range(4)))
    print(json.dumps({"answers": answers, "wrong": wrong[:10], "bytes": bytes_sent}))  # noqa: T201  # the report


if __name__ == "__main__":
    asyncio.run(send_garbage(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
