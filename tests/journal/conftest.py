"""Journals on each kind of database."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from musicgpt_async.journal import Journal

POSTGRES = "MUSICGPT_TEST_POSTGRES"
TABLES = ("musicgpt_journal", "musicgpt_owners", "musicgpt_jobs", "musicgpt_places")


@pytest.fixture(autouse=True)
def _loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Guard the loop as everywhere, but for asyncpg: it looks for its key files when connecting."""
    if "postgresql" in request.node.name or "password" in request.node.name:
        yield
        return
    with blockbuster_ctx("musicgpt_async"):
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new journal may be made: a file, and a server where there is one."""
    if request.param == "sqlite":
        return str(tmp_path / "journal.db")
    url = os.environ.get(POSTGRES)
    if url is None:
        pytest.skip(f"{POSTGRES} names no server")
    connection = await pytest.importorskip("asyncpg").connect(url)
    await connection.execute(f"DROP TABLE IF EXISTS {', '.join(TABLES)}")
    await connection.close()
    return url


@pytest.fixture
async def journal(place: str) -> AsyncIterator[Journal]:
    """Return an open journal with nothing in it."""
    async with Journal(place) as opened:
        yield opened
