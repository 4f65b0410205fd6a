"""Resuming: whatever happened to the process before, each track is paid for and fetched once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import attrs
import pytest

from musicgpt_async import (
    ConfigurationError,
    ExtractionJob,
    InvalidOptionError,
    JobState,
    JournalError,
    Limits,
    MusicGPTSession,
    NotFoundError,
    ReleasedError,
    SourceChangedError,
    SourceError,
    SubmissionUnknownError,
    WebhookReceiver,
)
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.events import Completed
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord

pytestmark = pytest.mark.anyio

PROCESS = Path(__file__).parent / "faults" / "batch_process.py"
SECRET = "kept between runs"
STEMS = ["bass", "drums"]
LONG = 24 << 20
# A wait that ends in a failure rather than in a hang.
HANG = 60.0

FOREVER: dict[str, Any] = {"times": None}


def connected(vendor: Emulator, journal: Any, **options: Any) -> MusicGPTSession:
    """A session with a journal."""
    options = {"limits": Limits.PRO, "journal": journal, **options}
    return MusicGPTSession(vendor.api_key, base_url=vendor.base_url, **options)


def track(folder: Path, name: str = "song.mp3", size: int = 20_000) -> Path:
    """Make a track, different for each name."""
    path = folder / name
    path.write_bytes((b"ID3" + name.encode()).ljust(size, b"~"))
    return path


def lost(name: str = "a", **changes: Any) -> JobRecord:
    """Return the record of a submit that was handed over a minute ago and never answered."""
    return attrs.evolve(
        JobRecord(
            id=name,
            fingerprint=f"print of {name}",
            source=f"/music/{name}.mp3",
            stems=tuple(STEMS),
            state=JobState.DELIVERED,
            sent_at=time.time() - 50.0,
            created_at=time.time() - 60.0,
        ),
        **changes,
    )


async def written(path: Path, *records: JobRecord) -> Path:
    """Write records into a journal that nobody holds."""
    async with Journal(path) as journal:
        for record in records:
            await journal.enter(record)
    return path


async def read(path: Path) -> list[JobRecord]:
    """Return what a journal holds."""
    async with Journal(path) as journal:
        return [record async for record in journal.records()]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is true."""
    with anyio.fail_after(HANG):
        while not condition():
            await anyio.sleep(0.01)


async def accepted_by(vendor: Emulator, stems: Sequence[str] = STEMS) -> str:
    """Have the vendor accept a track that somebody else submits; return its task."""
    form = aiohttp.FormData({"stems": json.dumps(list(stems))})
    form.add_field("audio_file", b"ID3" + bytes(9000), filename="other.mp3")
    async with aiohttp.request(
        "POST",
        f"{vendor.base_url}/Extraction",
        data=form,
        headers={"Authorization": vendor.api_key},
    ) as answer:
        return str((await answer.json())["task_id"])


def asked(vendor: Emulator, word: str) -> int:
    """Return how many requests had a word in their path."""
    return sum(word in each.path for each in vendor.requests)


def there(folder: Path) -> dict[str, str]:
    """Return file name → digest of everything in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


async def reference(vendor: Emulator, folder: Path, *tracks: Path) -> dict[str, str]:
    """Return what must lie there, fetched by a session that knows nothing of the first."""
    async with connected(vendor, None) as session:
        for submission in vendor.submissions:
            await session.attach(submission.task_id).download(folder)
    digests = there(folder)
    titles = {path.name: path.stem for path in tracks}
    return {
        f"{titles[each.file_name or '']} - {stem}.wav": digests[f"{each.task_id} - {stem}.wav"]
        for each in vendor.submissions
        for stem in each.stems
    }


@asynccontextmanager
async def process(
    vendor: Emulator, folder: Path, *tracks: Path, **changes: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A batch in a process of its own; it is killed at the end of the block if it still runs."""
    settings = {
        "base_url": vendor.base_url,
        "key": vendor.api_key,
        "port": 0,
        "journal": str(folder / "journal.db"),
        "lease": 0.5,
        "parallel": 5,
        "deadline": 60.0,
        "out": str(folder / "stems"),
        "stems": STEMS,
        "tracks": [str(path) for path in tracks],
        "force": False,
        **changes,
    }
    running = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), json.dumps(settings), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def nobody_holds(path: Path) -> None:
    """Wait until the leases of a killed process have run out."""
    with anyio.fail_after(HANG):
        async with Journal(path) as journal:
            while any(lease.live for lease in (await journal.owners()).values()):
                await anyio.sleep(0.02)


