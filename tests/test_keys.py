"""Keys: the caller's own name for a piece of work, which is never paid for twice."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from factories.sessions import SOUND, connected

from musicgpt_async import (
    BatchItem,
    ExtractionFailedError,
    InvalidOptionError,
    JobDetachedError,
    MusicGPTSession,
    SubmissionUnknownError,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

OTHER_SOUND = SOUND + b"\x01" * 500


@pytest.mark.parametrize("with_journal", [False, True])
async def test_the_same_key_is_one_job_whatever_the_track(
    with_journal: bool, vendor: Emulator, tmp_path: Path
) -> None:
    """At once and after its end: other paths and contents with the same key cost nothing."""
    paths = [tmp_path / "here.mp3", tmp_path / "there.mp3"]
    for path, sound in zip(paths, (SOUND, OTHER_SOUND), strict=True):
        path.write_bytes(sound)
    async with connected(vendor, tmp_path / "journal.db" if with_journal else None) as session:
        jobs = [session.submit(path, stems=["bass"], key="order-17") for path in paths]
        tasks = {(await job).task_id for job in jobs}
        late = session.submit(tmp_path / "missing.mp3", stems=["bass"], key="order-17")
        tasks.add((await late).task_id)
        files = await late.download(tmp_path / "stems")
    assert len(vendor.submissions) == len(tasks) == 1
    assert list(files) == ["bass"]


async def test_a_key_holds_in_another_session_on_the_journal(
    vendor: Emulator, tmp_path: Path
) -> None:
    """A task that is delivered again, on a machine without the file, gets the first one's stems."""
    journal = tmp_path / "journal.db"
    async with connected(vendor, journal) as session:
        first = await session.submit(("song.mp3", SOUND), stems=["bass"], key="order-17")
    async with connected(vendor, journal) as session:
        source = tmp_path / "not" / "here.mp3"
        files = await session.extract(source, tmp_path, stems=["bass"], key="order-17")
    assert [each.task_id for each in vendor.submissions] == [first.task_id]
    assert files["bass"].is_file()


async def test_two_sessions_with_one_key_pay_once(tmp_path: Path) -> None:
    """Of two sessions that submit the same key at once one submits and the other follows."""
    async with (
        Emulator(seconds=0.3, separate=False) as vendor,
        connected(vendor, tmp_path / "journal.db") as one,
        connected(vendor, tmp_path / "journal.db") as other,
    ):
        jobs = [each.submit(("a.mp3", SOUND), key="k") for each in (one, other)]
        tasks = {(await job).task_id for job in jobs}
    assert len(vendor.submissions) == len(tasks) == 1


async def test_other_keys_are_other_jobs(vendor: Emulator, tmp_path: Path) -> None:
    """One track with two keys, or with a key and without one, is as many pieces of work."""
    async with connected(vendor, tmp_path / "journal.db") as session:
        for key in ("a", "b", None):
            await session.submit(("song.mp3", SOUND), key=key)
    assert len(vendor.submissions) == 3


@pytest.mark.parametrize("with_journal", [False, True])
async def test_a_key_with_other_options_is_refused(
    with_journal: bool, vendor: Emulator, tmp_path: Path
) -> None:
    """The error names both, nothing is paid, the first job stays, and force= pays on purpose."""
    async with connected(vendor, tmp_path / "journal.db" if with_journal else None) as session:
        first = session.submit(("song.mp3", SOUND), stems=["bass", "drums"], key="k")
        await first
        with pytest.raises(InvalidOptionError, match=r"bass, drums.*now stems: vocals") as caught:
            await session.submit(("song.mp3", SOUND), stems=["vocals"], key="k")
        assert first.id in str(caught.value)
        again = await session.submit(("song.mp3", SOUND), stems=["drums", "bass"], key="k")
        assert again.task_id == first.task_id
        assert len(vendor.submissions) == 1
        await session.submit(("song.mp3", SOUND), stems=["vocals"], key="k", force=True)
    assert len(vendor.submissions) == 2


