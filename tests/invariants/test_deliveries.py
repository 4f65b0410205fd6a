"""A webhook wakes, the API answers: what a delivery says alone changes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from musicgpt_async import JobState, Limits, MusicGPTError
from musicgpt_async.emulator import Emulator, Fault, WebhookDelivery
from musicgpt_async.testing import accelerated_loop

pytestmark = pytest.mark.anyio

STEMS = ["bass"]
ODD = {
    "a lone surrogate": "\ud800",
    "a surrogate within a name": "3f\udfff-77",
    "blanks": "  \n ",
    "a NUL": "a\0b",
    "most of a MiB": "t" * (400 << 10),
    "a sentence": "see https://example.com/?a=b&c=d#e \u202e",
}


async def deliver(url: str, **payload: Any) -> int:
    """Post a delivery with these words; return how it was answered."""
    body = json.dumps({"success": True, "conversion_type": "Extraction", **payload})
    headers = {"Content-Type": "application/json"}
    data = io.BytesIO(body.encode())
    async with aiohttp.request("POST", url, data=data, headers=headers) as answer:
        return answer.status


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
async def test_a_nonsense_task_brings_no_lost_answer_in(
    odd: str,
    connect: Any,
    open_receiver: Any,
    make_track: Any,
    paid: Any,
    tmp_path: Path,
    read_records: Any,
    until: Any,
) -> None:
    """A lost answer, then a delivery of an impossible task: nothing that is stored changes."""
    path = tmp_path / "journal.db"
    lost = Fault("submit", "drop_before_answer")
    vendor = Emulator(seconds=0.1, separate=False, webhooks="lost", listing=False, faults=[lost])
    async with vendor, open_receiver() as receiver:
        async with connect(vendor, journal=path, webhooks=receiver) as session:
            job = session.submit(make_track(), stems=STEMS)
            await until(lambda: job.state is JobState.UNACKNOWLEDGED and lost_was_seen(vendor))
            [before] = await read_records(path, once=lambda record: record.sent_at)
            url = vendor.submissions[0].webhook_url or ""
            await deliver(url, task_id=odd, conversion_id=odd)
            [after] = await read_records(path)
            assert after == before
            assert await deliver(url, task_id=vendor.submissions[0].task_id) == 200
            assert (await job).task_id == vendor.submissions[0].task_id
        [record] = await read_records(path)
        assert (record.state, record.task_id) == (JobState.COMPLETED, job.task_id)
        assert paid(vendor) == {"song.mp3": 1}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
async def test_a_nonsense_task_before_the_answer_spoils_no_record(
    odd: str,
    connect: Any,
    open_receiver: Any,
    make_track: Any,
    tmp_path: Path,
    read_records: Any,
    until: Any,
) -> None:
    """The answer comes after a nonsense delivery: the accepted job is on disk while it runs."""
    path = tmp_path / "journal.db"
    late = Fault("submit", "slow_answer", seconds=0.3)
    vendor = Emulator(seconds=60, separate=False, webhooks="lost", faults=[late])
    async with vendor, open_receiver() as receiver:
        session = await connect(vendor, journal=path, webhooks=receiver).start()
        job = session.submit(make_track(), stems=STEMS)
        await until(lambda: vendor.submissions)
        await deliver(vendor.submissions[0].webhook_url or "", task_id=odd)
        await job.accepted()
        [record] = await read_records(path, once=lambda record: record.task_id)
        assert (record.state, record.task_id) == (JobState.PROCESSING, job.task_id)


def lost_was_seen(vendor: Emulator) -> bool:
    """Return whether the vendor has dropped the answer to a submit."""
    return vendor.faults.fired("drop_before_answer") == 1


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
async def test_a_nonsense_delivery_changes_no_accepted_job(
    odd: str,
    connect: Any,
    open_receiver: Any,
    make_track: Any,
    tmp_path: Path,
    read_records: Any,
) -> None:
    """An accepted job's record is after nonsense deliveries what it was before, and it runs on."""
    path = tmp_path / "journal.db"
    vendor = Emulator(seconds=60, separate=False, webhooks="lost")
    async with vendor, open_receiver() as receiver:
        session = await connect(vendor, journal=path, webhooks=receiver).start()
        job = session.submit(make_track(), stems=STEMS)
        await job.accepted()
        [before] = await read_records(path, once=lambda record: record.task_id)
        url = vendor.submissions[0].webhook_url or ""
        for told in ({"task_id": odd}, {"task_id": odd, "conversion_id": odd}, {}):
            await deliver(url, **told)
        await anyio.sleep(0.1)
        [after] = await read_records(path)
        assert after == before
        assert job.state is JobState.PROCESSING


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": accelerated_loop(20)})], ids=["hasty"]
)
@pytest.mark.hang(120.0)
async def test_deliveries_repeated_for_one_job_starve_no_other(
    connect: Any, open_receiver: Any, make_track: Any
) -> None:
    """Two deliveries a second for a job that never ends leave the others their polls."""
    vendor = Emulator(
        seconds=8,
        separate=False,
        webhooks="lost",
        polls_per_minute=None,
        faults=[Fault("job", "never_finishes", after=1)],
    )
    async with vendor, open_receiver() as receiver:
        other = await connect(vendor).start()
        quiet = await other.submit(make_track("quiet.mp3")).accepted()
        limits = Limits(parallel=5, polls_per_minute=20)
        session = await connect(vendor, webhooks=receiver, limits=limits).start()
        spam = session.submit(make_track("spam.mp3"))
        await spam.accepted()
        url = vendor.submissions[-1].webhook_url or ""

        async def keep_delivering() -> None:
            while True:
                await deliver(url, task_id=spam.task_id)
                await anyio.sleep(0.5)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_delivering)
            await anyio.sleep(60)  # the budget's minute is used up by then
            attached = session.attach(quiet.task_id)
            began = anyio.current_time()
            assert await attached
            assert anyio.current_time() - began < 30
            tasks.cancel_scope.cancel()


