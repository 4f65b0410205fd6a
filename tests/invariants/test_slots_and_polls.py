"""Slots are true, one budget for all polls, and a pause that was asked for is kept."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any, Self

import anyio
import pytest

import musicgpt_async
from musicgpt_async import JobState, Limits, SubmissionUnknownError
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.testing import accelerated_loop

pytestmark = pytest.mark.anyio

AUDIO = b"ID3" + bytes(3000)
SPEED = 20
HASTY = [
    pytest.mark.parametrize(
        "anyio_backend", [("asyncio", {"loop_factory": accelerated_loop(SPEED)})], ids=["hasty"]
    ),
    pytest.mark.hang(300.0),
]


def hasty(test: Any) -> Any:
    """Run a test on a loop whose seconds are twentieths."""
    for mark in HASTY:
        test = mark(test)
    return test


def posts(vendor: Emulator) -> list[float]:
    """Return when submits arrived at the vendor, in seconds of the loop's clock."""
    return [each.at * SPEED for each in vendor.requests if each.method == "POST"]


def polls(vendor: Emulator) -> list[float]:
    """Return when polls arrived at the vendor, in seconds of the loop's clock."""
    return [each.at * SPEED for each in vendor.requests if "byId" in each.path]


async def test_lost_answers_hold_no_slots(connect: Any, open_receiver: Any) -> None:
    """Two lost answers whose webhooks are awaited leave both slots to the tracks behind them."""
    lost = Fault("submit", "drop_before_answer", times=2)
    vendor = Emulator(seconds=0.05, separate=False, webhooks="lost", faults=[lost])
    async with vendor, open_receiver() as receiver:
        session = connect(
            vendor, webhooks=receiver, limits=Limits(parallel=2, polls_per_minute=6000)
        )
        await session.start()
        jobs = [session.submit((f"{number}.mp3", AUDIO)) for number in range(4)]
        assert await jobs[2].accepted()
        assert await jobs[3].accepted()
        assert session.slots[0] <= 2
        assert {job.state for job in jobs[:2]} == {JobState.UNACKNOWLEDGED}


async def test_a_resumed_lost_answer_holds_no_slot(
    connect: Any, open_receiver: Any, make_track: Any, tmp_path: Path
) -> None:
    """The same after a restart: what is looked for holds no slot."""
    path = tmp_path / "journal.db"
    lost = Fault("submit", "stall_answer", times=2)
    vendor = Emulator(seconds=0.05, separate=False, webhooks="lost", listing=False, faults=[lost])
    async with vendor, open_receiver(secret="kept") as receiver:
        options = {
            "journal": path,
            "webhooks": receiver,
            "limits": Limits(parallel=2, polls_per_minute=6000),
        }
        session = await connect(vendor, **options).start()
        for number in range(2):
            session.submit(make_track(f"{number}.mp3"))
        while vendor.faults.fired("stall_answer") < 2:
            await anyio.sleep(0.01)
        await session.aclose(drain=False)
        session = await connect(vendor, **options).start()
        assert len(await session.resume()) == 2
        assert await session.submit(make_track("new.mp3")).accepted()


async def test_finished_tasks_that_are_attached_starve_no_submit(connect: Any) -> None:
    """Forty finished tasks attached to a limit of two: a new track is submitted right away."""
    async with Emulator(seconds=0.02, separate=False, parallel=None) as vendor:
        async with connect(vendor, limits=Limits(parallel=40, polls_per_minute=6000)) as other:
            done = [other.submit((f"{number}.mp3", AUDIO)) for number in range(40)]
            tasks = [(await job).task_id for job in done]
        session = await connect(vendor, limits=Limits.FREE).start()
        for task in tasks:
            session.attach(task)
        assert await session.submit(("new.mp3", AUDIO)).accepted()


