"""The journal: what is entered comes back, and each job has one owner."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import traceback
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from factories.journals import job, let_pass, select
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musicgpt_async._io.file_engine import FileEngine
from musicgpt_async.errors import InvalidOptionError, JournalError
from musicgpt_async.journal import MAX_FINISHED, Journal
from musicgpt_async.models import JobRecord, JobState, StemFile, StemLinks

pytestmark = pytest.mark.anyio


# Free text may be anything that Python holds, names of files that are no Unicode included.
odd = st.text('\udc80\0\\"é', max_size=9)
free = odd | st.text(st.characters(exclude_categories=[]), max_size=20)
name = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
seconds = st.floats(allow_nan=False)
links = st.builds(StemLinks, mp3=st.none() | name, wav=st.none() | name)
files = st.builds(
    StemFile, stem=free, format=name, path=free, size=st.integers(0, 2**62), sha256=name
)
records = st.builds(
    JobRecord,
    id=st.builds(lambda: uuid.uuid4().hex),
    fingerprint=st.builds(lambda: uuid.uuid4().hex),
    source=free,
    label=st.none() | free,
    stems=st.lists(free).map(tuple),
    preprocessing=st.lists(free).map(tuple),
    token=st.none() | name,
    state=st.sampled_from(JobState),
    size=st.none() | st.integers(0, 2**62),
    sha256=st.none() | name,
    task_id=st.none() | name,
    conversion_id=st.none() | name,
    candidate_task_id=st.none() | name,
    eta=st.none() | seconds,
    credit_estimate=st.none() | seconds,
    sent_at=st.none() | seconds,
    accepted_at=st.none() | seconds,
    links=st.dictionaries(free, links, max_size=3),
    cost=st.none() | seconds,
    duration=st.none() | seconds,
    directory=st.none() | free,
    format=st.none() | st.sampled_from(["wav", "mp3", "both"]),
    layout=st.none() | free,
    files=st.lists(files, max_size=3).map(tuple),
    error=st.none() | free,
    created_at=seconds,
)


@given(first=records, second=records)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_every_field_comes_back(
    journal: Journal, first: JobRecord, second: JobRecord
) -> None:
    """Whatever a record holds is the same after being entered, and after being saved."""
    await journal._add_or_get(first)
    entered = await journal._find(first.id)
    saved_as = attrs.evolve(second, id=first.id)
    await journal._save(saved_as)
    saved = await journal._find(first.id)
    assert (entered, saved) == (first, saved_as)
    assert saved is not None
    assert list(saved.links) == list(second.links)


@pytest.mark.parametrize(
    ("there", "new"),
    [
        (job(state=JobState.QUEUED), False),
        (job(state=JobState.UPLOADING), False),
        (job(state=JobState.UNACKNOWLEDGED, sent_at=1.0), False),
        (job(state=JobState.PROCESSING, task_id="t"), False),
        (job(state=JobState.COMPLETED, task_id="t"), False),
        (job(state=JobState.UNKNOWN, sent_at=1.0), False),
        (job(state=JobState.TIMED_OUT, task_id="t"), False),
        (job(state=JobState.DETACHED, task_id="t"), False),
        (job(state=JobState.DETACHED, sent_at=1.0), False),
        (job(state=JobState.DETACHED), True),
        (job(state=JobState.FAILED, task_id="t"), True),
        (job(state=JobState.FAILED), True),
    ],
    ids=lambda value: value.state if isinstance(value, JobRecord) else "",
)
async def test_the_same_track_is_entered_once(
    journal: Journal, there: JobRecord, new: bool
) -> None:
    """Only a job that failed, or was detached before delivery, may be submitted again."""
    await journal._add_or_get(there)
    again = attrs.evolve(there, id="again")
    assert await journal._add_or_get(again) == ((again, True) if new else (there, False))


async def test_force_enters_the_same_track_again(journal: Journal) -> None:
    """``force`` makes a second record, and the newest is the one found from then on."""
    await journal._add_or_get(job())
    forced = attrs.evolve(job(), id="forced")
    assert await journal._add_or_get(forced, force=True) == (forced, True)
    assert await journal._add_or_get(attrs.evolve(job(), id="third")) == (forced, False)


async def test_a_failed_second_try_leaves_the_first_in_the_way(journal: Journal) -> None:
    """A forced job that failed does not hide the one that is done."""
    await journal._add_or_get(job(state=JobState.COMPLETED))
    await journal._add_or_get(attrs.evolve(job(), id="forced"), force=True)
    await journal._save(attrs.evolve(job(), id="forced", state=JobState.FAILED))
    found, new = await journal._add_or_get(attrs.evolve(job(), id="third"))
    assert (found.id, new) == ("a", False)


async def test_a_record_found_is_owned_only_where_its_lease_was_free(place: str) -> None:
    """Adding a known track takes its lease if it is free, and leaves it to a live owner."""
    async with Journal(place) as first, Journal(place) as second:
        await first._add_or_get(job())
        assert await second._add_or_get(job()) == (job(), False)
        assert (first._owns("a"), second._owns("a")) == (True, False)
        await first._release("a")
        assert await second._add_or_get(job()) == (job(), False)
        assert (first._owns("a"), second._owns("a")) == (False, True)
        await second._save(job(state=JobState.UPLOADING))


async def test_only_the_owner_saves(place: str) -> None:
    """A process whose job was taken over cannot write; what the new owner wrote is kept."""
    async with (
        Journal(place, lease=10) as first,
        Journal(place, lease=10) as second,
    ):
        await first._add_or_get(job())
        await let_pass(second, 11)
        assert await second._claim() == [job()]
        await second._save(job(state=JobState.UPLOADING))
        with pytest.raises(JournalError, match="taken it over"):
            await first._save(job(state=JobState.UNACKNOWLEDGED))
        assert not first._owns("a")
        assert await first._find("a") == job(state=JobState.UPLOADING)


async def test_an_overdue_owner_may_go_on_while_nobody_took_over(place: str) -> None:
    """A lease that ran out does no harm by itself, and saving renews it."""
    async with (
        Journal(place, lease=10) as first,
        Journal(place, lease=10) as second,
    ):
        await first._add_or_get(job())
        await let_pass(second, 11)
        await first._save(job(state=JobState.UPLOADING))
        assert await second._claim() == []


async def test_a_renewed_lease_holds(place: str) -> None:
    """Renewing in time keeps every job of the journal from being taken over."""
    async with (
        Journal(place, lease=10) as first,
        Journal(place, lease=10) as second,
    ):
        await first._add_or_get(job("a"))
        await first._add_or_get(job("b"))
        for _ in range(3):
            await let_pass(second, 9)
            await first._renew()
            assert await second._claim() == []


@pytest.mark.parametrize(
    ("record", "unfinished"),
    [
        (job(state=JobState.QUEUED), True),
        (job(state=JobState.UPLOADING), True),
        (job(state=JobState.UNACKNOWLEDGED), True),
        (job(state=JobState.PROCESSING), True),
        (job(state=JobState.UNKNOWN), True),
        (job(state=JobState.TIMED_OUT), True),
        (job(state=JobState.FAILED, task_id="t"), False),
        (job(state=JobState.DETACHED), False),
        (job(state=JobState.DETACHED, task_id="t"), True),
        (job(state=JobState.DETACHED, sent_at=1.0), True),
        (job(state=JobState.COMPLETED), False),
        (job(state=JobState.COMPLETED, directory="/stems"), True),
    ],
    ids=lambda value: value.state if isinstance(value, JobRecord) else "",
)
async def test_what_still_needs_work_is_claimed(
    journal: Journal, record: JobRecord, unfinished: bool
) -> None:
    """A job is claimed until it failed, was detached before delivery, or is on disk."""
    await journal._add_or_get(record)
    await journal._release("a")
    assert await journal._claim() == ([record] if unfinished else [])


LINKS = {"vocals": StemLinks(mp3="v.mp3", wav="v.wav"), "drums": StemLinks(wav="d.wav")}


@pytest.mark.parametrize(
    ("format_", "there", "unfinished"),
    [
        ("wav", ["vocals.wav"], True),
        ("wav", ["vocals.wav", "drums.wav"], False),
        (None, ["vocals.wav", "drums.wav"], False),
        ("mp3", ["vocals.wav", "drums.wav"], True),
        ("mp3", ["vocals.mp3"], True),
        ("best", ["vocals.wav", "drums.wav"], False),
        ("best", ["vocals.mp3", "drums.wav"], True),
        ("both", ["vocals.wav", "drums.wav"], True),
        ("both", ["vocals.wav", "drums.wav", "vocals.mp3"], False),
    ],
)
async def test_a_download_that_misses_files_is_unfinished(
    journal: Journal, format_: Any, there: list[str], unfinished: bool
) -> None:
    """A completed job with a directory is claimed until all files asked for are recorded."""
    found = tuple(
        StemFile(stem=file[:-4], format=file[-3:], path=file, size=1, sha256="0") for file in there
    )
    await journal._add_or_get(
        job(state=JobState.COMPLETED, directory="/s", format=format_, links=LINKS, files=found)
    )
    await journal._release("a")
    assert bool(await journal._claim()) is unfinished


async def test_a_lost_job_takes_the_task_that_was_found(place: str) -> None:
    """The task is saved, and the caller of bind has the job's claim."""
    lost = job(state=JobState.UNKNOWN, sent_at=5.0, error="no answer")
    async with Journal(place) as first, Journal(place) as second:
        await first._add_or_get(lost)
        await first._release("a")
        bound = await second._bind("a", "task")
        assert bound == attrs.evolve(
            lost, state=JobState.PROCESSING, task_id="task", accepted_at=5.0, error=None
        )
        assert await first._find("a") == bound
        assert second._owns("a")
        assert await first._claim() == []
        await second._save(attrs.evolve(bound, cost=1.0))


