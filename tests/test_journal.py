"""The journal: one owner for each job, nothing lost, and no harm to files that are not its own."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musicgpt_async.errors import ConfigurationError, InvalidOptionError, JournalError
from musicgpt_async.journal import REMEMBERED, Journal
from musicgpt_async.models import JobRecord, JobState, StemFile, StemLinks

pytestmark = pytest.mark.anyio

POSTGRES = "MUSICGPT_TEST_POSTGRES"
TABLES = ("musicgpt_journal", "musicgpt_owners", "musicgpt_jobs", "musicgpt_places")
# A wait that ends in a failure rather than in a hang; no test comes near it.
GUARD = 60.0


class Clock:
    """Seconds since the epoch, as told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """Return what it was set to."""
        return self.now


def job(name: str = "a", **changes: Any) -> JobRecord:
    """Return the record of a track of its own."""
    return attrs.evolve(
        JobRecord(id=name, fingerprint=f"track {name}", source=f"/music/{name}.flac"), **changes
    )


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
    hinted_task=st.none() | name,
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
    await journal.enter(first)
    entered = await journal.find(first.id)
    saved_as = attrs.evolve(second, id=first.id)
    await journal.save(saved_as)
    saved = await journal.find(first.id)
    assert (entered, saved) == (first, saved_as)
    assert saved is not None
    assert list(saved.links) == list(second.links)


@pytest.mark.parametrize(
    ("there", "new"),
    [
        (job(state=JobState.QUEUED), False),
        (job(state=JobState.UPLOADING), False),
        (job(state=JobState.DELIVERED, sent_at=1.0), False),
        (job(state=JobState.WAITING, task_id="t"), False),
        (job(state=JobState.COMPLETED, task_id="t"), False),
        (job(state=JobState.UNKNOWN, sent_at=1.0), False),
        (job(state=JobState.EXPIRED, task_id="t"), False),
        (job(state=JobState.RELEASED, task_id="t"), False),
        (job(state=JobState.RELEASED, sent_at=1.0), False),
        (job(state=JobState.RELEASED), True),
        (job(state=JobState.FAILED, task_id="t"), True),
        (job(state=JobState.FAILED), True),
    ],
    ids=lambda value: value.state if isinstance(value, JobRecord) else "",
)
async def test_the_same_track_is_entered_once(
    journal: Journal, there: JobRecord, new: bool
) -> None:
    """Only what failed, or was let go of before delivery, may be submitted a second time."""
    await journal.enter(there)
    again = attrs.evolve(there, id="again")
    assert await journal.enter(again) == ((again, True) if new else (there, False))


async def test_force_enters_the_same_track_again(journal: Journal) -> None:
    """``force`` makes a second record, and the newest is the one found from then on."""
    await journal.enter(job())
    forced = attrs.evolve(job(), id="forced")
    assert await journal.enter(forced, force=True) == (forced, True)
    assert await journal.enter(attrs.evolve(job(), id="third")) == (forced, False)


async def test_a_failed_second_try_leaves_the_first_in_the_way(journal: Journal) -> None:
    """A forced job that failed does not hide the one that is done."""
    await journal.enter(job(state=JobState.COMPLETED))
    await journal.enter(attrs.evolve(job(), id="forced"), force=True)
    await journal.save(attrs.evolve(job(), id="forced", state=JobState.FAILED))
    found, new = await journal.enter(attrs.evolve(job(), id="third"))
    assert (found.id, new) == ("a", False)


async def test_a_record_found_is_owned_only_where_its_lease_was_free(place: str) -> None:
    """Entering a known track takes its lease if nobody holds it, and leaves it to a live owner."""
    async with Journal(place) as first, Journal(place) as second:
        await first.enter(job())
        assert await second.enter(job()) == (job(), False)
        assert (first.owns("a"), second.owns("a")) == (True, False)
        await first.release("a")
        assert await second.enter(job()) == (job(), False)
        assert (first.owns("a"), second.owns("a")) == (False, True)
        await second.save(job(state=JobState.UPLOADING))


