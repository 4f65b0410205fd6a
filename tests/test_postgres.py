"""The PostgreSQL servers that other tests use."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from factories.postgres import PostgresError, PostgresServer, PostgresServers

TESTS = Path(__file__).parent
# Seconds; no test comes near it.
HANG = 60

WAITING = """
import json
import time
from pathlib import Path

from factories.postgres import find_installations

def test_waiting(postgres_servers):
    servers = [postgres_servers.shared(each) for each in find_installations()]
    note = [[str(each.data), each.port] for each in servers]
    Path("note.part").write_text(json.dumps(note))
    Path("note.part").rename("note")
    time.sleep(600)
"""


def test_a_crash_keeps_what_was_committed(postgres_server: PostgresServer) -> None:
    """A server that crashed starts again on its port, with its rows."""
    postgres_server.execute("CREATE TABLE tracks (name text)")
    postgres_server.execute("INSERT INTO tracks VALUES ('a'), ('b')")
    postgres_server.stop("immediate")
    with pytest.raises(PostgresError, match="refused"):
        postgres_server.execute("SELECT 1")
    postgres_server.start()
    assert postgres_server.execute("SELECT name FROM tracks ORDER BY name") == ["a", "b"]


def test_a_standby_takes_over(
    postgres_server: PostgresServer, postgres_servers: PostgresServers
) -> None:
    """What a primary with a synchronous standby committed is there after a failover."""
    standby = postgres_servers.start_standby(postgres_server)
    postgres_server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    postgres_server.execute("SELECT pg_reload_conf()")
    postgres_server.execute("CREATE TABLE tracks AS SELECT 'a' AS name")
    postgres_server.stop("immediate")
    with pytest.raises(PostgresError, match="read-only"):
        standby.execute("INSERT INTO tracks VALUES ('b')")
    standby.promote()
    standby.execute("INSERT INTO tracks VALUES ('b')")
    assert standby.execute("SELECT name FROM tracks ORDER BY name") == ["a", "b"]
    standby.remove()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_no_server_outlives_a_run_that_is_killed(tmp_path: Path, workers: str) -> None:
    """SIGKILL to pytest, with or without pytest-xdist, ends its servers and deletes their data."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["factories.postgres_fixtures"]')
    (tmp_path / "test_waiting.py").write_text(WAITING)
    note = tmp_path / "note"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", workers]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as run:
        wait_until(lambda: run.poll() is not None or note.exists())
        run.kill()
    servers = json.loads(note.read_text())
    wait_until(lambda: not any(is_open(port) for _, port in servers))
    wait_until(lambda: not any(Path(data).parent.exists() for data, _ in servers))


def is_open(port: int) -> bool:
    """Return whether a server listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
