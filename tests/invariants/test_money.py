"""Nothing is paid for twice, and max_credits never fails open."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import anyio
import pytest

from musicgpt_async import (
    CreditLimitError,
    JobState,
    Limits,
    MusicGPTError,
    SubmissionUnknownError,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

LONG = 8 << 20  # more than the buffers of the sockets hold


def minutes(number: int) -> tuple[str, bytes]:
    """Return a track of half a minute by the emulator's reckoning, different for each number."""
    return f"{number}.mp3", (b"ID3" + bytes([number])).ljust(480_000, b"~")


def estimates(vendor: Emulator) -> list[float]:
    """Return what the vendor said that each accepted submit would cost."""
    return [each.credit_estimate for each in vendor.submissions]


@pytest.mark.parametrize("answered", [0, 1], ids=["no estimate known", "one estimate known"])
@pytest.mark.parametrize("journal", [False, True], ids=["no journal", "journal"])
async def test_lost_answers_do_not_open_the_credit_limit(
    answered: int, journal: bool, connect: Any, tmp_path: Path
) -> None:
    """Of twenty tracks whose answers are lost no more are paid for than max_credits allows."""
    lost = Fault("submit", "drop_before_answer", times=None, after=answered)
    async with Emulator(seconds=0.05, separate=False, faults=[lost]) as vendor:
        path = tmp_path / "journal.db" if journal else None
        session = connect(vendor, max_credits=2.0, journal=path)
        async with session:
            jobs = [session.submit(minutes(n)) for n in range(20)]
            errors = []
            for job in jobs:
                try:
                    await job
                except MusicGPTError as error:
                    errors.append(error)
        assert sum(estimates(vendor)) < 2.0 + max(estimates(vendor))
        kinds = {type(error) for error in errors}
        assert kinds == {SubmissionUnknownError, CreditLimitError}
        assert session.credits_estimated >= sum(estimates(vendor)) - max(estimates(vendor))


async def test_a_lost_answer_stops_no_queue_that_has_credit_left(
    connect: Any, open_receiver: Any
) -> None:
    """With credits and webhooks on, the tracks after a lost answer are submitted meanwhile."""
    lost = Fault("submit", "drop_before_answer", after=1)
    vendor = Emulator(seconds=0.05, separate=False, webhooks="lost", faults=[lost])
    async with vendor, open_receiver() as receiver:
        session = connect(
            vendor,
            max_credits=50.0,
            webhooks=receiver,
            limits=Limits(parallel=1, polls_per_minute=6000),
        )
        await session.start()
        jobs = [session.submit(minutes(n)) for n in range(3)]
        assert await jobs[2].accepted()
        assert jobs[1].task_id is None


async def test_a_webhook_that_brings_an_answer_in_brings_its_cost_too(
    connect: Any, open_receiver: Any
) -> None:
    """A lost response that a webhook recovers counts once, and the limit holds after it."""
    lost = Fault("submit", "drop_before_answer", times=None)
    vendor = Emulator(seconds=0.05, separate=False, faults=[lost])
    async with vendor, open_receiver() as receiver:
        session = connect(vendor, max_credits=2.0, webhooks=receiver)
        async with session:
            jobs = [session.submit(minutes(n)) for n in range(10)]
            for job in jobs:
                try:
                    await job
                except CreditLimitError:
                    break
            else:
                pytest.fail("ten tracks went through the limit")
        assert sum(estimates(vendor)) < 2.0 + max(estimates(vendor))


async def test_a_track_cancelled_at_its_hand_over_may_be_submitted_again(
    connect: Any,
    make_track: Any,
    hold_journal: Any,
    open_relay: Any,
    paid: Any,
    tmp_path: Path,
    until: Any,
) -> None:
    """cancel() while the journal records the hand-over, then the same track: it is paid for once.

    Nothing was sent by the first one, so the second is not said to be paid for perhaps.
    """
    song, path, gate = make_track(size=LONG), tmp_path / "journal.db", anyio.Event()
    async with (
        Emulator(seconds=0.05, separate=False) as vendor,
        open_relay(vendor, gate=gate) as relay,
        connect(vendor, base_url=relay.base_url, journal=path) as session,
    ):
        first = session.submit(song)
        await until(lambda: first.state is JobState.UPLOADING and relay.sent)
        async with hold_journal(path):
            gate.set()
            await until(lambda: len(relay.sent[0]) >= LONG)
            await anyio.sleep(0.1)  # only the closing boundary is left, and the journal before it
            first.cancel()
            second = session.submit(song)
            await anyio.sleep(0.05)
        assert (await second).task_id == vendor.submissions[0].task_id
        assert paid(vendor) == {"song.mp3": 1}