async def test_only_the_owner_saves(place: str) -> None:
    """A process whose job was taken over cannot write, and what the new owner wrote stands."""
    clock = Clock()
    async with (
        Journal(place, lease=10, clock=clock) as first,
        Journal(place, lease=10, clock=clock) as second,
    ):
        await first.enter(job())
        clock.now += 11
        assert await second.claim() == [job()]
        await second.save(job(state=JobState.UPLOADING))
        with pytest.raises(JournalError, match="taken it over"):
            await first.save(job(state=JobState.DELIVERED))
        assert not first.owns("a")
        assert await first.find("a") == job(state=JobState.UPLOADING)


async def test_an_overdue_owner_may_go_on_while_nobody_took_over(place: str) -> None:
    """A lease that ran out does no harm by itself, and saving renews it."""
    clock = Clock()
    async with (
        Journal(place, lease=10, clock=clock) as first,
        Journal(place, lease=10, clock=clock) as second,
    ):
        await first.enter(job())
        clock.now += 11
        await first.save(job(state=JobState.UPLOADING))
        assert await second.claim() == []


async def test_a_renewed_lease_holds(place: str) -> None:
    """Renewing in time keeps every job of the journal from being taken over."""
    clock = Clock()
    async with (
        Journal(place, lease=10, clock=clock) as first,
        Journal(place, lease=10, clock=clock) as second,
    ):
        await first.enter(job("a"))
        await first.enter(job("b"))
        for _ in range(3):
            clock.now += 9
            await first.renew()
            assert await second.claim() == []


@pytest.mark.parametrize(
    ("record", "unfinished"),
    [
        (job(state=JobState.QUEUED), True),
        (job(state=JobState.UPLOADING), True),
        (job(state=JobState.DELIVERED), True),
        (job(state=JobState.WAITING), True),
        (job(state=JobState.UNKNOWN), True),
        (job(state=JobState.EXPIRED), True),
        (job(state=JobState.FAILED, task_id="t"), False),
        (job(state=JobState.RELEASED), False),
        (job(state=JobState.RELEASED, task_id="t"), True),
        (job(state=JobState.RELEASED, sent_at=1.0), True),
        (job(state=JobState.COMPLETED), False),
        (job(state=JobState.COMPLETED, directory="/stems"), True),
    ],
    ids=lambda value: value.state if isinstance(value, JobRecord) else "",
)
async def test_what_still_needs_work_is_claimed(
    journal: Journal, record: JobRecord, unfinished: bool
) -> None:
    """A job is claimed until it failed, was dropped before delivery, or lies whole on disk."""
    await journal.enter(record)
    await journal.release("a")
    assert await journal.claim() == ([record] if unfinished else [])


LINKS = {"vocals": StemLinks(mp3="v.mp3", wav="v.wav"), "drums": StemLinks(wav="d.wav")}


@pytest.mark.parametrize(
    ("format_", "there", "unfinished"),
    [
        ("wav", ["vocals.wav"], True),
        ("wav", ["vocals.wav", "drums.wav"], False),
        (None, ["vocals.wav", "drums.wav"], False),
        ("mp3", ["vocals.wav", "drums.wav"], True),
        ("mp3", ["vocals.mp3"], False),
        ("both", ["vocals.wav", "drums.wav"], True),
        ("both", ["vocals.wav", "drums.wav", "vocals.mp3"], False),
    ],
)
async def test_a_download_that_misses_files_is_unfinished(
    journal: Journal, format_: Any, there: list[str], unfinished: bool
) -> None:
    """A completed job with a directory is claimed until each file that has a link is recorded."""
    found = tuple(
        StemFile(stem=file[:-4], format=file[-3:], path=file, size=1, sha256="0") for file in there
    )
    await journal.enter(
        job(state=JobState.COMPLETED, directory="/s", format=format_, links=LINKS, files=found)
    )
    await journal.release("a")
    assert bool(await journal.claim()) is unfinished