@attrs.frozen
class Moment:
    """A moment of a job's life at which its process is killed."""

    name: str
    faults: tuple[Fault, ...]
    has_come: Callable[[Emulator, Path], bool]
    size: int = 20_000
    seconds: float = 0.1


def on(word: str, number: int = 1) -> Callable[[Emulator, Path], bool]:
    """Return whether so many requests have come."""
    return lambda vendor, _: asked(vendor, word) >= number


MOMENTS = [
    Moment(
        "before the hand-over",
        (Fault("submit", "stall_read", at=0.1, **FOREVER),),
        on("Extraction"),
        size=LONG,
    ),
    Moment(
        "handed over and unanswered",
        (Fault("submit", "stall_answer", **FOREVER),),
        lambda vendor, _: len(vendor.submissions) == 1,
    ),
    Moment("accepted", (), on("byId"), seconds=3.0),
    Moment(
        "completed and not downloaded", (Fault("file", "stall_answer", **FOREVER),), on("/files", 2)
    ),
    Moment(
        "half downloaded",
        (Fault("file", "stall", when=lambda o: o.file == "drums.wav", **FOREVER),),
        lambda vendor, folder: (
            asked(vendor, "drums.wav") == 1 and (folder / "stems" / "song - bass.wav").exists()
        ),
    ),
    Moment(
        "done",
        (),
        lambda _, folder: len([*(folder / "stems").glob("*.wav")]) == len(STEMS),
    ),
]


