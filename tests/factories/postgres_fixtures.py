"""Fixtures and hooks that give tests PostgreSQL's servers: a plugin of pytest."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from factories.postgres import (
    PostgresServer,
    PostgresServers,
    find_installations,
    make_run_directory,
)
from factories.tcp_proxy import Proxy, proxied

DIRECTORY = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Create the run's directory, whose path is passed to workers of pytest-xdist."""
    if hasattr(config, "workerinput"):
        config.stash[DIRECTORY] = Path(config.workerinput["postgres"])
        return
    config.stash[DIRECTORY] = directory = make_run_directory()
    lock = (directory / "run.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def end() -> None:
        lock.close()
        if not (directory / "reaper.started").exists():
            shutil.rmtree(directory)

    config.add_cleanup(end)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the directory of the run's servers to a worker of pytest-xdist."""
    node.workerinput["postgres"] = str(node.config.stash[DIRECTORY])


# The parameters of a fixture that is to have each version.
POSTGRES = [pytest.param(each, id=str(each)) for each in find_installations()] or [
    pytest.param(
        None,
        id="postgresql",
        marks=pytest.mark.skip("PostgreSQL is missing; Debian: apt install postgresql"),
    )
]


@pytest.fixture(scope="session")
def postgres_servers(pytestconfig: pytest.Config) -> PostgresServers:
    """Start servers: one of each version for the complete run, and others for one test."""
    return PostgresServers(pytestconfig.stash[DIRECTORY])


@pytest.fixture(params=POSTGRES)
def postgres_url(
    request: pytest.FixtureRequest, postgres_servers: PostgresServers
) -> Iterator[str]:
    """An empty database on a server of each version."""
    with postgres_servers.shared(request.param).database() as url:
        yield url


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    """A proxy before an empty database of each version."""
    async with proxied(postgres_url) as proxy:
        yield proxy


def make_place_fixture(servers: Sequence[Any]) -> Any:
    """Make a fixture of a new journal's place.

    Args:
        servers: Those of ``POSTGRES`` on which it is an empty database, besides a file.
    """

    @pytest.fixture(params=["sqlite", *servers])
    def place(
        request: pytest.FixtureRequest, tmp_path: Path, postgres_servers: PostgresServers
    ) -> Iterator[str]:
        """A new journal's file, or an empty database of PostgreSQL."""
        if request.param == "sqlite":
            yield str(tmp_path / "journal.db")
            return
        with postgres_servers.shared(request.param).database() as url:
            yield url

    return place


@pytest.fixture(params=POSTGRES)
def postgres_server(
    request: pytest.FixtureRequest, postgres_servers: PostgresServers
) -> Iterator[PostgresServer]:
    """A server of each version for this test alone, to be stopped or crashed."""
    server = postgres_servers.start(request.param)
    yield server
    server.remove()
