"""Submits whose response was lost: what recovers their tasks, and the errors otherwise."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import anyio
import attrs
import pytest
from factories.runs import (
    FOREVER,
    HANG,
    SECRET,
    STEMS,
    accepted_by,
    asked,
    lost,
    process,
    read,
    reference,
    there,
    track,
    until_leases_expire,
    written,
)
from factories.sessions import connected, free_port
from factories.watching import until

from musicgpt_async import (
    ConfigurationError,
    InvalidOptionError,
    JobState,
    NotFoundError,
    SubmissionUnknownError,
    WebhookReceiver,
)
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("listing", [True, False], ids=["a listing", "no listing"])
async def test_what_the_vendor_does_not_show_is_said_to_be_unknown(
    listing: bool, tmp_path: Path
) -> None:
    """An unrecoverable submit is never sent again; the error says what to do."""
    journal = await written(tmp_path / "journal.db", lost())
    async with Emulator(seconds=0.05, separate=False, listing=listing) as vendor:
        async with connected(vendor, journal) as session:
            [job] = await session.resume()
            with anyio.fail_after(HANG), pytest.raises(SubmissionUnknownError) as caught:
                await job
        assert not vendor.submissions
        assert asked(vendor, "Extraction") == 0
    assert "not sent again by itself" in str(caught.value)
    assert f"session.bind({job._job.record.id!r}, task_id)" in str(caught.value)
    assert "force=True" in str(caught.value)
    assert ("could be: none" in str(caught.value)) is listing
    assert caught.value.job is job
    [record] = await read(journal)
    assert record.state is JobState.UNKNOWN


async def test_an_entry_that_appears_later_is_found(tmp_path: Path) -> None:
    """A task may be listed only seconds after its track was delivered: the search is repeated."""
    journal = await written(tmp_path / "journal.db", lost(sent_at=time.time()))
    async with (
        Emulator(seconds=0.05, separate=False) as vendor,
        connected(vendor, journal) as session,
    ):
        [job] = await session.resume()
        await until(lambda: asked(vendor, "byUser") >= 1)
        task_id = await accepted_by(vendor)
        with anyio.fail_after(HANG):
            assert (await job).task_id == task_id


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
    """Lost tracks that are resumed one by one are reconciled together, and none is mixed up."""
    tracks = [track(tmp_path, f"{name}.mp3") for name in "ab"]
    journal = tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False, listing=False) as vendor:
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
        await journal._claim()
        await journal._save(attrs.evolve(record, sent_at=(record.sent_at or 0.0) - 50.0))


async def test_a_lost_track_continues_with_the_task_that_the_user_binds(tmp_path: Path) -> None:
    """After bind() the job is awaited and downloaded to its directory, without a second payment."""
    song, stems, journal = track(tmp_path), tmp_path / "stems", tmp_path / "journal.db"
    async with Emulator(seconds=0.5, separate=False, listing=False) as vendor:
        vendor.script(Fault("submit", "drop_before_answer"))
        async with connected(vendor, journal) as session:
            [outcome] = [each async for each in session.extract_many([song], stems, stems=STEMS)]
            assert isinstance(outcome.error, SubmissionUnknownError)
            assert outcome.job is not None
            job = await session.bind(outcome.job._job.record.id, vendor.submissions[0].task_id)
            assert (await job).task_id == vendor.submissions[0].task_id
        assert len(vendor.submissions) == 1
        assert there(stems) == await reference(vendor, tmp_path / "reference", song)
    [record] = await read(journal)
    assert (record.state, len(record.files)) == (JobState.COMPLETED, len(STEMS))


async def test_a_task_that_was_found_is_checked_before_it_is_written_down(tmp_path: Path) -> None:
    """An unknown task, or a job that needs none, changes nothing."""
    journal = await written(tmp_path / "journal.db", lost(), lost("old", state=JobState.UNKNOWN))
    before = await read(journal)
    async with Emulator(seconds=0.05, separate=False, listing=False) as vendor:
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


@pytest.mark.long
async def test_a_submit_that_is_under_way_elsewhere_is_not_taken_for_a_lost_one(
    tmp_path: Path,
) -> None:
    """An entry that may belong to another process's pending submit is not assigned."""
    journal = tmp_path / "journal.db"
    await written(journal, lost("a", sent_at=time.time() - 10.0))
    async with (
        Emulator(seconds=0.05, separate=False) as vendor,
        Journal(journal) as elsewhere,
        connected(vendor, journal) as session,
    ):
        theirs = lost("b", sent_at=time.time() - 5.0)
        await elsewhere._add_or_get(theirs)
        task = await accepted_by(vendor)
        [job] = await session.resume()
        await until(lambda: asked(vendor, "byUser") >= 2)
        assert job.task_id is None
        await elsewhere._save(attrs.evolve(theirs, task_id=task, state=JobState.PROCESSING))
        seen = asked(vendor, "byUser")
        await until(lambda: asked(vendor, "byUser") > seen)
        assert job.task_id is None
        mine = await accepted_by(vendor)
        assert (await job).task_id == mine