async def test_a_running_task_that_is_attached_holds_its_slot_once_that_is_known(
    connect: Any,
) -> None:
    """A task of which byId says that it runs counts: no submit goes out only to be refused."""
    faults = [Fault("job", "never_finishes", times=2)]
    vendor = Emulator(seconds=0.05, separate=False, parallel=2, faults=faults)
    async with vendor:
        other = await connect(vendor).start()
        running = [await other.submit((f"{n}.mp3", AUDIO)).accepted() for n in range(2)]
        session = await connect(vendor, limits=Limits(parallel=2, polls_per_minute=6000)).start()
        for each in running:
            session.attach(each.task_id)
        while sum(each.polls for each in vendor.submissions) < 2:
            await anyio.sleep(0.01)
        await anyio.sleep(0.1)
        queued = session.submit(("queued.mp3", AUDIO))
        await anyio.sleep(0.3)
        assert queued.state is JobState.QUEUED
        assert vendor.throttled["parallel"] == 0


@hasty
async def test_ten_uploads_refused_by_one_503_are_one_refusal(connect: Any) -> None:
    """Ten uploads under way meet one short outage: all are accepted within seconds of its end."""
    fault = Fault("submit", "status", status=503, times=10)
    async with Emulator(seconds=1, separate=False, parallel=None, faults=[fault]) as vendor:
        async with connect(vendor, limits=Limits(parallel=10, polls_per_minute=6000)) as session:
            began = anyio.current_time()
            jobs = [session.submit((f"{number}.mp3", AUDIO)) for number in range(10)]
            for job in jobs:
                await job.accepted()
            assert anyio.current_time() - began < 25
        assert len(vendor.submissions) == 10


@hasty
@pytest.mark.parametrize(
    "later",
    [
        pytest.param({"status": 429, "retry_after": 1}, id="429 with less"),
        pytest.param({"status": 503}, id="503 without"),
    ],
)
async def test_a_later_refusal_never_shortens_a_pause(later: dict[str, int], connect: Any) -> None:
    """Refused with 40 s, and an upload under way with less or nothing: nothing is sent for 40 s."""
    faults = [
        Fault("submit", "status", status=429, retry_after=40),
        Fault("submit", "status", **later),
    ]
    async with Emulator(seconds=1, separate=False, faults=faults) as vendor:
        async with connect(vendor, limits=Limits(parallel=2, polls_per_minute=600)) as session:
            jobs = [session.submit((f"{number}.mp3", AUDIO)) for number in range(2)]
            for job in jobs:
                await job
        first, second, *others = posts(vendor)
        assert second - first < 30
        assert min(others) - first >= 38


@hasty
@pytest.mark.parametrize("second", [1, "nan", "0", "-5", None])
async def test_a_later_retry_after_of_a_poll_never_shortens_an_earlier_one(
    second: Any, connect: Any
) -> None:
    """Two polls under way are refused, the second with less: none goes out for the longer time."""
    faults = [
        Fault("byId", "status", status=429, retry_after=40),
        Fault("byId", "status", status=429, retry_after=second),
    ]
    async with Emulator(seconds=0.1, separate=False) as vendor:
        async with connect(vendor) as other:
            tasks = [(await other.submit((f"{n}.mp3", AUDIO))).task_id for n in range(2)]
        vendor.script(*faults)
        before = len(polls(vendor))
        limits = Limits(parallel=2, polls_per_minute=60_000)
        async with connect(vendor, limits=limits) as session:
            jobs = [session.attach(task) for task in tasks]
            for job in jobs:
                assert await job
        first, refused, *later = polls(vendor)[before:]
        assert refused - first < 30
        assert min(later) - first >= 38