@pytest.fixture
def free_tcp_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("again", ["resume", "the same batch"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
async def test_a_killed_process_is_taken_up_where_it_stood(
    moment: Moment, again: str, tmp_path: Path
) -> None:
    """Killed at any point: one submission, whole stems, and nothing left beside them."""
    song, stems = track(tmp_path, size=moment.size), tmp_path / "stems"
    async with Emulator(seconds=moment.seconds, separate=False, faults=moment.faults) as vendor:
        async with process(vendor, tmp_path, song) as killed:
            await until(lambda: moment.has_come(vendor, tmp_path))
            killed.kill()
        vendor.faults.clear()
        await nobody_holds(tmp_path / "journal.db")
        fetched = asked(vendor, "bass.wav")
        async with connected(vendor, tmp_path / "journal.db") as session:
            if again == "resume":
                await session.resume()
            else:
                outcomes = [each async for each in session.extract_many([song], stems, stems=STEMS)]
                assert [each.error for each in outcomes] == [None]
        if moment.name in ("half downloaded", "done"):
            # A kill may come between the file's name and the journal's line about it.
            assert asked(vendor, "bass.wav") - fetched <= 1
        assert len(vendor.submissions) == 1
        assert there(stems) == await reference(vendor, tmp_path / "reference", song)
    [record] = await read(tmp_path / "journal.db")
    assert record.state is JobState.COMPLETED
    assert len(record.files) == len(STEMS)


@pytest.mark.skipif(sys.platform != "linux", reason="deaths are seen in Linux's /proc")
async def test_a_process_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    """Though its lease would hold for hours, a restart goes on with a dead process's jobs."""
    song, another = track(tmp_path), track(tmp_path, "another.mp3")
    async with Emulator(seconds=1.0, separate=False) as vendor:
        async with process(vendor, tmp_path, song, another, lease=36_000.0) as killed:
            await until(lambda: asked(vendor, "byId") >= 1)
            killed.kill()
            await killed.wait()
        async with connected(vendor, tmp_path / "journal.db") as session:
            jobs = await session.resume()
            assert sorted(job.title for job in jobs) == ["another", "song"]
            with anyio.fail_after(HANG):
                await asyncio.gather(*jobs)
        assert len(vendor.submissions) == 2


async def test_what_is_done_is_neither_submitted_nor_fetched_again(tmp_path: Path) -> None:
    """After a clean end there is nothing to resume, and the same batch asks the vendor nothing."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False) as vendor:
        async with connected(vendor, journal) as session:
            await session.extract(song, tmp_path / "stems", stems=STEMS)
        before = there(tmp_path / "stems"), len(vendor.requests)
        async with connected(vendor, journal) as session:
            assert await session.resume() == []
            await session.extract(song, tmp_path / "stems", stems=STEMS)
        assert (there(tmp_path / "stems"), len(vendor.requests)) == before


async def test_a_known_tracks_events_end_where_nobody_downloads_it(tmp_path: Path) -> None:
    """A directory that an earlier run was told is no download that anybody asked for now."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False) as vendor:
        async with connected(vendor, journal) as session:
            await session.extract(song, tmp_path / "stems", stems=STEMS)
        async with connected(vendor, journal) as session:
            job = session.submit(song, stems=STEMS)
            with anyio.fail_after(HANG):
                kinds = [type(event) async for event in job.events()]
        assert kinds[-1] is Completed
        assert len(vendor.submissions) == 1


async def test_what_the_journal_would_not_take_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A state that could not be written down is, once the journal takes it again."""
    path = await written(tmp_path / "journal.db")

    def change(statement: str) -> None:
        with closing(sqlite3.connect(path, timeout=HANG)) as database, database:
            database.execute(statement)

    async with (
        Emulator(seconds=0.05, separate=False) as vendor,
        connected(vendor, path) as session,
    ):
        change(
            "CREATE TRIGGER full BEFORE UPDATE ON musicgpt_jobs WHEN new.state = 'completed' "
            "BEGIN SELECT raise(ABORT, 'not now'); END"
        )
        await session.submit(track(tmp_path), stems=STEMS)
        await until(lambda: "was not written to the journal" in caplog.text)
        [record] = await read(path)
        assert record.state is not JobState.COMPLETED
        change("DROP TRIGGER full")
        with anyio.fail_after(HANG):
            while (await read(path))[0].state is not JobState.COMPLETED:
                await anyio.sleep(0.05)


async def test_a_file_that_was_harmed_is_fetched_again(tmp_path: Path) -> None:
    """What lies there is compared with the journal, and only what differs is fetched."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False) as vendor:
        async with connected(vendor, journal) as session:
            files = await session.extract(song, tmp_path / "stems", stems=STEMS)
        whole = there(tmp_path / "stems")
        files["bass"].write_bytes(bytes(files["bass"].stat().st_size))
        async with connected(vendor, journal) as session:
            await session.extract(song, tmp_path / "stems", stems=STEMS)
        assert there(tmp_path / "stems") == whole
        assert (asked(vendor, "bass.wav"), asked(vendor, "drums.wav")) == (2, 1)
        assert len(vendor.submissions) == 1


async def test_other_options_or_force_submit_again(vendor: Emulator, tmp_path: Path) -> None:
    """The same track is another submit with other options, with other content, and by force."""
    song = track(tmp_path)
    async with connected(vendor, tmp_path / "journal.db") as session:
        for options in (
            {"stems": STEMS},
            {"stems": STEMS[::-1]},  # the same two
            {"stems": ["vocals"]},
            {"stems": STEMS, "preprocessing": ["Denoise"]},
            {"stems": STEMS, "force": True},
            {"stems": STEMS},
        ):
            await session.submit(song, **options)
        track(tmp_path, size=30_000)
        await session.submit(song, stems=STEMS)
    assert [each.size for each in vendor.submissions] == [20_000] * 4 + [30_000]


async def test_twice_in_one_batch_is_once_at_the_vendor(vendor: Emulator, tmp_path: Path) -> None:
    """A track that comes twice is paid for once and fetched once, and both get its files."""
    song = track(tmp_path)
    async with connected(vendor, tmp_path / "journal.db") as session:
        outcomes = [
            each async for each in session.extract_many([song] * 4, tmp_path / "stems", stems=STEMS)
        ]
    assert [each.error for each in outcomes] == [None] * 4
    assert len({str(each.files) for each in outcomes}) == 1
    assert len(vendor.submissions) == 1
    assert sorted(there(tmp_path / "stems")) == ["song - bass.wav", "song - drums.wav"]
    assert asked(vendor, "/files") == len(STEMS)
    [record] = await read(tmp_path / "journal.db")
    assert len(record.files) == len(STEMS)


async def test_letting_go_of_one_handle_leaves_the_other(tmp_path: Path) -> None:
    """Two handles on one job: the first one's cancel() is not the second one's."""
    song = track(tmp_path)
    async with (
        Emulator(seconds=1.5, separate=False) as vendor,
        connected(vendor, tmp_path / "journal.db") as session,
    ):
        first = session.submit(song)
        await first.accepted()
        second = session.submit(song)
        # It gives its slot back once it is known to be the first one's job.
        await until(lambda: second.state is JobState.UPLOADING and session.slots[0] == 1)
        first.cancel()
        with anyio.fail_after(HANG):
            extraction = await second
        assert isinstance(first.exception(), ReleasedError)
        assert extraction.task_id == vendor.submissions[0].task_id
        assert len(vendor.submissions) == 1


async def test_taken_up_handles_may_be_downloaded_by_hand(vendor: Emulator, tmp_path: Path) -> None:
    """Awaiting what resume() returns while it downloads by itself fetches each file once."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    vendor.script(Fault("file", "status", status=410, **FOREVER))
    async with connected(vendor, journal) as session:
        async for outcome in session.extract_many([song], tmp_path / "stems", stems=STEMS):
            assert outcome.error is not None
    vendor.faults.clear()
    before = asked(vendor, "/files")
    async with connected(vendor, journal) as session:
        [job] = await session.resume()
        files = await job.download(tmp_path / "stems")
    assert sorted(files) == STEMS
    assert asked(vendor, "/files") - before == len(STEMS)


@pytest.mark.parametrize("is_begun", [True, False], ids=["download begun", "not begun"])
async def test_taken_up_tracks_lie_where_their_first_run_meant_to_put_them(
    is_begun: bool, tmp_path: Path
) -> None:
    """Directory, layout and format are the first run's, whatever the session that resumes has."""
    song, stems, journal = track(tmp_path), tmp_path / "stems", tmp_path / "journal.db"
    async with Emulator(seconds=0.2, separate=False) as vendor:
        vendor.script(Fault("file", "status", status=410, **FOREVER))
        session = await connected(vendor, journal, layout="{track}/{ext}/{stem}.{ext}").start()
        outcomes = session.extract_many([song], stems, stems=STEMS, format="both")
        async with anyio.create_task_group() as batch:
            batch.start_soon(anext, outcomes, None)
            await until(lambda: asked(vendor, "/files" if is_begun else "Extraction") >= 1)
            await session.aclose(drain=False)
            batch.cancel_scope.cancel()
        vendor.faults.clear()
        async with connected(vendor, journal) as session:
            await session.resume()
        assert len(vendor.submissions) == 1
    assert sorted(str(path.relative_to(stems)) for path in stems.rglob("*.*")) == [
        f"song/{ext}/{stem}.{ext}" for ext in ("mp3", "wav") for stem in STEMS
    ]


async def test_namesakes_keep_their_own_files_across_runs(vendor: Emulator, tmp_path: Path) -> None:
    """Tracks of one name in two folders never overwrite each other, whichever run fetched them."""
    tracks = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tracks.append(tmp_path / folder / "song.mp3")
        tracks[-1].write_bytes(folder.encode() * 20_000)
    for batch in (tracks[1:], tracks, tracks[::-1]):
        async with connected(vendor, tmp_path / "journal.db") as session:
            async for outcome in session.extract_many(batch, tmp_path / "stems", stems=["bass"]):
                assert outcome.error is None
    names = ["song - bass (2).wav", "song - bass.wav"]
    assert sorted(there(tmp_path / "stems")) == names
    assert len(set(there(tmp_path / "stems").values())) == 2
    assert asked(vendor, "/files") == 2


async def test_namesakes_of_two_processes_keep_their_own_files(tmp_path: Path) -> None:
    """Tracks of one name that two processes fetch at once into one directory do not mix."""
    tracks = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tracks.append(track(tmp_path / folder))
    tracks[1].write_bytes(b"ID3" + bytes(30_000))
    slow = Fault("file", "slow_answer", seconds=1.0, **FOREVER)  # so that both are at it at once
    async with Emulator(seconds=0.3, separate=False, faults=[slow]) as vendor:
        async with AsyncExitStack() as stack:
            for song in tracks:
                each = await stack.enter_async_context(process(vendor, tmp_path, song, lease=20.0))
                stack.push_async_callback(each.wait)
        vendor.faults.clear()
        found = there(tmp_path / "stems")
        numbered = [f"song - {stem}{number}.wav" for stem in STEMS for number in (" (2)", "")]
        assert sorted(found) == sorted(numbered)
        records = await read(tmp_path / "journal.db")
        assert {
            Path(file.path).name: file.sha256 for each in records for file in each.files
        } == found
        async with connected(vendor, None) as session:
            for submission in vendor.submissions:
                await session.attach(submission.task_id).download(tmp_path / "reference")
        assert sorted(found.values()) == sorted(there(tmp_path / "reference").values())


async def test_two_processes_share_a_journal_without_doing_anything_twice(tmp_path: Path) -> None:
    """Started together on the same tracks, two processes submit each once and fetch each once."""
    tracks = [track(tmp_path, f"{number}.mp3") for number in range(12)]
    slow = Fault("file", "slow_answer", seconds=1.5, **FOREVER)  # so that one sees the other fetch
    async with Emulator(seconds=0.3, separate=False, faults=[slow]) as vendor:
        both = [process(vendor, tmp_path, *tracks, lease=20.0) for _ in range(2)]
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(each) for each in both]
            with anyio.fail_after(HANG):
                outs = [(await each.communicate())[0].decode() for each in running]
        for out in outs:
            lines = [json.loads(line) for line in out.splitlines()]
            assert sorted(each["track"] for each in lines if "track" in each) == sorted(
                path.name for path in tracks
            ), out
            assert not [each for each in lines if each.get("error")]
        assert Counter(each.file_name for each in vendor.submissions) == dict.fromkeys(
            [path.name for path in tracks], 1
        )
        assert asked(vendor, "/files") == len(tracks) * len(STEMS)
        vendor.faults.clear()
        assert there(tmp_path / "stems") == await reference(vendor, tmp_path / "reference", *tracks)


@pytest.mark.parametrize("lists", [True, False], ids=["a listing", "no listing"])
async def test_what_the_vendor_does_not_show_is_said_to_be_unknown(
    lists: bool, tmp_path: Path
) -> None:
    """A lost answer that nothing tells of is never sent again; the error says what to do."""
    journal = await written(tmp_path / "journal.db", lost())
    async with Emulator(seconds=0.05, separate=False, lists=lists) as vendor:
        async with connected(vendor, journal) as session:
            [job] = await session.resume()
            with anyio.fail_after(HANG), pytest.raises(SubmissionUnknownError) as caught:
                await job
        assert not vendor.submissions
        assert asked(vendor, "Extraction") == 0
    assert "not sent again by itself" in str(caught.value)
    assert f"session.bind({job.record.id!r}, task_id)" in str(caught.value)
    assert "force=True" in str(caught.value)
    assert ("could be: none" in str(caught.value)) is lists
    assert caught.value.job is job
    [record] = await read(journal)
    assert record.state is JobState.UNKNOWN


@pytest.mark.parametrize("entries", [1, 2])
async def test_an_ambiguous_listing_is_no_answer(entries: int, tmp_path: Path) -> None:
    """Two lost submits that fit the same entries are both unknown; the error names the entries."""
    journal = await written(tmp_path / "journal.db", lost("a"), lost("b"))
    async with Emulator(seconds=0.05, separate=False) as vendor:
        tasks = [await accepted_by(vendor) for _ in range(entries)]
        async with connected(vendor, journal) as session:
            jobs = await session.resume()
            for job in jobs:
                with anyio.fail_after(HANG), pytest.raises(SubmissionUnknownError) as caught:
                    await job
                assert all(task in str(caught.value) for task in tasks)
        assert len(vendor.submissions) == entries


async def test_the_same_batch_again_guesses_no_more_than_resume(tmp_path: Path) -> None:
    """Taken up one by one, lost tracks are weighed together: none takes another's."""
    tracks = [track(tmp_path, f"{name}.mp3") for name in "ab"]
    journal = tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False, lists=False) as vendor:
        vendor.script(Fault("submit", "drop_before_answer", **FOREVER))
        async with connected(vendor, journal) as session:
            jobs = [session.submit(path, stems=STEMS) for path in tracks]
        assert {type(job.exception()) for job in jobs} == {SubmissionUnknownError}
    async with Emulator(seconds=0.05, separate=False) as vendor:  # it has but one of the two
        await accepted_by(vendor)
        for record in await read(journal):
            await moved_back(journal, record)
        async with connected(vendor, journal) as session:
            jobs = [session.submit(path, stems=STEMS) for path in tracks]
            with anyio.fail_after(HANG):
                await asyncio.gather(*jobs, return_exceptions=True)
        assert {type(job.exception()) for job in jobs} == {SubmissionUnknownError}
        assert len(vendor.submissions) == 1


