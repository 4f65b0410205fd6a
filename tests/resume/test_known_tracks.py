"""Tracks that the journal knows are neither submitted nor fetched again."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from factories.runs import (
    FOREVER,
    HANG,
    STEMS,
    asked,
    lost,
    process,
    read,
    reference,
    there,
    track,
    written,
)
from factories.sessions import connected
from factories.watching import until

from musicgpt_async import (
    ConfigurationError,
    ExtractionJob,
    JobDetachedError,
    JobState,
    JournalError,
    MusicGPTSession,
    SourceChangedError,
    SourceError,
)
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.events import Completed

pytestmark = pytest.mark.anyio


async def test_what_is_done_is_neither_submitted_nor_downloaded_again(tmp_path: Path) -> None:
    """After a clean end nothing is resumed, and the same batch sends no call to MusicGPT."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False) as vendor:
        async with connected(vendor, journal) as session:
            await session.extract(song, tmp_path / "stems", stems=STEMS)
        before = there(tmp_path / "stems"), len(vendor.requests)
        async with connected(vendor, journal) as session:
            assert await session.resume() == []
            await session.extract(song, tmp_path / "stems", stems=STEMS)
        assert (there(tmp_path / "stems"), len(vendor.requests)) == before


async def test_a_known_tracks_events_end_without_a_download(tmp_path: Path) -> None:
    """A directory from an earlier run is not a download that was requested now."""
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


async def test_a_damaged_file_is_downloaded_again(tmp_path: Path) -> None:
    """Files on disk are compared with the journal, and only differing ones are downloaded."""
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
        await until(lambda: second._job.record.fingerprint and session.slots[0] == 1)
        first.cancel()
        with anyio.fail_after(HANG):
            extraction = await second
        assert isinstance(first.exception(), JobDetachedError)
        assert extraction.task_id == vendor.submissions[0].task_id
        assert len(vendor.submissions) == 1


async def test_resumed_handles_can_be_downloaded_explicitly(
    vendor: Emulator, tmp_path: Path
) -> None:
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
async def test_resumed_tracks_are_saved_in_the_directory_of_the_first_run(
    is_begun: bool, tmp_path: Path
) -> None:
    """Directory, layout and format are those of the first run, not of the resuming session."""
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
    names = ["song (2) - bass.wav", "song - bass.wav"]
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
        numbered = [f"song{number} - {stem}.wav" for stem in STEMS for number in (" (2)", "")]
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
    """Started together on the same tracks, two processes submit each once and share the downloads.

    Of two that look at one moment both may download a file, so the count is not exact.
    """
    tracks = [track(tmp_path, f"{number}.mp3") for number in range(12)]
    slow = Fault("file", "slow_answer", seconds=1.5, **FOREVER)  # so that one sees the other fetch
    async with Emulator(seconds=0.3, separate=False, faults=[slow]) as vendor:
        both = [process(vendor, tmp_path, *tracks, lease=20.0) for _ in range(2)]
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(each) for each in both]
            with anyio.fail_after(HANG):
                outs = [(await each.read()).decode() for each in running]
        for out in outs:
            lines = [json.loads(line) for line in out.splitlines()]
            assert sorted(each["track"] for each in lines if "track" in each) == sorted(
                path.name for path in tracks
            ), out
            assert not [each for each in lines if each.get("error")]
        assert Counter(each.file_name for each in vendor.submissions) == dict.fromkeys(
            [path.name for path in tracks], 1
        )
        assert asked(vendor, "/files") < 1.5 * len(tracks) * len(STEMS)
        vendor.faults.clear()
        assert there(tmp_path / "stems") == await reference(vendor, tmp_path / "reference", *tracks)


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
async def test_bytes_and_streams_cannot_be_resumed_by_themselves(
    vendor: Emulator, kind: str, tmp_path: Path
) -> None:
    """A source that cannot be read again says so; given again, the same bytes are sent once."""

    def source() -> Any:
        return ("song.mp3", b"ID3" * 3000 if kind == "bytes" else chunks())

    journal = tmp_path / "journal.db"
    vendor.script(Fault("submit", "status", status=429, retry_after=3))
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
    """A file that is not a journal is named and left unchanged, and nothing is submitted."""
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
