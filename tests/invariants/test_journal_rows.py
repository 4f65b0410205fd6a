"""Rows of the journal: an unreadable one costs its job alone, a finished one needs no owner."""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from musicgpt_async import (
    DownloadError,
    JobState,
    Journal,
    JournalError,
    MusicGPTError,
    MusicGPTSession,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

STEMS = ["bass", "drums"]
SPOILT = {
    "a state of no release": "state = 'fermenting'",
    "links that are no JSON": "links = '{\"bass'",
    "links of another shape": "links = '{\"bass\": 7}'",
    "stems that are no JSON": "stems = 'bass, drums'",
    "files of another shape": 'files = \'[{"stem": "bass"}]\'',
    "a time that is text": "accepted_at = 'yesterday'",
}


async def unfinished(path: Path, vendor: Emulator, connect: Any, *tracks: Path) -> list[str]:
    """Have a session that is left in the middle leave jobs in a journal; return their ids."""
    session = await connect(vendor, journal=path).start()
    jobs = [session.submit(track, stems=STEMS) for track in tracks]
    for job in jobs:
        await job.accepted()
    await session.aclose(drain=False)
    return [job.id for job in jobs]


def spoil(path: Path, job_id: str, change: str) -> None:
    """Change a row as no release of the library would write it."""
    with closing(sqlite3.connect(path)) as database, database:
        statement = f"UPDATE musicgpt_jobs SET {change} WHERE id = ?"  # noqa: S608 - the test's own
        assert database.execute(statement, [job_id]).rowcount == 1


@pytest.fixture(params=SPOILT.values(), ids=SPOILT.keys())
async def spoilt(
    request: pytest.FixtureRequest, connect: Any, make_track: Any, tmp_path: Path
) -> Any:
    """A journal of three unfinished jobs of which the second cannot be read."""
    path = tmp_path / "journal.db"
    tracks = [make_track(f"{number}.mp3") for number in range(3)]
    async with Emulator(seconds=1.0, separate=False, stem_bytes=4096) as vendor:
        ids = await unfinished(path, vendor, connect, *tracks)
        spoil(path, ids[1], request.param)
        yield vendor, path, tracks, ids


async def test_an_unreadable_row_keeps_no_other_job_from_being_resumed(
    spoilt: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """resume() resumes the other jobs, and says which one it could not read."""
    vendor, path, _, ids = spoilt
    with caplog.at_level(logging.WARNING, logger="musicgpt_async"):
        async with connect(vendor, journal=path) as session:
            jobs = {job.id: job for job in await session.resume()}
            for number in (0, 2):  # on a busy machine one may have ended before it was left
                assert ids[number] not in jobs or await jobs[ids[number]]
            told = [caplog.text]
            if ids[1] in jobs:
                with pytest.raises(JournalError) as caught:
                    await jobs[ids[1]]
                told.append(str(caught.value))
    assert any(ids[1] in each for each in told)
    assert len(vendor.submissions) == 3


async def test_an_unreadable_row_stops_no_batch(
    spoilt: Any, connect: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the same batch two tracks are complete, the third is an error that names its job."""
    vendor, path, tracks, ids = spoilt
    async with connect(vendor, journal=path) as session:
        many = session.extract_many(tracks, tmp_path / "stems", stems=STEMS)
        outcomes = {each.source: each async for each in many}
    assert [outcomes[track].error for track in (tracks[0], tracks[2])] == [None, None]
    error = outcomes[tracks[1]].error
    assert isinstance(error, JournalError)
    assert ids[1] in str(error)
    assert len(vendor.submissions) == 3


@pytest.mark.parametrize(
    "spoilt",
    [
        pytest.param(
            change,
            id=name,
        )
        for name, change in SPOILT.items()
    ],
    indirect=True,
)
async def test_an_unreadable_row_is_passed_over_by_readers(spoilt: Any) -> None:
    """Reading the journal returns the two other jobs, by every method."""
    _, path, _, ids = spoilt
    found = []
    async with Journal(path) as journal:
        try:
            async for record in journal.records():
                found.append(record.id)  # noqa: PERF401 - what came before an error is wanted too
        except JournalError:
            pass
    assert {ids[0], ids[2]} <= set(found)


async def failed_download(
    connect: Any, vendor: Emulator, path: Path, song: Path, out: Path
) -> MusicGPTSession:
    """Return an open session whose job is completed and whose download has failed."""
    vendor.script(Fault("file", "status", status=403, times=None))
    session: MusicGPTSession = await connect(vendor, journal=path).start()
    with pytest.raises(DownloadError):
        await session.extract(song, out, stems=STEMS)
    vendor.faults.clear()
    return session


async def test_a_finished_job_is_downloaded_though_its_owner_lives(
    connect: Any, make_track: Any, tmp_path: Path
) -> None:
    """The process that could not download it lives on: another one downloads it, unpaid."""
    song, path, out = make_track(), tmp_path / "journal.db", tmp_path / "stems"
    async with Emulator(seconds=0.05, separate=False, stem_bytes=4096) as vendor:
        await failed_download(connect, vendor, path, song, out)
        async with connect(vendor, journal=path) as second:
            files = await second.extract(song, out, stems=STEMS)
        assert sorted(files) == STEMS
        assert all(file.exists() for file in files.values())
        assert len(vendor.submissions) == 1


async def test_the_owner_may_download_again_what_another_process_downloads(
    connect: Any, make_track: Any, tmp_path: Path
) -> None:
    """Both downloads of one finished job succeed, and both sessions continue."""
    song, path, out = make_track(), tmp_path / "journal.db", tmp_path / "stems"
    async with Emulator(seconds=0.05, separate=False, stem_bytes=4096) as vendor:
        first = await failed_download(connect, vendor, path, song, out)
        async with connect(vendor, journal=path) as second:
            assert sorted(await second.submit(song, stems=STEMS).download(tmp_path / "b")) == STEMS
        assert sorted(await first.submit(song, stems=STEMS).download(out)) == STEMS
        assert len(vendor.submissions) == 1


ODD_ANSWERS: dict[str, dict[str, Any]] = {
    "a lone surrogate": {"conversion_id": "\ud800"},
    "a NUL": {"conversion_id": "a\0b"},
    "a MiB": {"conversion_id": "c" * (1 << 19)},
    "an eta beyond all time": {"eta": 1e308},
    "an eta of 400 digits": {"eta": int("9" * 400)},
    "a negative estimate": {"credit_estimate": -5},
    "an estimate beyond all money": {"credit_estimate": 1e308},
}


def answering(task_id: str, **beside: Any) -> Fault:
    """Return a fault by which the next submit is done and answered with these words."""
    body = {"success": True, "task_id": task_id, "eta": 1, **beside}
    return Fault("submit", "wrong_json", body=json.dumps(body).encode())


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS.keys())
async def test_an_odd_answer_to_a_submit_is_an_acceptance(
    odd: dict[str, Any], connect: Any, make_track: Any, tmp_path: Path, read_records: Any
) -> None:
    """Nonsense beside the task_id in the response does not fail the job."""
    song, path = make_track(), tmp_path / "journal.db"
    async with Emulator(seconds=0.1, separate=False) as vendor:
        async with connect(vendor, journal=path, max_credits=1000) as session:
            plain = await session.submit(make_track("other.mp3"), stems=STEMS).accepted()
            vendor.script(answering(plain.task_id, **odd))
            job = session.submit(song, stems=STEMS)
            assert (await job.accepted()).task_id == plain.task_id
            assert (await job).task_id == plain.task_id
        saved = {record.source: record for record in await read_records(path)}
        assert saved[str(song)].state is JobState.COMPLETED


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS.keys())
async def test_an_odd_answer_to_a_submit_is_on_disk(
    odd: dict[str, Any], connect: Any, make_track: Any, tmp_path: Path, read_records: Any
) -> None:
    """Whatever the vendor says beside it, the task_id is saved while the job runs."""
    path = tmp_path / "journal.db"
    async with Emulator(seconds=60, separate=False) as vendor:
        vendor.script(answering("a-task-of-its-own", **odd))
        session = await connect(vendor, journal=path).start()
        await session.submit(make_track(), stems=STEMS).accepted()
        [record] = await read_records(path, once=lambda record: record.task_id)
        assert record.task_id == "a-task-of-its-own"


@pytest.mark.parametrize(
    "task_id", ["\ud800", "a\0b", "t" * (1 << 19)], ids=["surrogate", "NUL", "MiB"]
)
async def test_an_odd_task_id_in_an_answer_stops_no_journal(
    task_id: str, connect: Any, make_track: Any, paid: Any, tmp_path: Path, read_records: Any
) -> None:
    """A task_id that no text column takes ends that job alone, which is not sent again."""
    song, other, path = make_track(), make_track("other.mp3"), tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False) as vendor:
        vendor.script(answering(task_id))
        async with connect(vendor, journal=path, deadline=1.0) as session:
            with suppress(MusicGPTError):
                await session.submit(song, stems=STEMS)
            assert await session.submit(other, stems=STEMS)
        async with connect(vendor, journal=path, deadline=1.0) as session:
            with suppress(MusicGPTError):
                await session.submit(song, stems=STEMS)
        assert paid(vendor) == {"song.mp3": 1, "other.mp3": 1}
        saved = {record.source: record for record in await read_records(path)}
        assert saved[str(other)].state is JobState.COMPLETED
        assert saved[str(song)].sent_at is not None


async def test_an_odd_conversion_id_at_the_end_keeps_no_job_unfinished(
    connect: Any, make_track: Any, tmp_path: Path, read_records: Any
) -> None:
    """If a poll returns a conversion_id that cannot be stored, the completed job is saved."""
    path = tmp_path / "journal.db"
    links = json.dumps({"bass": "https://example.com/bass.mp3"})
    told = {"status": "COMPLETED", "conversion_id": "\ud800", "audio_url": links}
    body = json.dumps({"success": True, "conversion": told}).encode()
    async with Emulator(seconds=60, eta=1, separate=False) as vendor:
        vendor.script(Fault("byId", "wrong_json", body=body))
        async with connect(vendor, journal=path) as session:
            assert (await session.submit(make_track(), stems=STEMS)).stems
        [record] = await read_records(path)
        assert record.state is JobState.COMPLETED
