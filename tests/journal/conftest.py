"""Journals on each kind of database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from factories.postgres import PostgresServers
from factories.postgres_fixtures import POSTGRES

from musicgpt_async.journal import Journal


@pytest.fixture(params=["sqlite", *POSTGRES])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_servers: PostgresServers
) -> Iterator[str]:
    """A new journal's file, or an empty database of each PostgreSQL."""
    if request.param == "sqlite":
        yield str(tmp_path / "journal.db")
        return
    with postgres_servers.shared(request.param).database() as url:
        yield url


@pytest.fixture
async def journal(place: str) -> AsyncIterator[Journal]:
    """Return an open journal with nothing in it."""
    async with Journal(place) as opened:
        yield opened