async def moved_back(path: Path, record: JobRecord) -> None:
    """Have a submit be sent a minute before it was."""
    async with Journal(path) as journal:
        await journal.claim()
        await journal.save(attrs.evolve(record, sent_at=(record.sent_at or 0.0) - 50.0))


async def test_a_lost_track_goes_on_with_the_task_that_the_user_found(tmp_path: Path) -> None:
    """Bound to its task it is waited for and downloaded where it was meant to; none is paid for."""
    song, stems, journal = track(tmp_path), tmp_path / "stems", tmp_path / "journal.db"
    async with Emulator(seconds=0.5, separate=False, lists=False) as vendor:
        vendor.script(Fault("submit", "drop_before_answer"))
        async with connected(vendor, journal) as session:
            [outcome] = [each async for each in session.extract_many([song], stems, stems=STEMS)]
            assert isinstance(outcome.error, SubmissionUnknownError)
            assert outcome.job is not None
            job = await session.bind(outcome.job.record.id, vendor.submissions[0].task_id)
            assert (await job).task_id == vendor.submissions[0].task_id
        assert len(vendor.submissions) == 1
        assert there(stems) == await reference(vendor, tmp_path / "reference", song)
    [record] = await read(journal)
    assert (record.state, len(record.files)) == (JobState.COMPLETED, len(STEMS))


