"""`doctor --journal`: what a server promises, and what to do where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from factories.postgres import PostgresServer, PostgresServers
from factories.postgres_fixtures import POSTGRES
from factories.sessions import SOUND, connected, free_port

from musicgpt_async import WebhookReceiver
from musicgpt_async.cli.commands.journal_checks import WebhookOfJob, check_webhooks

pytestmark = pytest.mark.anyio


@pytest.fixture(params=POSTGRES[-1:])
def server(
    request: pytest.FixtureRequest, postgres_servers: PostgresServers
) -> Iterator[PostgresServer]:
    """A server of the newest version for this test alone, which keeps what was committed."""
    server = postgres_servers.start(request.param, fsync="on")
    yield server
    server.remove()


async def test_a_server_is_judged(open_vendor: Any, server: PostgresServer) -> None:
    """One that is in order is ok throughout; without fsync and connections advice is given."""
    async with open_vendor() as (_, shell):
        good = await shell.run("doctor", "--journal", server.url())
        assert (good.code, "BAD" in good.out) == (0, False)
        assert "has schema version 4" in good.out
        assert "notifications of the server arrive" in good.out
        assert "fsync is on" in good.out
        assert server.password not in good.out
        server.execute("ALTER SYSTEM SET fsync = 'off'")
        server.execute("ALTER SYSTEM SET max_connections = 7")
        await anyio.to_thread.run_sync(server.restart)
        bad = await shell.run("doctor", "--journal", server.url())
        assert bad.code == 1
        assert "set fsync = on" in bad.out
        assert "raise max_connections" in bad.out
        await anyio.to_thread.run_sync(server.stop)
        gone = await shell.run("doctor", "--journal", server.url())
        assert gone.code == 1
        assert "cannot be used" in gone.out
        assert server.password not in gone.out


async def test_a_file_has_a_version(open_vendor: Any, tmp_path: Path) -> None:
    """Of a file its version is said, and nothing about servers."""
    async with open_vendor() as (_, shell):
        ended = await shell.run("doctor", "--journal", str(tmp_path / "journal.db"))
        assert ended.code == 0
        assert "has schema version 4" in ended.out
        assert "server" not in ended.out


async def test_webhooks_that_stay_away_are_reported(open_vendor: Any, tmp_path: Path) -> None:
    """Three jobs without a webhook are reported, with advice; one that came is enough to be ok."""
    path, port = tmp_path / "journal.db", free_port()
    dead = WebhookReceiver("http://127.0.0.1:9/hooks")
    alive = WebhookReceiver(f"http://127.0.0.1:{port}/hooks")
    async with open_vendor(seconds=0.3, webhooks=("early", "normal")) as (vendor, shell):

        async def check_after(receiver: WebhookReceiver, *names: str) -> Any:
            async with connected(vendor, path, webhooks=receiver) as session:
                for name in names:
                    session.submit((f"{name}.mp3", SOUND + name.encode()))
            return await shell.run("doctor", "--journal", str(path))

        few = await check_after(dead, "a", "b")
        assert (few.code, "finished jobs" in few.out) == (0, False)
        silent = await check_after(dead, "c")
        assert silent.code == 1
        assert "BAD   no webhook arrived in time for the latest 3 finished jobs" in silent.out
        assert "with --webhook URL" in silent.out
        async with alive.serve("127.0.0.1", port):
            heard = await check_after(alive, "d")
        assert heard.code == 0
        assert "ok    webhooks arrived for 1 of the latest 4 finished jobs" in heard.out


@pytest.mark.parametrize(
    ("latest", "words"),
    [
        ("", None),
        ("--", None),
        ("--+", "webhooks arrived for 1 of the latest 3"),
        ("---", "no webhook arrived in time for the latest 3"),
        ("----+++", "no webhook arrived in time for the latest 4"),
    ],
)
def test_one_or_two_missing_webhooks_are_no_silence(latest: str, words: str | None) -> None:
    """Silence is three jobs in a row without a webhook, the newest ones; two jobs prove nothing."""
    check = check_webhooks([WebhookOfJob(0.0, mark == "+") for mark in latest])
    if words is None:
        assert check is None
    else:
        assert check is not None
        assert check.subject.startswith(words)
        assert bool(check.advice) == words.startswith("no webhook")