async def test_a_refused_key_leaves_the_job_to_a_resume(tmp_path: Path) -> None:
    """What asks for a key with other options takes its unfinished job from no other handle."""
    async with Emulator(seconds=600.0, separate=False) as vendor:
        async with connected(vendor, tmp_path / "journal.db") as session:
            first = session.submit(("song.mp3", SOUND), stems=["bass"], key="k")
            await first.accepted()
            await session.aclose(drain=False)
        async with connected(vendor, tmp_path / "journal.db") as session:
            with pytest.raises(InvalidOptionError):
                await session.submit(("song.mp3", SOUND), stems=["vocals"], key="k")
            with anyio.fail_after(20):
                while not (jobs := await session.resume()):
                    await anyio.sleep(0.01)
            assert [job.task_id for job in jobs] == [first.task_id]
            await session.aclose(drain=False)
        assert len(vendor.submissions) == 1


@pytest.mark.parametrize("with_journal", [False, True])
async def test_a_key_whose_job_failed_may_be_submitted_again(
    with_journal: bool, vendor: Emulator, tmp_path: Path
) -> None:
    """MusicGPT's own verdict of failure frees a key, as it frees a track."""
    vendor.script(Fault("job", "fails"))
    async with connected(vendor, tmp_path / "journal.db" if with_journal else None) as session:
        with pytest.raises(ExtractionFailedError):
            await session.submit(("song.mp3", SOUND), key="k")
        await session.submit(("song.mp3", SOUND), key="k")
    assert len(vendor.submissions) == 2


async def test_a_key_whose_handle_was_cancelled_is_resumed(session: MusicGPTSession) -> None:
    """Without a journal too, a job that MusicGPT has is followed again and not submitted again."""
    first = session.submit(("song.mp3", SOUND), key="k")
    task_id = (await first.accepted()).task_id
    first.cancel()
    with pytest.raises(JobDetachedError):
        await first
    assert (await session.submit(("song.mp3", SOUND), key="k")).task_id == task_id


async def test_a_key_whose_response_was_lost_is_not_sent_again(
    vendor: Emulator, session: MusicGPTSession
) -> None:
    """Without a journal too, a job that may be running is looked for in the listing instead."""
    vendor.script(Fault("submit", "drop_before_answer"))
    with pytest.raises(SubmissionUnknownError):
        await session.submit(("song.mp3", SOUND), key="k")
    with anyio.fail_after(20):
        found = await session.submit(("song.mp3", SOUND), key="k")
    assert [each.task_id for each in vendor.submissions] == [found.task_id]


async def test_a_stream_with_a_known_key_is_not_read(session: MusicGPTSession) -> None:
    """A key is looked up before the source is opened."""
    read = 0

    class Source:
        def read(self, size: int) -> bytes:
            nonlocal read
            read += 1
            return SOUND[:size] if read == 1 else b""

    await session.submit(("song.mp3", SOUND), key="k")
    await session.submit(("song.mp3", Source()), key="k")
    assert read == 0


async def test_items_of_a_batch_have_keys(vendor: Emulator, tmp_path: Path) -> None:
    """Two tracks of one key in a batch have an outcome each, and are paid for once."""
    names = ("a.mp3", "b.mp3")
    items = [BatchItem(source=(name, SOUND), options={"key": "k"}) for name in names]
    async with connected(vendor, tmp_path / "journal.db") as session:
        outcomes = [each async for each in session.extract_many(items, tmp_path, stems=["bass"])]
    assert [each.ok for each in outcomes] == [True, True]
    assert len(vendor.submissions) == 1


@pytest.mark.parametrize("key", ["", "  ", 7, b"k", "k" * 1025, "a\0b", "\ud800"])
async def test_a_key_that_cannot_be_one_is_refused_in_the_call(
    key: object, vendor: Emulator, session: MusicGPTSession
) -> None:
    """Nothing is submitted with a key that no database could store."""
    with pytest.raises(InvalidOptionError, match="key="):
        session.submit(("song.mp3", SOUND), key=key)  # type: ignore[arg-type]
    assert not vendor.submissions
