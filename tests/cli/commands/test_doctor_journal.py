"""`doctor --journal`: what a server promises, and what to do where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from factories.postgres import PostgresServer, PostgresServers
from factories.postgres_fixtures import POSTGRES

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