async def test_a_lost_job_takes_the_task_that_was_found(place: str) -> None:
    """The task is written down, and the job is the binder's to go on with."""
    lost = job(state=JobState.UNKNOWN, sent_at=5.0, error="no answer")
    async with Journal(place) as first, Journal(place) as second:
        await first.enter(lost)
        await first.release("a")
        bound = await second.bind("a", "task")
        assert bound == attrs.evolve(
            lost, state=JobState.WAITING, task_id="task", accepted_at=5.0, error=None
        )
        assert await first.find("a") == bound
        assert second.owns("a")
        assert await first.claim() == []
        await second.save(attrs.evolve(bound, cost=1.0))


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
            await other.enter(each)
            await other.release(each.id)
        await other.enter(job("held", state=JobState.DELIVERED, sent_at=5.0))
        before = [each async for each in journal.records()], await journal.owners()
        with pytest.raises(InvalidOptionError, match=f"(?s){why}.*Nothing was changed"):
            await journal.bind(which, task_id)
        assert ([each async for each in journal.records()], await journal.owners()) == before
        assert not journal.owns(which)


async def test_what_is_owned_is_bounded_by_what_is_unfinished(journal: Journal) -> None:
    """Of finished jobs the newest are remembered as one's own, so that memory stays bounded."""
    count = REMEMBERED + 50
    await asyncio.gather(*(journal.enter(job(f"{number}")) for number in range(count)))
    done = JobState.COMPLETED
    await asyncio.gather(
        *(journal.save(job(f"{number}", state=done)) for number in range(1, count))
    )
    assert journal.owns("0")  # it is not finished
    assert not journal.owns("1")
    assert journal.owns(f"{count - 1}")
    await journal.save(job(f"{count - 1}", state=done, directory="elsewhere"))
    assert journal.owns(f"{count - 1}")


async def test_a_job_is_saved_and_let_go_of_in_one_write(place: str) -> None:
    """With its last words a job may be given back, for any process to take."""
    async with Journal(place) as first, Journal(place) as second:
        await first.enter(job())
        await first.save(job(state=JobState.UNKNOWN, sent_at=5.0), release=True)
        assert not first.owns("a")
        assert [record.state for record in await second.claim()] == [JobState.UNKNOWN]


async def test_claims_come_in_order_and_within_their_bounds(journal: Journal) -> None:
    """The oldest jobs come first, no more than the limit, and only in the states asked for."""
    for number in range(6):
        state = JobState.WAITING if number % 2 else JobState.QUEUED
        await journal.enter(job(f"job {number}", state=state))
        await journal.release(f"job {number}")
    waiting = await journal.claim(states=[JobState.WAITING], limit=2)
    rest = await journal.claim()
    assert [record.id for record in waiting] == ["job 1", "job 3"]
    assert [record.id for record in rest] == ["job 0", "job 2", "job 4", "job 5"]
    assert await journal.claim() == []


async def test_owners_are_visible(place: str) -> None:
    """Anybody sees who holds which job, and whether that lease still holds."""
    clock = Clock()
    async with (
        Journal(place, lease=10, clock=clock) as first,
        Journal(place, lease=10, clock=clock) as second,
    ):
        await first.enter(job("a"))
        await first.enter(job("b"))
        await first.release("b")
        (held,) = (await first.owners()).values()
        assert (held.mine, held.live, held.until) == (True, True, clock.now + 10)
        assert f":{os.getpid()}:" in held.owner
        clock.now += 11
        (seen,) = (await second.owners()).values()
        assert (seen.mine, seen.live, seen.owner) == (False, False, held.owner)


async def test_closing_gives_every_lease_back(place: str) -> None:
    """The last of several that opened a journal gives its leases back by closing it."""
    first = Journal(place)
    async with first, first:
        await first.enter(job())
    with pytest.raises(JournalError, match="not open"):
        await first.renew()
    async with Journal(place) as second:
        assert await second.owners() == {}
        assert await second.claim() == [job()]
        async with first:
            assert not first.owns("a")
            assert await first.claim() == []


async def test_the_inner_close_leaves_the_journal_open(journal: Journal) -> None:
    """A session that opened the user's journal and closes it takes nothing from the user."""
    await journal.enter(job())
    async with journal:
        pass
    await journal.save(job(state=JobState.UPLOADING))