@hasty
@pytest.mark.parametrize("retry_after", ["nan", "inf", "-inf", "1e999", "-1", "soon"])
async def test_a_retry_after_that_is_no_time_pauses_all_the_same(
    retry_after: str, connect: Any
) -> None:
    """A 429 on a poll slows the schedule whatever its Retry-After says: some seconds pass."""
    async with Emulator(seconds=0.1, separate=False) as vendor:
        async with connect(vendor) as other:
            task = (await other.submit(("song.mp3", AUDIO))).task_id
        vendor.script(Fault("byId", "status", status=429, retry_after=retry_after))
        before = len(polls(vendor))
        async with connect(vendor, limits=Limits(polls_per_minute=60_000)) as session:
            assert await session.attach(task)
        refused, again = polls(vendor)[before:]
        assert again - refused >= 0.9


@hasty
async def test_one_off_questions_do_not_push_back_the_first_poll_of_attached_jobs(
    connect: Any, tmp_path: Path
) -> None:
    """Twenty downloads have asked for fresh links: a task attached then is polled soon after.

    Ten running jobs want every poll that there is, so that the order in which they come counts.
    """
    limits = Limits(parallel=200, polls_per_minute=60)
    runs = Fault("job", "never_finishes", times=None, after=21)
    vendor = Emulator(seconds=0.1, separate=False, stem_bytes=4096, parallel=None, faults=[runs])
    async with vendor:
        other = await connect(vendor, limits=Limits(parallel=200, polls_per_minute=1e5)).start()
        done = [other.submit((f"{n}.mp3", AUDIO), stems=["bass"]) for n in range(21)]
        tasks = [(await job).task_id for job in done]
        running = [other.submit((f"running {n}.mp3", AUDIO)) for n in range(10)]
        running_tasks = [(await job.accepted()).task_id for job in running]
        await other.aclose(drain=False)
        session = await connect(vendor, limits=limits).start()
        finished = [session.attach(task) for task in tasks[:20]]
        for job in finished:
            await job
        for task in running_tasks:
            session.attach(task)
        await anyio.sleep(120)
        vendor.script(Fault("file", "expired", times=20))
        async with anyio.create_task_group() as downloads:
            for job in finished:
                downloads.start_soon(job.download, tmp_path)
        began = anyio.current_time()
        assert await session.attach(tasks[20])
        assert anyio.current_time() - began < 10


def words_held() -> int:
    """Return how many of the vendor's odd words the fullest container in the process holds."""
    gc.collect()
    kinds = (set, frozenset, dict, list, tuple)
    return max(
        sum(isinstance(word, str) and word.startswith("ODDITY ") for word in held)
        for held in gc.get_objects()
        if type(held) in kinds and len(held) > 256
    )