async def test_a_task_that_was_found_is_checked_before_it_is_written_down(tmp_path: Path) -> None:
    """What is no task of the vendor's, or no job that waits for one, changes nothing."""
    journal = await written(tmp_path / "journal.db", lost(), lost("old", state=JobState.UNKNOWN))
    before = await read(journal)
    async with Emulator(seconds=0.05, separate=False, lists=False) as vendor:
        task = await accepted_by(vendor)
        async with connected(vendor, journal) as session:
            with pytest.raises(NotFoundError, match="task_id"):
                await session.bind("old", "00000000-0000-0000-0000-000000000000")
            with pytest.raises(InvalidOptionError, match="no task_id"):
                await session.bind("old", " ")
            with pytest.raises(InvalidOptionError, match="has no job 'olt'"):
                await session.bind("olt", task)
            assert await read(journal) == before
            await session.bind("old", task)
            with pytest.raises(
                InvalidOptionError, match=f"(?s)follows the job|has the task {task}"
            ):
                await session.bind("old", task)
            with pytest.raises(InvalidOptionError, match="is the job old's"):
                await session.bind("a", task)
        async with connected(vendor, None) as session:
            with pytest.raises(ConfigurationError, match="journal="):
                await session.bind("old", task)
        assert len(vendor.submissions) == 1


