"""Journals that several processes can share."""

from __future__ import annotations

from factories.postgres_fixtures import POSTGRES, make_place_fixture

place = make_place_fixture(POSTGRES[-1:])