@pytest.mark.parametrize(
    ("which", "task_id", "why"),
    [
        ("nobody", "new", "has no job 'nobody'"),
        ("task", "new", "has no job 'task'"),
        ("done", "new", "has the task task already"),
        ("queued", "new", "it is queued"),
        ("failed", "new", "it is failed"),
        ("lost", "task", "job done's"),
        ("held", "new", "another process is working on it"),
    ],
)
async def test_a_task_that_does_not_fit_changes_nothing(
    place: str, which: str, task_id: str, why: str
) -> None:
    """No job takes a task that it cannot have, and the message says why."""
    async with Journal(place) as other, Journal(place) as journal:
        for each in (
            job("lost", state=JobState.UNKNOWN, sent_at=5.0),
            job("done", state=JobState.COMPLETED, sent_at=5.0, task_id="task"),
            job("queued"),
            job("failed", state=JobState.FAILED, sent_at=5.0),
        ):
            await other._add_or_get(each)
            await other._release(each.id)
        await other._add_or_get(job("held", state=JobState.UNACKNOWLEDGED, sent_at=5.0))
        before = [each async for each in journal.records()], await journal._owners()
        with pytest.raises(InvalidOptionError, match=f"(?s){why}.*Nothing was changed"):
            await journal._bind(which, task_id)
        assert ([each async for each in journal.records()], await journal._owners()) == before
        assert not journal._owns(which)