async def test_a_submit_that_is_under_way_elsewhere_is_not_taken_for_a_lost_one(
    tmp_path: Path,
) -> None:
    """An entry that another process may yet be answered with is left alone."""
    journal = tmp_path / "journal.db"
    await written(journal, lost("a", sent_at=time.time() - 10.0))
    async with (
        Emulator(seconds=0.05, separate=False) as vendor,
        Journal(journal) as elsewhere,
        connected(vendor, journal) as session,
    ):
        theirs = lost("b", sent_at=time.time() - 5.0)
        await elsewhere.enter(theirs)
        task = await accepted_by(vendor)
        [job] = await session.resume()
        await until(lambda: asked(vendor, "byUser") >= 2)
        assert job.task_id is None
        await elsewhere.save(attrs.evolve(theirs, task_id=task, state=JobState.WAITING))
        seen = asked(vendor, "byUser")
        await until(lambda: asked(vendor, "byUser") > seen)
        assert job.task_id is None
        mine = await accepted_by(vendor)
        assert (await job).task_id == mine


async def test_a_listing_that_fails_at_first_is_asked_again(tmp_path: Path) -> None:
    """One bad answer of the listing is no reason to call a submit unknown."""
    journal = await written(tmp_path / "journal.db", lost())
    async with Emulator(seconds=0.05, separate=False) as vendor:
        vendor.script(Fault("byUser", "status", status=502, body="html", times=2))
        task = await accepted_by(vendor)
        async with connected(vendor, journal) as session:
            [job] = await session.resume()
            with anyio.fail_after(HANG):
                assert (await job).task_id == task