async def test_dead_owners_are_forgotten(tmp_path: Path) -> None:
    """Processes that were killed leave no trace once their jobs are taken over."""
    path, clock = tmp_path / "journal.db", Clock()
    async with Journal(path, lease=10, clock=clock) as dead:
        await dead.enter(job())
        async with Journal(path, lease=10, clock=clock) as heir:
            clock.now += 11
            await heir.claim()
            assert _select(path, "SELECT count(*) FROM musicgpt_owners") == [(1,)]
        await dead.enter(job("b"))
        assert dead.owns("b")


async def test_a_job_is_found_by_either_name(journal: Journal) -> None:
    """The vendor's task_id finds the job as well as its own id; what is not there is None."""
    await journal.enter(job(task_id="task"))
    assert await journal.find("a") == await journal.find("task") == job(task_id="task")
    assert await journal.find("b") is None


async def test_records_stream_in_order_while_others_write(journal: Journal) -> None:
    """Reading everything goes page by page, so that writing goes on in between."""
    names = [f"job {number}" for number in range(250)]
    for name_ in names:
        await journal.enter(job(name_))
    seen = []
    async for record in journal.records():
        seen.append(record.id)
        if len(seen) in {1, 120}:
            await journal.save(job(record.id, state=JobState.UPLOADING))
    assert seen == names


async def test_one_bad_record_spoils_no_other(journal: Journal) -> None:
    """Writes that share a transaction fail one by one."""
    await journal.enter(job("0"))
    writes = (journal.enter(job(f"{number % 10}"), force=True) for number in range(30))
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    entered = {outcome[0].id for outcome in outcomes if isinstance(outcome, tuple)}
    errors = [outcome for outcome in outcomes if isinstance(outcome, JournalError)]
    assert entered == {str(number) for number in range(1, 10)}
    assert len(errors) == 21
    assert len({id(error) for error in errors}) == 21


async def test_tokens_stay_out_of_errors(journal: Journal) -> None:
    """Neither an error nor its causes show the values that were written."""
    secret = job(token="kept quiet".replace(" ", "-"))
    await journal.enter(secret)
    with pytest.raises(JournalError) as caught:
        await journal.enter(secret, force=True)
    assert caught.value.__cause__ is not None
    assert "kept-quiet" not in "".join(traceback.format_exception(caught.value))


async def test_text_that_no_database_takes_is_a_journal_error(journal: Journal) -> None:
    """A name from outside that is no Unicode is refused in the journal's own words."""
    with pytest.raises(JournalError, match="cannot be used"):
        await journal.enter(job(task_id="\udc80"))
    await journal.enter(job())


@pytest.mark.parametrize("native", [True, False], ids=["task", "scope"])
async def test_a_cancelled_writer_writes(journal: Journal, native: bool) -> None:
    """Cancelling one who waits for a write neither breaks it nor those that share it."""
    for name_ in "abc":
        await journal.enter(job(name_))
    async with anyio.create_task_group() as others:
        others.start_soon(journal.save, job("a", label="saved"))
        others.start_soon(journal.save, job("c", label="saved"))
        if native:
            task = asyncio.ensure_future(journal.save(job("b", label="saved")))
            await asyncio.sleep(0)
            task.cancel()
        else:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await journal.save(job("b", label="saved"))
    await journal.renew()
    assert [record.label async for record in journal.records()] == ["saved"] * 3


async def test_a_writer_waits_for_another_processs_transaction(tmp_path: Path) -> None:
    """A lock held elsewhere delays a write instead of failing it."""
    path = tmp_path / "journal.db"
    async with Journal(path) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            entering = asyncio.ensure_future(journal.enter(job()))
            await asyncio.wait([entering], timeout=0.3)
            assert not entering.done()
            assert await journal.find("a") is None
            other.execute("COMMIT")
        assert await entering == (job(), True)


async def test_many_may_open_a_new_journal_at_once(tmp_path: Path) -> None:
    """Whoever is first makes the journal, and the others wait for it instead of failing."""
    for attempt in range(20):
        journals = [Journal(tmp_path / f"{attempt}.db") for _ in range(6)]
        await asyncio.gather(*(journal.open() for journal in journals))
        for journal in journals:
            await journal.aclose()