async def test_what_is_owned_is_bounded_by_what_is_unfinished(journal: Journal) -> None:
    """Of finished jobs the newest are remembered as one's own, so that memory stays bounded."""
    done = JobState.COMPLETED
    for name in ("unfinished", "oldest", "newest"):
        await journal._add_or_get(job(name))
    await journal._save(job("oldest", state=done))
    for number in range(MAX_FINISHED - 1):  # what a save notes, without the disk
        journal._own(job(f"{number}", state=done))
    assert journal._owns("oldest")
    await journal._save(job("newest", state=done))
    assert journal._owns("unfinished")
    assert not journal._owns("oldest")
    assert journal._owns("newest")
    await journal._save(job("newest", state=done, directory="elsewhere"))
    assert journal._owns("newest")


async def test_a_job_is_saved_and_let_go_of_in_one_write(place: str) -> None:
    """With its last words a job may be given back, for any process to take."""
    async with Journal(place) as first, Journal(place) as second:
        await first._add_or_get(job())
        await first._save(job(state=JobState.UNKNOWN, sent_at=5.0), release=True)
        assert not first._owns("a")
        assert [record.state for record in await second._claim()] == [JobState.UNKNOWN]


async def test_claims_come_in_order_and_within_their_bounds(journal: Journal) -> None:
    """The oldest jobs come first, no more than the limit, and only in the states asked for."""
    for number in range(6):
        state = JobState.PROCESSING if number % 2 else JobState.QUEUED
        await journal._add_or_get(job(f"job {number}", state=state))
        await journal._release(f"job {number}")
    waiting = await journal._claim(states=[JobState.PROCESSING], limit=2)
    rest = await journal._claim()
    assert [record.id for record in waiting] == ["job 1", "job 3"]
    assert [record.id for record in rest] == ["job 0", "job 2", "job 4", "job 5"]
    assert await journal._claim() == []