@pytest.mark.parametrize("secret", [SECRET, None], ids=["a secret", "the journal's token"])
async def test_its_webhook_brings_a_lost_answer_in(
    secret: str | None, tmp_path: Path, free_tcp_port: int
) -> None:
    """Without a listing, a delivery to the restarted process names the lost task."""
    song, url = track(tmp_path), f"http://127.0.0.1:{free_tcp_port}/hooks"
    async with Emulator(seconds=2.0, separate=False, lists=False) as vendor:
        vendor.script(Fault("submit", "stall_answer"))
        async with process(vendor, tmp_path, song, port=free_tcp_port) as killed:
            await until(lambda: len(vendor.submissions) == 1)
            killed.kill()
        await nobody_holds(tmp_path / "journal.db")
        receiver = WebhookReceiver(url, secret=secret)
        async with (
            receiver.serve("127.0.0.1", free_tcp_port),
            connected(vendor, tmp_path / "journal.db", webhooks=receiver) as session,
        ):
            [job] = await session.resume()
            with anyio.fail_after(HANG):
                assert (await job).task_id == vendor.submissions[0].task_id
        assert len(vendor.submissions) == 1
        assert there(tmp_path / "stems") == await reference(vendor, tmp_path / "reference", song)


async def test_a_task_that_a_webhook_names_is_on_disk_once_it_is_acknowledged(
    tmp_path: Path, free_tcp_port: int
) -> None:
    """Killed before the vendor could be asked about it, a lost track still finds its task."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    receiver = WebhookReceiver(f"http://127.0.0.1:{free_tcp_port}/hooks", secret=SECRET)
    async with Emulator(seconds=0.2, separate=False, lists=False) as vendor:
        vendor.script(Fault("submit", "drop_before_answer"))
        vendor.script(Fault("byId", "stall_answer", **FOREVER))
        async with receiver.serve("127.0.0.1", free_tcp_port):
            session = await connected(vendor, journal, webhooks=receiver).start()
            session.submit(song, stems=STEMS)
            await until(lambda: any(each.status == 200 for each in vendor.deliveries))
            [record] = await read(journal)
            task_id = vendor.submissions[0].task_id
            assert (record.task_id, record.hinted_task) == (None, task_id)
            await session.aclose(drain=False)
        vendor.faults.clear()
        async with connected(vendor, journal) as session:  # with neither webhooks nor a listing
            [job] = await session.resume()
            with anyio.fail_after(HANG):
                assert (await job).task_id == task_id
        assert len(vendor.submissions) == 1


@pytest.mark.parametrize("hint", ["no task", "another job's"])
async def test_a_task_that_a_webhook_named_wrongly_is_nobodys(hint: str, tmp_path: Path) -> None:
    """What the vendor does not know, or another job has, brings no lost track in."""
    journal = tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False, lists=False) as vendor:
        task_id = await accepted_by(vendor)
        known = lost("b", task_id=task_id, state=JobState.COMPLETED)
        hinted = task_id if hint == "another job's" else "00000000-0000-0000-0000-000000000000"
        await written(journal, known, lost("a", hinted_task=hinted))
        async with connected(vendor, journal) as session:
            [job] = await session.resume()
            with anyio.fail_after(HANG), pytest.raises(SubmissionUnknownError):
                await job
        assert job.task_id is None


async def test_a_webhook_that_came_while_nobody_was_there_is_not_waited_for(
    tmp_path: Path, free_tcp_port: int
) -> None:
    """A job that finished during the outage is looked at when it is taken up, not minutes later."""
    song, url = track(tmp_path), f"http://127.0.0.1:{free_tcp_port}/hooks"
    async with Emulator(seconds=1.0, separate=False, webhooks="lost") as vendor:
        async with process(vendor, tmp_path, song, port=free_tcp_port) as killed:
            await until(lambda: len(vendor.submissions) == 1)
            while not [each for each in await read(tmp_path / "journal.db") if each.task_id]:
                await anyio.sleep(0.01)
            killed.kill()
        await until(lambda: vendor.unfinished == 0)
        await nobody_holds(tmp_path / "journal.db")
        receiver = WebhookReceiver(url, secret=SECRET)
        async with (
            receiver.serve("127.0.0.1", free_tcp_port),
            connected(vendor, tmp_path / "journal.db", webhooks=receiver) as session,
        ):
            [job] = await session.resume()
            with anyio.fail_after(HANG / 2):  # a lost webhook is held for lost after a minute
                await job


async def test_an_answer_on_its_way_while_the_session_lets_go_is_kept(tmp_path: Path) -> None:
    """Closed while an answer is due, the session writes it down: nothing is unknown."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False, lists=False) as vendor:
        vendor.script(Fault("submit", "slow_answer", seconds=0.7))
        session = await connected(vendor, journal).start()
        session.submit(song, stems=STEMS)
        await until(lambda: len(vendor.submissions) == 1)
        await session.aclose(drain=False)
        [record] = await read(journal)
        assert record.task_id == vendor.submissions[0].task_id
        async with connected(vendor, journal) as session:
            [job] = await session.resume()
            await job
        assert len(vendor.submissions) == 1


