"""A journal that an older version of the library wrote is opened, upgraded and used."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import asyncpg
import pytest

from musicgpt_async.errors import JournalError
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord, JobState, StemLinks

pytestmark = pytest.mark.anyio

APPLICATION_ID = 0x6D475054
# The tables of older schema versions, as SQLAlchemy made them, with types that both databases know.
TABLES = """
CREATE TABLE musicgpt_journal (version INTEGER NOT NULL);
INSERT INTO musicgpt_journal VALUES ({version});
CREATE TABLE musicgpt_owners (id TEXT NOT NULL PRIMARY KEY, lease_until DOUBLE PRECISION NOT NULL);
CREATE TABLE musicgpt_places (
    place TEXT NOT NULL, number INTEGER NOT NULL, task_id TEXT NOT NULL, PRIMARY KEY (place, number)
);
CREATE TABLE musicgpt_jobs (
    seq {seq} NOT NULL, id TEXT NOT NULL, fingerprint TEXT NOT NULL, source JSON NOT NULL,
    label JSON, stems JSON NOT NULL, preprocessing JSON NOT NULL, token TEXT, state TEXT NOT NULL,
    size BIGINT, sha256 TEXT, task_id TEXT, conversion_id TEXT, {candidate} TEXT,
    eta DOUBLE PRECISION, credit_estimate DOUBLE PRECISION, sent_at DOUBLE PRECISION,
    accepted_at DOUBLE PRECISION, links JSON NOT NULL, cost DOUBLE PRECISION,
    duration DOUBLE PRECISION, directory JSON, format TEXT, {stems} JSON NOT NULL, layout JSON,
    files JSON NOT NULL, error JSON, created_at DOUBLE PRECISION NOT NULL,
    unfinished BOOLEAN NOT NULL, owner TEXT, {added} PRIMARY KEY (seq), UNIQUE (id)
);
CREATE INDEX ix_musicgpt_jobs_fingerprint ON musicgpt_jobs (fingerprint);
CREATE INDEX ix_musicgpt_jobs_task_id ON musicgpt_jobs (task_id);
CREATE INDEX ix_musicgpt_jobs_owner ON musicgpt_jobs (owner);
CREATE INDEX ix_musicgpt_jobs_unfinished ON musicgpt_jobs (unfinished, seq);
"""
# What differs between the versions.
VERSIONS = {
    2: {"candidate": "hinted_task", "stems": "wanted", "added": ""},
    3: {
        "candidate": "candidate_task_id",
        "stems": "requested_stems",
        "added": "title JSON, eco_mode BOOLEAN,",
    },
}
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
INSERT INTO musicgpt_jobs (id, fingerprint, source, stems, preprocessing, state, {candidate}, links,
    {stems}, files, created_at, unfinished)
VALUES ('{id}', 'track {id}', '"/music/a.flac"', '["drums"]', '[]', '{state}', 'task {id}',
    '{{"drums": {{"mp3": null, "wav": "https://files.example/drums.wav"}}}}', '["drums"]', '[]',
    5.0, TRUE);
"""


async def execute(place: str, script: str) -> None:
    """Run statements on a journal's database, which may be empty."""
    if "://" not in place:
        with closing(sqlite3.connect(place)) as database:
            database.executescript(script)
        return
    connection = await asyncpg.connect(place)
    await connection.execute(script)
    await connection.close()


@pytest.fixture(params=VERSIONS)
async def old_journal(place: str, request: pytest.FixtureRequest) -> str:
    """Where a journal of an older schema version is, which has a job in each state."""
    words = VERSIONS[request.param]
    is_server = "://" in place
    script = TABLES.format(version=request.param, seq="SERIAL" if is_server else "INTEGER", **words)
    for old, new in STATES.items():
        script += ROW.format(id=old, state=old if request.param == 2 else new, **words)
    await execute(
        place, script if is_server else f"PRAGMA application_id = {APPLICATION_ID}; {script}"
    )
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


async def test_an_older_journal_is_upgraded(old_journal: str) -> None:
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
            openings.start_soon(journal._open)
    for journal in journals:
        assert [record async for record in journal.records()] == upgraded()
        await journal._close()
    async with Journal(old_journal) as journal:
        assert [record async for record in journal.records()] == upgraded()


async def test_an_older_journal_in_use_is_not_upgraded(old_journal: str) -> None:
    """While a process of an older release holds a lease nothing changes; then it is upgraded."""
    owner = "INSERT INTO musicgpt_owners VALUES ('another:machine:1:2:3', {})"
    await execute(old_journal, owner.format("99999999999.0"))
    for _ in range(2):
        with pytest.raises(JournalError, match=r"older release \(another:machine:1:2:3\)"):
            await Journal(old_journal)._open()
    await execute(old_journal, "UPDATE musicgpt_owners SET lease_until = 5.0")
    async with Journal(old_journal) as journal:
        assert [record async for record in journal.records()] == upgraded()


async def test_each_journal_has_a_secret(old_journal: str, tmp_path: Path) -> None:
    """It is made with the journal, or when it is upgraded, and stays the same from then on."""
    secrets = []
    for place in (old_journal, old_journal, tmp_path / "new.db", tmp_path / "new.db"):
        async with Journal(place) as journal:
            secrets += await journal._read(journal._sql.secret, {}, lambda row: row.secret)
    assert all(len(secret) == 64 for secret in secrets)
    assert secrets[0] == secrets[1] != secrets[2] == secrets[3]
