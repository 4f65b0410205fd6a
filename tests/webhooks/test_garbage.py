"""Every request gets a response and disturbs no job."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from factories.endpoints import DEEP, PUBLIC_URL, SERVERS, Endpoint, listen
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from musicgpt_async.webhooks import WebhookReceiver

pytestmark = pytest.mark.anyio

GARBAGE = Path(__file__).parents[1] / "faults" / "garbage_process.py"


def outcome(answer: Coroutine[Any, Any, Any]) -> Any:
    """Return the core's response, and fail if it awaits anything but the body."""
    try:
        answer.send(None)
    except StopIteration as stop:
        return stop.value
    answer.close()
    pytest.fail("the core awaited something else than the body")


def reading(*blocks: bytes) -> Callable[[], Awaitable[bytes]]:
    """Return a body that is there already."""
    rest = list(blocks)

    async def read() -> bytes:
        return rest.pop(0) if rest else b""

    return read


@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT"]) | st.text(max_size=8),
    path=st.text(max_size=200),
    headers=st.dictionaries(
        st.sampled_from(["content-length", "content-encoding", "x"]), st.text(max_size=40)
    ),
    blocks=st.lists(st.binary(min_size=1, max_size=64)),
)
def test_garbage_gets_a_response_and_wakes_no_job(
    method: str, path: str, headers: dict[str, str], blocks: list[bytes]
) -> None:
    """Any request without a token gets a refusal or the health line."""
    receiver, got = WebhookReceiver(PUBLIC_URL, secret="s3cret"), []
    listen(receiver._queue, receiver._token_for("job"), got)
    answer = outcome(receiver._endpoint.respond(method, path, headers, reading(*blocks)))
    if answer.status == 200:
        assert method in {"GET", "HEAD"}
        assert path.strip("/") in {"", "hooks"}
    else:
        assert answer.status in {404, 405}
    assert got == []


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | json_values.map(json.dumps).map(str.encode))
@example(b'{"a": "\\ud800"}')
@example(b'\xef\xbb\xbf{"a": 1}')
@example(b'{"a": NaN, "a": -Infinity}')
@example(DEEP)
def test_any_body_with_a_token_is_taken_or_refused(body: bytes) -> None:
    """With the right token a JSON object wakes the job, and every other body is a 400."""
    receiver, got = WebhookReceiver(PUBLIC_URL), []
    token = receiver._token_for("job")
    listen(receiver._queue, token, got)
    half = len(body) // 2
    answer = outcome(
        receiver._endpoint.respond(
            "POST", f"/{token}", {}, reading(*filter(None, (body[:half], body[half:])))
        )
    )
    assert answer.status in {200, 400}
    assert len(got) == (answer.status == 200)
    if got:
        assert isinstance(got[0], dict)


@pytest.mark.parametrize("name", ["serve", "fastapi"])
async def test_a_flood_of_garbage_disturbs_no_delivery(name: str) -> None:
    """10,000 pieces of garbage get right statuses, memory stays flat, and jobs are woken."""
    receiver, got = WebhookReceiver(PUBLIC_URL, secret="s3cret"), []
    token = receiver._token_for("job")
    listen(receiver._queue, token, got)
    sent = 0
    async with SERVERS[name](receiver) as root, aiohttp.ClientSession() as client:
        opened = Endpoint(receiver, root, token, got, client)
        await flood(root, token, 1_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with anyio.create_task_group() as tasks:
            running = anyio.Event()

            async def genuine() -> None:
                nonlocal sent
                while not running.is_set():
                    sent += 1
                    assert (await opened.send("POST", "/hooks/TOKEN", b'{"n": %d}' % sent))[
                        0
                    ] == 200
                    assert got[-1] == {"n": sent}

            tasks.start_soon(genuine)
            report = await flood(root, token, 10_000)
            running.set()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert report["wrong"] == []
    assert report["answers"] == 10_000
    assert len(got) == sent > 10
    grown = (after - before) * 1024
    assert grown < report["bytes"] / 10, f"{grown} bytes more for {report['bytes']} bytes sent"


async def flood(root: str, token: str, number: int) -> dict[str, Any]:
    """Let another process send garbage to an endpoint; return its report."""
    command = [sys.executable, str(GARBAGE), str(URL(root).port), token, str(number)]
    done = await anyio.run_process(command, stderr=None)
    return json.loads(done.stdout)