async def test_owners_are_visible(place: str) -> None:
    """Any process sees the owner of each job, and whether its lease is valid."""
    async with (
        Journal(place, lease=10) as first,
        Journal(place, lease=10) as second,
    ):
        await first._add_or_get(job("a"))
        await first._add_or_get(job("b"))
        await first._release("b")
        (held,) = (await first._owners()).values()
        assert (held.is_own, held.is_live, held.until) == (
            True,
            True,
            pytest.approx(time.time() + 10, abs=5),
        )
        assert f":{os.getpid()}:" in held.owner
        await let_pass(second, 11)
        (seen,) = (await second._owners()).values()
        assert (seen.is_own, seen.is_live, seen.owner) == (False, False, held.owner)


async def test_closing_gives_every_lease_back(place: str) -> None:
    """The last of several that opened a journal gives its leases back by closing it."""
    first = Journal(place)
    async with first, first:
        await first._add_or_get(job())
    with pytest.raises(JournalError, match="not open"):
        await first._renew()
    async with Journal(place) as second:
        assert await second._owners() == {}
        assert await second._claim() == [job()]
        async with first:
            assert not first._owns("a")
            assert await first._claim() == []


async def test_the_inner_close_leaves_the_journal_open(journal: Journal) -> None:
    """A session that opened the user's journal and closes it takes nothing from the user."""
    await journal._add_or_get(job())
    async with journal:
        pass
    await journal._save(job(state=JobState.UPLOADING))


async def test_dead_owners_are_forgotten(tmp_path: Path) -> None:
    """Processes that were killed leave no trace once their jobs are taken over."""
    path = tmp_path / "journal.db"
    async with Journal(path, lease=10) as dead:
        await dead._add_or_get(job())
        async with Journal(path, lease=10) as heir:
            await let_pass(heir, 11)
            await heir._claim()
            assert select(path, "SELECT count(*) FROM musicgpt_owners") == [(1,)]
        await dead._add_or_get(job("b"))
        assert dead._owns("b")


async def test_a_job_is_found_by_either_name(journal: Journal) -> None:
    """The vendor's task_id finds the job as well as its own id; what is not there is None."""
    await journal._add_or_get(job(task_id="task"))
    assert await journal._find("a") == await journal._find("task") == job(task_id="task")
    assert await journal._find("b") is None


async def test_records_stream_in_order_while_others_write(journal: Journal) -> None:
    """All records are read page by page, so that writes continue in between."""
    names = [f"job {number}" for number in range(250)]
    for name_ in names:
        await journal._add_or_get(job(name_))
    seen = []
    async for record in journal.records():
        seen.append(record.id)
        if len(seen) in {1, 120}:
            await journal._save(job(record.id, state=JobState.UPLOADING))
    assert seen == names


