"""Journals on each kind of database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from factories.postgres_fixtures import POSTGRES, make_place_fixture

from musicgpt_async.journal import Journal

place = make_place_fixture(POSTGRES)


@pytest.fixture
async def journal(place: str) -> AsyncIterator[Journal]:
    """Return an open journal with nothing in it."""
    async with Journal(place) as opened:
        yield opened