async def test_no_repr_shows_a_token(
    connect: Any,
    open_receiver: Any,
    make_track: Any,
    tmp_path: Path,
    read_records: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No repr of the library's objects shows enough to forge a delivery."""
    caplog.set_level("DEBUG", logger="musicgpt_async")
    path = tmp_path / "journal.db"
    async with Emulator(seconds=0.1, separate=False) as vendor, open_receiver() as receiver:
        session = await connect(vendor, journal=path, webhooks=receiver).start()
        events = session.events()
        job = session.submit(make_track(), stems=STEMS)
        await job.accepted()
        records = await read_records(path)
        outcomes = [
            each async for each in session.extract_many([("b.mp3", b"ID3" + bytes(99))], tmp_path)
        ]
        extraction = await job
        told: list[Any] = [session, events, job, *records, *outcomes, extraction, receiver]
        await session.aclose()
        told += [event async for event in events]
        try:
            await session.extract(("c.mp3", b"ID3"), tmp_path)
        except MusicGPTError as error:
            told += [error, error.__dict__, repr(error.__cause__)]
        tokens = [(each.webhook_url or "").rpartition("/")[2] for each in vendor.submissions]
    shown = [repr(each) for each in told] + [caplog.text]
    for token in tokens:
        for piece in token.split("."):
            assert not [each for each in shown if piece in each]


async def test_a_task_is_not_believed_because_its_poll_failed(
    connect: Any, open_receiver: Any
) -> None:
    """A lost response, a delivery of another task while byId fails: the true delivery counts."""
    faults = [
        Fault("submit", "drop_before_answer"),
        Fault("byId", "status", status=503, early=True),
    ]
    deliveries = (WebhookDelivery(other_task=True), WebhookDelivery(delay=1.0))
    vendor = Emulator(seconds=0.1, separate=False, webhooks=deliveries, faults=faults)
    async with vendor, open_receiver() as receiver:
        session = await connect(vendor, webhooks=receiver).start()
        extraction = await session.submit(make_source("song.mp3"), stems=STEMS)
        assert extraction.task_id == vendor.submissions[0].task_id


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": accelerated_loop(200)})], ids=["accelerated"]
)
@pytest.mark.hang(1200.0)
async def test_a_lost_response_ends_though_its_confirmation_is_throttled(
    connect: Any, open_receiver: Any
) -> None:
    """Polls get 429 for ever: a lost response that its webhook named ends after its deadline."""
    faults = [
        Fault("submit", "drop_before_answer"),
        Fault("byId", "status", status=429, times=None, early=True),
    ]
    async with Emulator(seconds=0.1, separate=False, faults=faults) as vendor, open_receiver() as r:
        session = await connect(vendor, webhooks=r, deadline=60.0).start()
        with pytest.raises(MusicGPTError):
            await session.submit(make_source("song.mp3"), stems=STEMS)


def make_source(name: str) -> tuple[str, bytes]:
    """Return a track in memory."""
    return name, b"ID3" + bytes(3000)