async def test_one_bad_record_spoils_no_other(journal: Journal) -> None:
    """Writes that share a transaction fail one by one."""
    await journal._add_or_get(job("0"))
    writes = (journal._add_or_get(job(f"{number % 10}"), force=True) for number in range(30))
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    entered = {outcome[0].id for outcome in outcomes if isinstance(outcome, tuple)}
    errors = [outcome for outcome in outcomes if isinstance(outcome, JournalError)]
    assert entered == {str(number) for number in range(1, 10)}
    assert len(errors) == 21
    assert len({id(error) for error in errors}) == 21


async def test_tokens_stay_out_of_errors(journal: Journal) -> None:
    """Neither an error nor its causes show the values that were written."""
    secret = job(token="kept quiet".replace(" ", "-"))
    await journal._add_or_get(secret)
    with pytest.raises(JournalError) as caught:
        await journal._add_or_get(secret, force=True)
    assert caught.value.__cause__ is not None
    assert "kept-quiet" not in "".join(traceback.format_exception(caught.value))


async def test_text_that_no_database_takes_is_a_journal_error(journal: Journal) -> None:
    """A name from outside that is no Unicode is refused in the journal's own words."""
    with pytest.raises(JournalError, match="cannot be used"):
        await journal._add_or_get(job(task_id="\udc80"))
    await journal._add_or_get(job())


@pytest.mark.parametrize("native", [True, False], ids=["task", "scope"])
async def test_a_cancelled_writer_writes(journal: Journal, native: bool) -> None:
    """Cancelling one who waits for a write neither breaks it nor those that share it."""
    for name_ in "abc":
        await journal._add_or_get(job(name_))
    async with anyio.create_task_group() as others:
        others.start_soon(journal._save, job("a", label="saved"))
        others.start_soon(journal._save, job("c", label="saved"))
        if native:
            task = asyncio.ensure_future(journal._save(job("b", label="saved")))
            await asyncio.sleep(0)
            task.cancel()
        else:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await journal._save(job("b", label="saved"))
    await journal._renew()
    assert [record.label async for record in journal.records()] == ["saved"] * 3


async def test_a_writer_waits_for_another_processs_transaction(tmp_path: Path) -> None:
    """A lock held elsewhere delays a write instead of failing it."""
    path = tmp_path / "journal.db"
    async with Journal(path) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            entering = asyncio.ensure_future(journal._add_or_get(job()))
            await asyncio.wait([entering], timeout=0.3)
            assert not entering.done()
            assert await journal._find("a") is None
            other.execute("COMMIT")
        assert await entering == (job(), True)


async def test_many_may_open_a_new_journal_at_once(tmp_path: Path) -> None:
    """The first process creates the journal, and the others wait for it."""
    for attempt in range(20):
        journals = [Journal(tmp_path / f"{attempt}.db") for _ in range(6)]
        await asyncio.gather(*(journal._open() for journal in journals))
        for journal in journals:
            await journal._close()


async def test_the_file_is_a_synchronous_write_ahead_log(tmp_path: Path) -> None:
    """What was written survives a power cut: WAL, with a full sync at each commit."""
    path = tmp_path / "journal.db"
    async with Journal(path) as journal:
        assert select(path, "PRAGMA journal_mode") == [("wal",)]
        engine = journal._transactions._engine
        assert isinstance(engine, FileEngine)

        async def read(connection: Any) -> Any:
            return (await connection.exec_driver_sql("PRAGMA synchronous")).scalar()

        for reading in (False, True):
            assert await engine.run(read, reading=reading) == 2


async def test_a_journal_serves_one_loop_after_another(tmp_path: Path) -> None:
    """Once closed, a journal may be opened again in another loop."""
    journal = Journal(tmp_path / "journal.db")

    async def enter(name_: str) -> None:
        async with journal, anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(journal._add_or_get, job(f"{name_} {number}"))

    await enter("here")
    await anyio.to_thread.run_sync(lambda: asyncio.run(enter("there")))
    async with journal:
        assert len([record async for record in journal.records()]) == 6