async def test_a_track_that_changed_in_line_is_not_sent_under_its_old_name(
    vendor: Emulator, tmp_path: Path
) -> None:
    """The changed track may have been submitted since: it is refused, and paid for once."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    await written(journal, lost("old", source=str(song), state=JobState.QUEUED, sent_at=None))
    async with connected(vendor, journal) as session:
        await session.submit(song, stems=STEMS)
        [job] = await session.resume()
        with pytest.raises(SourceChangedError, match="submit it again"):
            await job
    assert len(vendor.submissions) == 1


async def chunks() -> AsyncIterator[bytes]:
    """A track that comes in pieces."""
    for _ in range(3):
        yield b"ID3" * 1000


@pytest.mark.parametrize("kind", ["bytes", "stream"])
async def test_bytes_and_streams_cannot_be_taken_up_by_themselves(
    vendor: Emulator, kind: str, tmp_path: Path
) -> None:
    """What cannot be read again says so; given again it is submitted, the same bytes only once."""

    def source() -> Any:
        return ("song.mp3", b"ID3" * 3000 if kind == "bytes" else chunks())

    journal = tmp_path / "journal.db"
    vendor.script(Fault("submit", "status", status=429, retry_after=60))
    session = connected(vendor, journal)
    await session.start()
    job: ExtractionJob = session.submit(source(), stems=STEMS)
    await until(lambda: asked(vendor, "Extraction") == 1 and job.state is JobState.QUEUED)
    await session.aclose(drain=False)
    async with connected(vendor, journal) as session:
        [job] = await session.resume()
        with pytest.raises(SourceError, match="submit it anew"):
            await job
        for _ in range(2):
            await session.submit(source(), stems=STEMS)
    assert len(vendor.submissions) == (1 if kind == "bytes" else 2)


async def test_a_damaged_journal_stops_the_session_before_anything_is_sent(
    vendor: Emulator, tmp_path: Path
) -> None:
    """A file that is no journal is named, left as it is, and nothing is submitted without it."""
    journal = tmp_path / "journal.db"
    await written(journal, lost())
    damaged = journal.read_bytes()[:50] + b"\xff" * 5000
    journal.write_bytes(damaged)
    with pytest.raises(JournalError, match="left as it is"):
        await connected(vendor, journal).start()
    assert journal.read_bytes() == damaged
    assert not vendor.requests


async def test_resuming_without_a_journal_says_what_is_missing(session: MusicGPTSession) -> None:
    """resume() needs a journal and says how to give one."""
    with pytest.raises(ConfigurationError, match="journal="):
        await session.resume()
