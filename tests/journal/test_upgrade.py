"""A journal that an older version of the library wrote is opened, upgraded and used."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import anyio
import asyncpg
import pytest

from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord, JobState, StemLinks

pytestmark = pytest.mark.anyio

APPLICATION_ID = 0x6D475054
# The tables of schema version 2, as SQLAlchemy made them, with types that both databases know.
VERSION_2 = """
CREATE TABLE musicgpt_journal (version INTEGER NOT NULL);
INSERT INTO musicgpt_journal VALUES (2);
CREATE TABLE musicgpt_owners (id TEXT NOT NULL PRIMARY KEY, lease_until DOUBLE PRECISION NOT NULL);
CREATE TABLE musicgpt_places (
    place TEXT NOT NULL, number INTEGER NOT NULL, task_id TEXT NOT NULL, PRIMARY KEY (place, number)
);
CREATE TABLE musicgpt_jobs (
    seq INTEGER NOT NULL, id TEXT NOT NULL, fingerprint TEXT NOT NULL, source JSON NOT NULL,
    label JSON, stems JSON NOT NULL, preprocessing JSON NOT NULL, token TEXT, state TEXT NOT NULL,
    size BIGINT, sha256 TEXT, task_id TEXT, conversion_id TEXT, hinted_task TEXT,
    eta DOUBLE PRECISION, credit_estimate DOUBLE PRECISION, sent_at DOUBLE PRECISION,
    accepted_at DOUBLE PRECISION, links JSON NOT NULL, cost DOUBLE PRECISION,
    duration DOUBLE PRECISION, directory JSON, format TEXT, wanted JSON NOT NULL, layout JSON,
    files JSON NOT NULL, error JSON, created_at DOUBLE PRECISION NOT NULL,
    unfinished BOOLEAN NOT NULL, owner TEXT, PRIMARY KEY (seq), UNIQUE (id)
);
CREATE INDEX ix_musicgpt_jobs_fingerprint ON musicgpt_jobs (fingerprint);
CREATE INDEX ix_musicgpt_jobs_task_id ON musicgpt_jobs (task_id);
CREATE INDEX ix_musicgpt_jobs_owner ON musicgpt_jobs (owner);
CREATE INDEX ix_musicgpt_jobs_unfinished ON musicgpt_jobs (unfinished, seq);
"""
# State in version 2 → state today. A job of each is in the journal.
STATES = {
    "queued": JobState.QUEUED,
    "uploading": JobState.UPLOADING,
    "delivered": JobState.UNACKNOWLEDGED,
    "waiting": JobState.PROCESSING,
    "completed": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "unknown": JobState.UNKNOWN,
    "expired": JobState.TIMED_OUT,
    "released": JobState.DETACHED,
}
ROW = """
INSERT INTO musicgpt_jobs (id, fingerprint, source, stems, preprocessing, state, hinted_task, links,
    wanted, files, created_at, unfinished)
VALUES ('{state}', 'track {state}', '"/music/a.flac"', '["drums"]', '[]', '{state}', 'task {state}',
    '{{"drums": {{"mp3": null, "wav": "https://files.example/drums.wav"}}}}', '["drums"]', '[]',
    5.0, TRUE);
"""


@pytest.fixture
async def old_journal(place: str) -> str:
    """Where a journal of schema version 2 is, which has a job in each state."""
    rows = "".join(ROW.format(state=state) for state in STATES)
    if "://" not in place:
        with closing(sqlite3.connect(place)) as database:
            database.executescript(f"PRAGMA application_id = {APPLICATION_ID}; {VERSION_2} {rows}")
        return place
    connection = await asyncpg.connect(place)
    await connection.execute(VERSION_2.replace("seq INTEGER", "seq SERIAL") + rows)
    await connection.close()
    return place


def upgraded() -> list[JobRecord]:
    """Return the jobs as the library reads them today."""
    return [
        JobRecord(
            id=old,
            fingerprint=f"track {old}",
            source="/music/a.flac",
            stems=("drums",),
            state=state,
            candidate_task_id=f"task {old}",
            links={"drums": StemLinks(wav="https://files.example/drums.wav")},
            requested_stems=("drums",),
            created_at=5.0,
        )
        for old, state in STATES.items()
    ]


async def test_a_journal_of_schema_version_2_is_upgraded(old_journal: str) -> None:
    """Every state and column has its new name, the jobs can be claimed, and new ones be added."""
    async with Journal(old_journal) as journal:
        assert [record async for record in journal.records()] == upgraded()
        assert [record.id for record in await journal._claim()] == list(STATES)
        new = JobRecord(id="new", fingerprint="track new", source="/music/b.flac")
        assert await journal._add_or_get(new) == (new, True)


async def test_an_upgraded_journal_is_left_as_it_is(old_journal: str) -> None:
    """The second opening, and one at the same time as the first, change nothing."""
    journals = [Journal(old_journal) for _ in range(4)]
    async with anyio.create_task_group() as openings:
        for journal in journals:
            openings.start_soon(journal.open)
    for journal in journals:
        assert [record async for record in journal.records()] == upgraded()
        await journal.aclose()
    async with Journal(old_journal) as journal:
        assert [record async for record in journal.records()] == upgraded()