async def test_the_file_is_a_synchronous_write_ahead_log(tmp_path: Path) -> None:
    """What was written survives a power cut: WAL, with a full sync at each commit."""
    path = tmp_path / "journal.db"
    async with Journal(path) as journal:
        assert _select(path, "PRAGMA journal_mode") == [("wal",)]
        for options in ({}, {"musicgpt_reading": True}):
            engine = journal._opened().execution_options(**options)
            async with engine.connect() as connection:
                found = await connection.exec_driver_sql("PRAGMA synchronous")
                assert found.scalar() == 2


async def test_a_journal_serves_one_loop_after_another(tmp_path: Path) -> None:
    """Once closed, a journal may be opened again in another loop."""
    journal = Journal(tmp_path / "journal.db")

    async def enter(name_: str) -> None:
        async with journal, anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(journal.enter, job(f"{name_} {number}"))

    await enter("here")
    await anyio.to_thread.run_sync(lambda: asyncio.run(enter("there")))
    async with journal:
        assert len([record async for record in journal.records()]) == 6


def _select(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()


def _write(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def _a_journal(path: Path) -> None:
    async def fill() -> None:
        async with Journal(path) as journal:
            for number in range(200):
                await journal.enter(job(f"{number}"))

    asyncio.run(fill())


def _random_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def _text(path: Path) -> None:
    path.write_text("my shopping list\n" * 100)


def _only_a_header(path: Path) -> None:
    _a_journal(path)
    os.truncate(path, 50)


def _half_a_journal(path: Path) -> None:
    _a_journal(path)
    os.truncate(path, path.stat().st_size // 2)


def _half_a_page_less(path: Path) -> None:
    _a_journal(path)
    os.truncate(path, path.stat().st_size - 2048)


def _a_torn_page(path: Path) -> None:
    _a_journal(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(os.urandom(4096))


def _nothing_but_a_log(path: Path) -> None:
    path.touch()
    path.with_name(path.name + "-wal").write_bytes(os.urandom(4128))


def _a_link_to_a_log(path: Path) -> None:
    target = path.with_name("target")
    _nothing_but_a_log(target)
    path.symlink_to(target)


def _another_programs_database(path: Path) -> None:
    _write(path, "CREATE TABLE holidays (day TEXT)", "INSERT INTO holidays VALUES ('today')")


def _another_programs_log(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE musicgpt_journal (version INTEGER)")
        copies = {file: file.read_bytes() for file in path.parent.iterdir()}
    for file, content in copies.items():
        file.write_bytes(content)


def _a_later_version(path: Path) -> None:
    _a_journal(path)
    _write(path, "UPDATE musicgpt_journal SET version = 99")


def _an_earlier_version(path: Path) -> None:
    _a_journal(path)
    _write(path, "UPDATE musicgpt_journal SET version = 1")


def _no_version(path: Path) -> None:
    _a_journal(path)
    _write(path, "DELETE FROM musicgpt_journal")


def _a_folder(path: Path) -> None:
    path.mkdir()


def _a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_random_bytes, "no journal"),
        (_text, "no journal"),
        (_only_a_header, "no journal"),
        (_half_a_journal, "damaged"),
        (_half_a_page_less, "damaged"),
        (_a_torn_page, "damaged"),
        (_nothing_but_a_log, "damaged"),
        (_a_link_to_a_log, "damaged"),
        (_another_programs_database, "another program's"),
        (_another_programs_log, "another program's"),
        (_a_later_version, "Upgrade"),
        (_an_earlier_version, "the release that made it"),
        (_no_version, "version None"),
        (_a_folder, "is a folder"),
        (_a_pipe, "no regular file"),
    ],
)
async def test_what_is_no_sound_journal_is_left_as_it_is(
    tmp_path: Path, make: Any, words: str
) -> None:
    """A damaged or foreign file is refused by name, and neither it nor its folder changes."""
    path = tmp_path / "journal.db"
    await anyio.to_thread.run_sync(make, path)
    before = _folder(tmp_path)
    with pytest.raises(JournalError, match=words) as caught:
        await Journal(path).open()
    assert str(path) in str(caught.value)
    assert _folder(tmp_path) == before


def _folder(path: Path) -> dict[str, bytes | None]:
    """Return each file of a folder with its content."""
    return {
        entry.name: entry.read_bytes() if stat.S_ISREG(entry.stat().st_mode) else None
        for entry in path.iterdir()
    }


async def test_damage_to_a_journal_with_a_log_is_named(tmp_path: Path) -> None:
    """Where a killed process left a log, a truncated file is refused and its bytes are kept."""
    path = tmp_path / "journal.db"
    await anyio.to_thread.run_sync(_a_journal, path)
    _killed_owner(path)
    os.truncate(path, 8192)
    before = (path.read_bytes(), _beside(path, "-wal").read_bytes())
    with pytest.raises(JournalError, match="damaged"):
        await Journal(path).open()
    assert (path.read_bytes(), _beside(path, "-wal").read_bytes()) == before


async def test_there_must_be_a_folder(tmp_path: Path) -> None:
    """A journal makes its file, not the folders above it."""
    with pytest.raises(JournalError, match="there is no folder"):
        await Journal(tmp_path / "nowhere" / "journal.db").open()
    assert _folder(tmp_path) == {}


@pytest.mark.parametrize("name_", ["a b?c=d&e#f%20.db", ":memory:", "file:x", os.fsdecode(b"\xff")])
async def test_any_name_will_do(tmp_path: Path, name_: str) -> None:
    """Characters that mean something in a URL are plain ones in the name of a file."""
    for _ in range(2):
        async with Journal(tmp_path / name_) as journal:
            await journal.enter(job())
    assert list(_folder(tmp_path)) == [name_]


async def test_a_link_to_a_journal_is_that_journal(tmp_path: Path) -> None:
    """A symbolic link and its target are one journal with one log."""
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    async with Journal(target) as first, Journal(link) as second:
        await first.enter(job())
        assert await second.find("a") == job()
    assert set(_folder(tmp_path)) == {"link", "target"}


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "://", "http://host/journal.db"])
async def test_other_urls_are_refused(url: str) -> None:
    """Only SQLite's and PostgreSQL's URLs lead to a journal."""
    with pytest.raises(ConfigurationError, match="SQLite or PostgreSQL"):
        Journal(url)