async def test_a_track_cancelled_while_it_is_entered_may_be_submitted_again(
    connect: Any, make_track: Any, hold_journal: Any, paid: Any, tmp_path: Path
) -> None:
    """cancel() while the journal takes the track in, then the same track: it is paid for once."""
    async with Emulator(seconds=0.05, separate=False) as vendor:
        async with connect(vendor, journal=tmp_path / "journal.db") as session:
            song = make_track()
            async with hold_journal(tmp_path / "journal.db"):
                first = session.submit(song)
                await anyio.sleep(0.1)
                first.cancel()
                second = session.submit(song)
                await anyio.sleep(0.05)
            assert (await second).task_id == vendor.submissions[0].task_id
        assert paid(vendor) == {"song.mp3": 1}


class BrokenLog(logging.Handler):
    """A log that fails once the vendor has accepted something, as one on a full disk does."""

    def __init__(self, vendor: Emulator) -> None:
        super().__init__(logging.DEBUG)
        self.vendor = vendor
        self.failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Fail at the library's first record after a submit was accepted."""
        is_ours = not record.name.startswith("musicgpt_async.emulator")
        if is_ours and self.vendor.submissions and not self.failed:
            self.failed = True
            raise OSError(28, "No space left on device")


async def test_what_raises_after_acceptance_leaves_the_job_accepted(
    connect: Any, make_track: Any, paid: Any, tmp_path: Path, read_records: Any
) -> None:
    """A log that cannot be written right after the acceptance: submitting again pays nothing."""
    song, path = make_track(), tmp_path / "journal.db"
    async with Emulator(seconds=0.3, separate=False) as vendor:
        handler, logger = BrokenLog(vendor), logging.getLogger("musicgpt_async")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            session = await connect(vendor, journal=path).start()
            first = session.submit(song)
            with anyio.move_on_after(2.0):
                while not (handler.failed and first.done()):
                    await anyio.sleep(0.005)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        assert first.state is not JobState.FAILED
        await session.aclose(drain=False)
        [record] = await read_records(path)
        assert record.task_id == vendor.submissions[0].task_id
        assert record.state is not JobState.FAILED
        async with connect(vendor, journal=path) as session:
            assert (await session.submit(song)).task_id == vendor.submissions[0].task_id
        assert paid(vendor) == {"song.mp3": 1}


@pytest.mark.parametrize("key", ["task", "id", "a", "e"])
async def test_a_short_key_is_redacted_in_messages_and_not_in_answers(
    key: str, connect: Any
) -> None:
    """A key that is a part of MusicGPT's own words corrupts no acceptance."""
    async with (
        Emulator(api_key=key, seconds=0.05, separate=False) as vendor,
        connect(vendor) as session,
    ):
        job = session.submit(minutes(0))
        assert (await job).task_id == vendor.submissions[0].task_id


async def test_a_failed_verdict_alone_lets_a_track_be_submitted_again(
    connect: Any, make_track: Any, paid: Any, tmp_path: Path
) -> None:
    """After a failure at MusicGPT the track may be submitted again; after a deadline it may not."""
    song, path = make_track(), tmp_path / "journal.db"
    faults = [Fault("job", "fails"), Fault("job", "never_finishes")]
    async with Emulator(seconds=0.05, separate=False, faults=faults) as vendor:
        async with connect(vendor, journal=path, deadline=0.5) as session:
            with pytest.raises(MusicGPTError):
                await session.submit(song)
            assert paid(vendor) == {"song.mp3": 1}
            with pytest.raises(TimeoutError):
                await session.submit(song)
            assert paid(vendor) == {"song.mp3": 2}
            with pytest.raises(TimeoutError):
                await session.submit(song)
        assert paid(vendor) == {"song.mp3": 2}


async def test_a_negative_estimate_opens_no_credit_limit(connect: Any) -> None:
    """A response that estimates less than nothing counts as one without an estimate, at least."""
    async with Emulator(seconds=60, separate=False) as vendor:
        for number in range(10):
            body = {"success": True, "task_id": f"task-{number}", "eta": 1, "credit_estimate": -5}
            vendor.script(Fault("submit", "wrong_json", body=json.dumps(body).encode()))
        session = await connect(vendor, max_credits=2.0).start()
        jobs = [session.submit(minutes(number)) for number in range(10)]
        with pytest.raises(CreditLimitError):
            await jobs[-1].accepted()
        assert session.credits_estimated >= 0.0