async def test_a_listing_that_fails_at_first_is_asked_again(tmp_path: Path) -> None:
    """One failed response of the listing does not make a submit unknown."""
    journal = await written(tmp_path / "journal.db", lost())
    async with Emulator(seconds=0.05, separate=False) as vendor:
        vendor.script(Fault("byUser", "status", status=502, body="html", times=2))
        task = await accepted_by(vendor)
        async with connected(vendor, journal) as session:
            [job] = await session.resume()
            with anyio.fail_after(HANG):
                assert (await job).task_id == task


@pytest.mark.parametrize("secret", [SECRET, None], ids=["a secret", "the journal's token"])
async def test_its_webhook_recovers_a_lost_response(secret: str | None, tmp_path: Path) -> None:
    """Without a listing, a delivery to the restarted process names the lost task."""
    port = free_port()
    song, url = track(tmp_path), f"http://127.0.0.1:{port}/hooks"
    async with Emulator(seconds=2.0, separate=False, listing=False) as vendor:
        vendor.script(Fault("submit", "stall_answer"))
        async with process(vendor, tmp_path, song, port=port) as killed:
            await until(lambda: len(vendor.submissions) == 1)
            killed.kill()
        await until_leases_expire(tmp_path / "journal.db")
        receiver = WebhookReceiver(url, secret=secret)
        async with (
            receiver.serve("127.0.0.1", port),
            connected(vendor, tmp_path / "journal.db", webhooks=receiver) as session,
        ):
            [job] = await session.resume()
            with anyio.fail_after(HANG):
                assert (await job).task_id == vendor.submissions[0].task_id
        assert len(vendor.submissions) == 1
        assert there(tmp_path / "stems") == await reference(vendor, tmp_path / "reference", song)


async def test_a_task_that_a_webhook_names_is_on_disk_once_it_is_acknowledged(
    tmp_path: Path,
) -> None:
    """A process killed before it polled the named task still finds it after a restart."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    port = free_port()
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/hooks", secret=SECRET)
    async with Emulator(seconds=0.2, separate=False, listing=False) as vendor:
        vendor.script(Fault("submit", "drop_before_answer"))
        vendor.script(Fault("byId", "stall_answer", **FOREVER))
        async with receiver.serve("127.0.0.1", port):
            session = await connected(vendor, journal, webhooks=receiver).start()
            session.submit(song, stems=STEMS)
            await until(lambda: any(each.status == 200 for each in vendor.deliveries))
            [record] = await read(journal)
            task_id = vendor.submissions[0].task_id
            assert (record.task_id, record.candidate_task_id) == (None, task_id)
            await session.aclose(drain=False)
        vendor.faults.clear()
        async with connected(vendor, journal) as session:  # with neither webhooks nor a listing
            [job] = await session.resume()
            with anyio.fail_after(HANG):
                assert (await job).task_id == task_id
        assert len(vendor.submissions) == 1


@pytest.mark.long
@pytest.mark.parametrize("hint", ["no task", "another job's"])
async def test_a_task_that_a_webhook_named_wrongly_is_nobodys(hint: str, tmp_path: Path) -> None:
    """A task that MusicGPT does not know, or that another job has, is not adopted."""
    journal = tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False, listing=False) as vendor:
        task_id = await accepted_by(vendor)
        known = lost("b", task_id=task_id, state=JobState.COMPLETED)
        hinted = task_id if hint == "another job's" else "00000000-0000-0000-0000-000000000000"
        await written(journal, known, lost("a", candidate_task_id=hinted))
        async with connected(vendor, journal) as session:
            [job] = await session.resume()
            with anyio.fail_after(HANG), pytest.raises(SubmissionUnknownError):
                await job
        assert job.task_id is None


async def test_a_webhook_during_an_outage_is_not_waited_for(tmp_path: Path) -> None:
    """A job that finished during the outage is polled when it is resumed, not minutes later."""
    port = free_port()
    song, url = track(tmp_path), f"http://127.0.0.1:{port}/hooks"
    async with Emulator(seconds=1.0, separate=False, webhooks="lost") as vendor:
        async with process(vendor, tmp_path, song, port=port) as killed:
            await until(lambda: len(vendor.submissions) == 1)
            while not [each for each in await read(tmp_path / "journal.db") if each.task_id]:
                await anyio.sleep(0.01)
            killed.kill()
        await until(lambda: vendor.unfinished == 0)
        await until_leases_expire(tmp_path / "journal.db")
        receiver = WebhookReceiver(url, secret=SECRET)
        async with (
            receiver.serve("127.0.0.1", port),
            connected(vendor, tmp_path / "journal.db", webhooks=receiver) as session,
        ):
            [job] = await session.resume()
            with anyio.fail_after(HANG / 2):  # a lost webhook is held for lost after a minute
                await job


async def test_a_response_during_the_detach_is_saved(tmp_path: Path) -> None:
    """If the session closes before the response arrives, it saves the response."""
    song, journal = track(tmp_path), tmp_path / "journal.db"
    async with Emulator(seconds=0.05, separate=False, listing=False) as vendor:
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