async def test_a_password_stays_out_of_the_name() -> None:
    """What shows a journal shows where it lies, without the password."""
    pytest.importorskip("asyncpg")
    journal = Journal("postgresql://user:secret@127.0.0.1:1/db")
    assert "secret" not in repr(journal)
    with pytest.raises(JournalError, match=r"127\.0\.0\.1:1") as caught:
        await journal.open()
    assert "secret" not in "".join(traceback.format_exception(caught.value))


# What second processes begin with: a journal, a job's record, and a line to say that they stand.
CHILD = """
import asyncio, os, resource, sys
from musicgpt_async.errors import JournalError
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord, JobState

def say(*words):
    print(*words, flush=True)

def job(name, **changes):
    return JobRecord(id=name, fingerprint="track " + name, source="", **changes)

place = sys.argv[1]
"""


@contextmanager
def _child(code: str, place: object) -> Iterator[subprocess.Popen[str]]:
    """Run a second process, which is killed at the end of the block if it still runs."""
    command = [sys.executable, "-c", CHILD + textwrap.dedent(code), str(place)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def _lines(child: subprocess.Popen[str]) -> Iterator[str]:
    assert child.stdout is not None
    for line in child.stdout:
        yield line.strip()


def _tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def _answer(code: str, place: object) -> list[str]:
    with _child(code, place) as child:
        out, _ = child.communicate(timeout=GUARD)
    assert child.returncode == 0
    return out.split()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


OWNER = """
    async def main():
        async with Journal(place) as journal:
            for number in range(5):
                await journal.enter(job(str(number)))
            say("entered")
            await asyncio.sleep(3600)

    asyncio.run(main())
"""


def _killed_owner(place: object) -> None:
    with _child(OWNER, place) as child:
        assert next(_lines(child), None) == "entered"


@pytest.mark.skipif(sys.platform != "linux", reason="deaths are seen in Linux's /proc")
@pytest.mark.parametrize("how", ["claimed", "entered again"])
async def test_jobs_of_a_killed_process_are_taken_over_at_once(place: str, how: str) -> None:
    """Nobody waits for the lease of an owner that was killed on this machine."""
    _killed_owner(place)
    async with Journal(place, clock=lambda: 0.0) as heir:  # by whose clock it holds for ages
        assert not any(lease.live for lease in (await heir.owners()).values())
        if how == "claimed":
            assert [record.id for record in await heir.claim()] == ["0", "1", "2", "3", "4"]
        else:
            assert (await heir.enter(attrs.evolve(job("0"), fingerprint="track 0")))[1] is False
        assert heir.owns("0")
        assert (await heir.owners())["0"].mine


async def test_jobs_of_another_machine_are_protected_by_their_lease(tmp_path: Path) -> None:
    """An owner that cannot be seen keeps its jobs until its lease runs out."""
    path, clock = tmp_path / "journal.db", Clock()
    _killed_owner(path)
    _write(
        path,
        "UPDATE musicgpt_owners SET id = 'another:machine:1:2:3'",
        "UPDATE musicgpt_jobs SET owner = (SELECT id FROM musicgpt_owners)",
    )
    async with Journal(path, clock=clock) as heir:
        clock.now = max(lease.until for lease in (await heir.owners()).values()) - 1
        assert await heir.claim() == []
        clock.now += 2
        assert [record.id for record in await heir.claim()] == ["0", "1", "2", "3", "4"]


RIVAL = """
    async def main():
        async with Journal(place) as journal:
            say("ready")
            sys.stdin.readline()
            for number in range(30):
                record, new = await journal.enter(job(str(number)))
                if new:
                    say(number)
                if journal.owns(record.id):
                    await journal.release(record.id)
            say("claims")
            while found := await journal.claim(limit=1):
                say(found[0].id)
            say("done")
            sys.stdin.readline()

    asyncio.run(main())
"""


NAMESAKE = """
    async def main():
        async with Journal(place) as journal:
            say("ready")
            sys.stdin.readline()
            for number in range(30):
                task = f"{os.getpid()} {number}"
                first, second = [await journal.place(task, "here") for _ in range(2)]
                assert first == second
                say(first)
            say("done")

    asyncio.run(main())
"""


async def test_rivals_never_choose_one_number_for_two_tasks(place: str) -> None:
    """Of tasks whose files have the same names each has its own number, whichever process asks."""
    with _child(NAMESAKE, place) as one, _child(NAMESAKE, place) as two:
        both = [_lines(one), _lines(two)]
        assert [next(lines) for lines in both] == ["ready", "ready"]
        for child in (one, two):
            _tell(child)
        numbers = [int(line) for lines in both for line in lines if line != "done"]
    assert sorted(numbers) == list(range(1, 61))
    async with Journal(place) as journal:
        assert await journal.place("another", "here") == 61
        assert await journal.place("another", "there") == 1


async def test_rivals_share_the_work_without_overlap(place: str) -> None:
    """Processes that start together on no journal at all enter each job once, and claim it once."""
    with ExitStack() as stack:
        rivals = [stack.enter_context(_child(RIVAL, place)) for _ in range(3)]
        voices = [_lines(rival) for rival in rivals]
        assert [next(voice, None) for voice in voices] == ["ready"] * 3
        for rival in rivals:
            _tell(rival)
        said = [list(iter(voice.__next__, "done")) for voice in voices]
    entered = [word for words in said for word in words[: words.index("claims")]]
    claimed = [word for words in said for word in words[words.index("claims") + 1 :]]
    everything = sorted(str(number) for number in range(30))
    assert sorted(entered) == everything
    # A rival may claim what another was about to enter: what counts is that none is claimed twice.
    assert sorted(claimed) == everything


SCRIBE = """
    async def main():
        async with Journal(place) as journal:
            async def write(name):
                count = 0
                await journal.enter(job(name))
                while True:
                    count += 1
                    await journal.save(job(name, label=str(count), directory="x" * 3000))
                    say(name, count)
            await asyncio.gather(*(write(f"{os.getpid()} {n}") for n in range(4)))

    asyncio.run(main())
"""


async def test_what_was_saved_survives_a_kill(place: str) -> None:
    """Whatever a save returned for is there after SIGKILL in the midst of writing, every time."""
    confirmed: dict[str, int] = {}
    for lines in (1, 40, 90, 150):
        with _child(SCRIBE, place) as scribe:
            for line in islice(_lines(scribe), lines):
                name_, count = line.rsplit(" ", 1)
                confirmed[name_] = int(count)
        async with Journal(place) as journal:
            found = {record.id: int(record.label or 0) async for record in journal.records()}
        assert all(found[name_] >= count for name_, count in confirmed.items())
    if "://" not in place:
        assert _select(Path(place), "PRAGMA integrity_check") == [("ok",)]


CRAMPED = """
    async def main():
        async with Journal(place) as journal:
            await journal.enter(job("first"))
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
            try:
                for number in range(1000):
                    await journal.enter(job(str(number), label="x" * 1000))
            except JournalError as error:
                say(type(error.__cause__).__name__, str(error).count(place))
            saves = [journal.save(job("first", label="x" * 5000)) for _ in range(3)]
            errors = await asyncio.gather(*saves, return_exceptions=True)
            say(len({id(error) for error in errors if isinstance(error, JournalError)}))
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            await journal.save(job("first", label="saved"))
            say(number)

    asyncio.run(main())
"""


async def test_a_disk_without_room_is_an_error_and_no_damage(tmp_path: Path) -> None:
    """Where a write does not fit an error says so; what was there stays, and room ends it."""
    path = tmp_path / "journal.db"
    cause, named, errors, number = _answer(CRAMPED, path)
    assert (cause, named, errors) == ("OperationalError", "1", "3")
    async with Journal(path) as journal:
        found = [record async for record in journal.records()]
        assert found[0].label == "saved"
        assert len(found) >= int(number) + 1
    assert _select(path, "PRAGMA integrity_check") == [("ok",)]


POWERLESS = """
    async def main():
        async with Journal(place + "/warm-up.db") as journal:
            await journal.enter(job("a"))
        os.chmod(place, 0o555)
        if os.geteuid() == 0:
            os.setuid(65534)
        for name in ("warm-up.db", "new.db"):
            try:
                await Journal(place + "/" + name).open()
            except JournalError as error:
                named = f"nothing may be written in the folder {place}" in str(error)
                say("refused" if named else error)

    asyncio.run(main())
"""


async def test_a_place_that_may_not_be_written_is_refused() -> None:
    """A folder without the right to write gives a clear error, and nothing is made in it."""
    with tempfile.TemporaryDirectory() as folder:
        assert _answer(POWERLESS, folder) == ["refused", "refused"]
        assert list(_folder(Path(folder))) == ["warm-up.db"]


async def test_making_a_journal_is_cheap() -> None:
    """Neither the module nor a journal that is not opened costs the import of the extra."""
    code = """
        Journal("journal.db")
        say("sqlalchemy" in sys.modules, "aiosqlite" in sys.modules)
    """
    assert _answer(code, "") == ["False", "False"]


async def test_the_extra_is_imported_off_the_loop(tmp_path: Path) -> None:
    """The first journal that is opened in a process does not hold its loop up."""
    code = """
        import threading
        class Watch:
            def find_spec(self, name, path=None, target=None):
                if name in ("sqlalchemy.engine", "aiosqlite.core"):
                    say(threading.current_thread() is threading.main_thread())

        sys.meta_path.insert(0, Watch())
        async def main():
            async with Journal(place) as journal:
                await journal.enter(job("a"))

        asyncio.run(main())
    """
    assert _answer(code, tmp_path / "journal.db") == ["False", "False"]


@pytest.mark.parametrize("module", ["sqlalchemy", "aiosqlite"])
async def test_a_missing_extra_is_named(module: str) -> None:
    """Without the extra, making a journal says what to install."""
    code = f"""
        from musicgpt_async.errors import ConfigurationError
        sys.modules["{module}"] = None
        try:
            Journal("journal.db")
        except ConfigurationError as error:
            say(error)
    """
    assert 'install "musicgpt-async[journal]"' in " ".join(_answer(code, ""))
