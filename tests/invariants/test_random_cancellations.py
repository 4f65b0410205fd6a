"""A session that is cancelled at random times pays once per track, and never leaks or hangs.

A small number of rounds is part of the suite; ``MUSICGPT_TEST_CANCELLATIONS=500`` runs more. A
failure prints the number of its round, which ``MUSICGPT_TEST_CANCELLATIONS=137:138`` repeats.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from musicgpt_async import (
    ExtractionFailedError,
    Limits,
    MusicGPTError,
    MusicGPTSession,
    Outcome,
    SubmissionUnknownError,
)
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.testing import running_emulator

pytestmark = pytest.mark.anyio

FIRST, _, END = os.environ.get("MUSICGPT_TEST_CANCELLATIONS", "24").rpartition(":")
ROUNDS = range(int(FIRST or 0), int(END))
AT_ONCE = 30.0  # seconds after which a session that is still being closed is said to hang
STEMS = ["bass"]


def at_times(on: Any, kind: str, share: float, **how: Any) -> Fault:
    """Return a fault that affects this share of its targets."""
    rng = random.Random(f"{on} {kind}")
    return Fault(on, kind, times=None, when=lambda _: rng.random() < share, **how)


@pytest.fixture(scope="module")
def vendor() -> Iterator[Emulator]:
    """The vendor in a thread of its own: every task of the loop is the session's or the test's."""
    faults = [
        at_times("submit", "slow_answer", 0.3, seconds=0.05),
        at_times("submit", "drop_before_answer", 0.1),
        at_times("submit", "status", 0.05, status=429, retry_after=1),
        at_times("byId", "status", 0.05, status=503),
        at_times("file", "truncated", 0.1),
        at_times("job", "fails", 0.05),
    ]
    with running_emulator(
        seconds=0.03,
        separate=False,
        stem_bytes=4096,
        parallel=None,
        polls_per_minute=None,
        faults=faults,
    ) as emulator:
        yield emulator


@attrs.define
class Round:
    """One session that is cancelled somewhere, and what it was to do."""

    rng: random.Random
    session: MusicGPTSession
    folder: Path
    tracks: list[Path]
    outcomes: list[Outcome] = attrs.field(factory=list)
    whole: bool = False

    async def batch(self) -> None:
        """Download all tracks in one loop, which may be left early."""
        leaves = self.rng.random() < 0.3
        many = self.session.extract_many(self._sources(), self.folder, stems=STEMS)
        async with aclosing(many):  # type: ignore[type-var] # it is a generator
            async for outcome in many:
                self.outcomes.append(outcome)
                if leaves:
                    return
        self.whole = True

    async def _sources(self) -> AsyncIterator[Path]:
        for track in self.tracks:
            await anyio.sleep(self.rng.choice([0, 0, 0.02]))
            yield track

    async def calls(self) -> None:
        """Download all tracks with one call for each."""
        async with anyio.create_task_group() as tasks:
            for track in self.tracks:
                tasks.start_soon(self._call, track)

    async def _call(self, track: Path) -> None:
        with suppress(MusicGPTError):
            await self.session.extract(track, self.folder, stems=STEMS)

    async def handles(self) -> None:
        """Submit all tracks and detach some of them."""
        jobs = [self.session.submit(track, stems=STEMS) for track in self.tracks]
        for job in jobs:
            if self.rng.random() < 0.3:
                await anyio.sleep(self.rng.random() / 20)
                job.cancel()
            with suppress(MusicGPTError):
                await job

    async def disturb(self, task: asyncio.Task[None]) -> None:
        """Cancel what runs, or close the session under it, at some moment."""
        for _ in range(self.rng.choice([0, 1, 3, 10])):
            await asyncio.sleep(0)
        await asyncio.sleep(self.rng.choice([0.0, 0.01, 0.05, 0.1, 0.2, 0.4]) * self.rng.random())
        for _ in range(self.rng.choice([0, 1, 1, 2])):
            task.cancel()
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(self.session.aclose(drain=self.rng.random() < 0.4))
        if self.rng.random() < 0.3:
            await asyncio.sleep(self.rng.random() / 20)
            closing.cancel()
        await asyncio.wait([closing], timeout=AT_ONCE)
        assert closing.done(), "closing hangs"


async def run_cancelled(here: Round) -> None:
    """Run a round, and see that nothing of it is left."""
    before = asyncio.all_tasks()
    await here.session.start()
    work = here.rng.choice([here.batch, here.calls, here.handles])
    task = asyncio.ensure_future(work())
    await here.disturb(task)
    await here.session.aclose(drain=False)  # one that was cancelled is finished by the next
    await asyncio.wait([task], timeout=AT_ONCE)
    assert task.done(), "a call hangs though its session is closed"
    if not task.cancelled() and (error := task.exception()):
        kinds = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
        assert all(isinstance(each, MusicGPTError) for each in kinds), error
    assert not here.whole or len(here.outcomes) == len(here.tracks)
    with anyio.move_on_after(2.0):
        while asyncio.all_tasks() - before:
            await anyio.sleep(0.005)
    left = [task.get_coro() for task in asyncio.all_tasks() - before]
    assert not left


def connected(vendor: Emulator, journal: Path) -> MusicGPTSession:
    """Return a session for a round."""
    limits = Limits(parallel=5, polls_per_minute=60_000)
    return MusicGPTSession(vendor.api_key, base_url=vendor.base_url, journal=journal, limits=limits)


@pytest.mark.hang(120.0)
@pytest.mark.parametrize("number", ROUNDS)
async def test_a_cancelled_session_pays_once_and_leaves_nothing(
    number: int, vendor: Emulator, tmp_path: Path
) -> None:
    """Cancelled, then done once more in peace: an outcome and one payment for each track."""
    rng = random.Random(number)
    tracks = [tmp_path / f"{number} {each}.mp3" for each in range(rng.randint(1, 6))]
    for track in tracks:
        track.write_bytes((b"ID3" + track.name.encode()).ljust(rng.choice([3000, 3 << 20]), b"~"))
    journal = tmp_path / "journal.db"
    await run_cancelled(Round(rng, connected(vendor, journal), tmp_path / "stems", tracks))
    async with connected(vendor, journal) as session:
        many = session.extract_many(tracks, tmp_path / "stems", stems=STEMS)
        outcomes = [outcome async for outcome in many]
    assert len(outcomes) == len(tracks)
    paid = Counter(each.file_name for each in list(vendor.submissions) if each.status != "ERROR")
    for outcome in outcomes:
        assert paid[outcome.source.name] <= 1
        if outcome.error is None:
            assert paid[outcome.source.name] == 1
            assert outcome.files["bass"].exists()
        else:
            assert isinstance(outcome.error, (SubmissionUnknownError, ExtractionFailedError))
