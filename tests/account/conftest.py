"""Journals that several processes can share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from factories.postgres import PostgresServers
from factories.postgres_fixtures import POSTGRES


@pytest.fixture(autouse=True)
def _loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Guard the loop as everywhere, but for asyncpg: it looks for its key files when connecting."""
    if "postgresql" in request.node.name:
        yield
        return
    with blockbuster_ctx("musicgpt_async"):
        yield


@pytest.fixture(params=["sqlite", *POSTGRES[-1:]])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_servers: PostgresServers
) -> Iterator[str]:
    """A new journal's file, or an empty database of the newest PostgreSQL."""
    if request.param == "sqlite":
        yield str(tmp_path / "journal.db")
        return
    with postgres_servers.shared(request.param).database() as url:
        yield url