async def test_odd_status_words_are_remembered_within_a_bound(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A vendor with a new word in each of 600 answers takes no memory with them for good."""
    caplog.set_level("ERROR", logger="musicgpt_async")
    limits = Limits(parallel=1, polls_per_minute=1e6)
    async with Emulator(seconds=60, separate=False, polls_per_minute=None) as vendor:
        session = await connect(vendor, limits=limits).start()
        for batch in range(6):
            for number in range(100):
                told = {"conversion": {"status": f"ODDITY {batch * 100 + number}"}}
                body = json.dumps(told).encode()
                vendor.script(Fault("byId", "status", status=200, body=body, early=True))
            jobs = [session.attach(f"task {batch} {number}") for number in range(100)]
            while vendor.faults.fired("status") < 100:
                await anyio.sleep(0.01)
            await anyio.sleep(0.05)
            vendor.faults.clear()
            for job in jobs:
                job.cancel()
        assert words_held() <= 256


PACKAGE = str(Path(musicgpt_async.__file__).parent)


class Calls:
    """Counts the calls of the library's own functions, the emulator's apart."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, frame: Any, event: str, _: Any) -> None:
        """Count a call."""
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and "/emulator/" not in file:
            self.made += 1

    def __enter__(self) -> Self:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


async def calls_of_a_submit(connect: Any, readers: int, folder: Path) -> int:
    """Return how many calls a submit takes beside so many readers of other jobs' events."""
    track = folder / "song.mp3"
    track.write_bytes(b"ID3" + bytes(16 << 20))
    fault = Fault("byId", "status", status=429, retry_after=60, times=None, early=True)
    vendor = Emulator(seconds=60, separate=False, keep_audio=False, faults=[fault])
    async with vendor:
        session = await connect(vendor, limits=Limits(parallel=5000, polls_per_minute=20)).start()
        others = [session.attach(f"task {number}") for number in range(readers)]
        streams = [job.events() for job in others]
        for stream in streams:
            await anext(stream)
        while not vendor.faults.fired("status") and readers:
            await anyio.sleep(0.01)
        await anyio.sleep(0.05)
        own = session.submit(track)
        stream = own.events()
        await anext(stream)
        with Calls() as calls:
            await own.accepted()
        for each in [*streams, stream]:
            await each.aclose()
        await session.aclose(drain=False)
        return calls.made


async def test_events_cost_the_same_whatever_others_read(connect: Any, tmp_path: Path) -> None:
    """Beside 300 readers of other jobs' events a submit makes hardly more calls."""
    alone = await calls_of_a_submit(connect, 0, tmp_path)
    among = await calls_of_a_submit(connect, 300, tmp_path)
    assert among < alone + 300


async def test_a_deadline_of_the_webhook_gives_the_job_an_end(
    connect: Any, open_receiver: Any
) -> None:
    """A lost response that no webhook recovers is unknown at its deadline, without a slot."""
    lost = Fault("submit", "drop_before_answer")
    vendor = Emulator(seconds=0.05, separate=False, webhooks="lost", faults=[lost])
    async with (
        vendor,
        open_receiver() as receiver,
        connect(vendor, webhooks=receiver, deadline=0.7) as session,
    ):
        with pytest.raises(SubmissionUnknownError):
            await session.submit(("song.mp3", AUDIO))
        assert session.slots[0] == 0


LONG = 12 << 20  # so long that its upload pays to begin before its slot is free
AHEAD = Limits(parallel=1, polls_per_minute=6000)


@pytest.mark.hang(30.0)
async def test_slots_of_jobs_cancelled_together_are_free(
    connect: Any, open_relay: Any, make_track: Any
) -> None:
    """The running job and one whose body waits for its slot are cancelled: the next one goes."""
    vendor = Emulator(seconds=20, eta=3, separate=False, parallel=None, keep_audio=False)
    async with vendor, open_relay(vendor, pace=0.002) as relay:
        session = await connect(vendor, base_url=relay.base_url, limits=AHEAD).start()
        running = session.submit(make_track("running.mp3", LONG))
        await running.accepted()
        held = session.submit(make_track("held.mp3", LONG))
        with anyio.move_on_after(8.0):
            while max(map(len, relay.sent[1:]), default=0) < LONG - (96 << 10):
                await anyio.sleep(0.02)
        await anyio.sleep(0.2)
        following = session.submit(("following.mp3", AUDIO))
        running.cancel()
        held.cancel()
        with anyio.fail_after(8.0):
            assert await following.accepted()


@pytest.mark.hang(40.0)
async def test_a_pause_is_kept_that_an_upload_ahead_of_its_slot_was_told(
    connect: Any, open_relay: Any, make_track: Any
) -> None:
    """Refused early with Retry-After 7 while it ran ahead: nothing is sent for seven seconds."""
    vendor = Emulator(seconds=3, eta=3, separate=False, parallel=None, keep_audio=False)
    async with vendor, open_relay(vendor, pace=0.002) as relay:
        session = await connect(vendor, base_url=relay.base_url, limits=AHEAD).start()
        await session.submit(make_track("running.mp3", LONG)).accepted()
        vendor.script(Fault("submit", "status", status=429, retry_after=7, early=True))
        await session.submit(make_track("ahead.mp3", LONG)).accepted()
        _, refused, again = (each.at for each in vendor.requests if each.method == "POST")
        assert again - refused >= 6.5
