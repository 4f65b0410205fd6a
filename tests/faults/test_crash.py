"""Promise 6: kill the process anywhere, start it again, and every track is paid for once."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import attrs
import pytest
from factories.forked import BatchProcess
from factories.sessions import free_port
from factories.watching import until

from musicgpt_async import JobState
from musicgpt_async.emulator import Emulator, Fault, FaultContext
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.long]

STEMS = ["bass", "drums"]
# Most tracks are sent at once; a long one fills the sockets of a server that stops reading.
SHORT, LONG = 200_000, 24 << 20
# In times of what a process takes to start: when one is killed, what a conversion takes, and how
# long a restarted process waits for a job, or for the webhook of a lost response.
KILLED = (0.5, 2.8)
TAKES = (1.0, 6.0)
DEADLINE = 25.0
# No unit is shorter: the kills shall spread over answers and leases, which take seconds.
SHORTEST = 0.4
LEASE = 1.0
# A wait that ends in a failure rather than in a hang.
HANG = 300.0


@attrs.define
class Figures:
    """What a crash test counted.

    Attributes:
        kills: Processes killed.
        under_way: State → jobs that stood in it when their process was killed.
        lost_answers: Jobs killed between the hand-over and the recorded answer.
        found: "listing" or "webhook" → lost answers that it brought back.
        unknown: Tracks that were said to be unknown at the end.
        decided: Of these, tracks that the user submitted again, having seen that the vendor's
            dashboard does not show them.
    """

    kills: int = 0
    under_way: Counter[str] = attrs.field(factory=Counter)
    lost_answers: set[str] = attrs.field(factory=set)
    found: Counter[str] = attrs.field(factory=Counter)
    unknown: list[str] = attrs.field(factory=list)
    decided: list[str] = attrs.field(factory=list)


class Pace:
    """How fast this machine is: the test's times are multiples of a process's start."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.start = 1.0

    def some(self, bounds: tuple[float, float]) -> float:
        """Return seconds between two bounds."""
        return self.start * self.rng.uniform(*bounds)

    def odds(self, share: float) -> bool:
        """Return true in so many cases."""
        return self.rng.random() < share


class Batch:
    """A batch of tracks, its emulator, and the processes that work on it one after another."""

    def __init__(self, vendor: Emulator, folder: Path, *, tracks: int, webhooks: bool) -> None:
        self.vendor = vendor
        self.out = folder / "stems"
        self.journal = folder / "journal.db"
        self.tracks = [folder / f"track {number:02}.mp3" for number in range(tracks)]
        for number, track in enumerate(self.tracks):
            size = LONG if number % 10 == 5 else SHORT
            track.write_bytes((b"ID3" + track.name.encode()).ljust(size, b"~"))
        self.port = free_port() if webhooks else 0
        self.deadline = HANG
        self.figures = Figures()

    @asynccontextmanager
    async def process(
        self, tracks: list[Path] | None = None, *, force: bool = False
    ) -> AsyncIterator[BatchProcess]:
        """Run a process that works on the batch; it has ended at the end of the block."""
        settings = {
            "base_url": self.vendor.base_url,
            "key": self.vendor.api_key,
            "port": self.port,
            "journal": str(self.journal),
            "lease": LEASE,
            "parallel": 3,
            "deadline": self.deadline,
            "out": str(self.out),
            "stems": STEMS,
            "tracks": [str(track) for track in tracks or self.tracks],
            "force": force,
        }
        async with BatchProcess(settings).running() as process:
            yield process

    async def time_to_start(self) -> float:
        """Return the seconds that a process takes until it is ready; this one is killed then."""
        began = time.monotonic()
        async with self.process() as process:
            assert await process.stdout.readline()
            return time.monotonic() - began

    async def killed_after(self, seconds: float, *, tracks: int) -> bool:
        """Start a process on the first tracks and kill it; return whether it was still running."""
        async with self.process(self.tracks[:tracks]) as process:
            with anyio.move_on_after(seconds):
                await process.wait()
            if process.returncode is not None:
                return False
            process.kill()
            await self._note(process)
        self.figures.kills += 1
        for record in await self.records():
            self.figures.under_way[phase(record)] += 1
            if phase(record) == "handed over":
                self.figures.lost_answers.add(record.id)
        return True

    async def killed_often(self, times: int, pace: Pace) -> None:
        """Kill processes so often, while more and more of the tracks are completed."""
        await self.time_to_start()  # the first one waits for its server to import everything
        pace.start = max(SHORTEST, await self.time_to_start())
        self.deadline = DEADLINE * pace.start
        given = 3.0
        while self.figures.kills < times:
            assert given < len(self.tracks) + 3, "the batch was over before the kills were"
            await self.killed_after(pace.some(KILLED), tracks=int(given))
            given += (len(self.tracks) - 3) / times

    async def finished(self, tracks: list[Path] | None = None, *, force: bool = False) -> None:
        """Run a process to its end."""
        async with self.process(tracks, force=force) as process:
            with anyio.fail_after(HANG):
                lines = await self._note(process)
                assert await process.wait() == 0
        errors = {line["track"]: line["error"] for line in lines if line.get("error")}
        assert set(errors.values()) <= {"SubmissionUnknownError"}, lines
        self.figures.unknown = sorted(errors)

    async def decided(self) -> None:
        """Resolve unknown tracks as a user does: check the dashboard, submit the missing ones."""
        there = {each.file_name for each in self.vendor.submissions}
        self.figures.decided = [name for name in self.figures.unknown if name not in there]
        unknown = [each for each in self.figures.unknown if each in there]
        again = [track for track in self.tracks if track.name in self.figures.decided]
        if again:
            await self.finished(again, force=True)
            self.figures.unknown += unknown

    async def records(self) -> list[JobRecord]:
        """Return what the journal holds."""
        if not self.journal.exists():
            return []
        async with Journal(self.journal) as journal:
            return [record async for record in journal.records()]

    async def _note(self, process: BatchProcess) -> list[dict[str, Any]]:
        lines = []
        while line := await process.stdout.readline():
            if line.endswith(b"\n"):
                lines.append(json.loads(line))
        self.figures.found.update(line["found"] for line in lines if "found" in line)
        return lines

    async def served(self) -> dict[str, str]:
        """Return file name → digest of what a plain client gets for all of the conversions."""
        await until(lambda: not self.vendor.unfinished)  # the last ones are of unknown tracks
        found = {}
        async with aiohttp.ClientSession(headers={"Authorization": self.vendor.api_key}) as api:
            for submission in self.vendor.submissions:
                query = {"conversionType": "EXTRACTION", "task_id": submission.task_id}
                async with api.get(f"{self.vendor.base_url}/byId", params=query) as answer:
                    conversion = (await answer.json())["conversion"]
                links = re.findall(r'"(\w+)":\s*"([^"]+)"', conversion["audio_url_wav"])
                for stem, url in links:
                    async with aiohttp.request("GET", url) as answer:
                        content = await answer.read()
                    name = f"{Path(submission.file_name or '').stem} - {stem}.wav"
                    found[name] = hashlib.sha256(content).hexdigest()
        return found

    def there(self) -> dict[str, str]:
        """Return file name → digest of everything in the output directory, hidden files too."""
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.out.iterdir()
        }


def phase(record: JobRecord) -> str:
    """Return the phase of a job, according to the journal."""
    if record.task_id is None:
        return "not handed over" if record.sent_at is None else "handed over"
    if record.state is not JobState.COMPLETED:
        return "accepted"
    return "done" if len(record.files) == len(STEMS) else "not all downloaded"


def slow_vendor(pace: Pace, *, listing: bool) -> Emulator:
    """An emulator that is so slow that kills happen in every state of a job."""

    def is_long(occasion: FaultContext) -> bool:
        assert occasion.request is not None
        return (occasion.request.content_length or 0) >= LONG

    stalls = Fault(
        "submit", "stall_read", times=None, at=0.1, when=lambda o: is_long(o) and pace.odds(0.6)
    )
    late = Fault("submit", "slow_answer", times=None, seconds=0.4, when=lambda _: pace.odds(0.5))
    slow = Fault("file", "slow_answer", times=None, seconds=0.5, when=lambda _: pace.odds(0.7))
    return Emulator(
        seconds=lambda _: pace.some(TAKES),
        separate=False,
        parallel=None,
        polls_per_minute=None,
        listing=listing,
        faults=[stalls, late, slow],
    )


@pytest.mark.parametrize("part", range(4))
async def test_forty_kills_lose_nothing_and_pay_nothing_twice(
    part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """60 tracks, killed at 40 random moments, end with one submission and one set for each."""
    pace = Pace(int(os.environ.get("MUSICGPT_TEST_SEED", "20")) + part)
    began = time.monotonic()
    async with slow_vendor(pace, listing=True) as vendor:
        batch = Batch(vendor, tmp_path, tracks=15, webhooks=True)
        await batch.killed_often(10, pace)
        vendor.faults.clear()
        await batch.finished()
        await batch.decided()
        await batch.finished()
        with capsys.disabled():
            report("listing and webhooks", batch, time.monotonic() - began)
        assert not batch.figures.unknown
        assert Counter(each.file_name for each in vendor.submissions) == dict.fromkeys(
            [track.name for track in batch.tracks], 1
        )
        served = await batch.served()
        assert len(set(served.values())) == len(batch.tracks) * len(STEMS)
        assert batch.there() == served


@pytest.mark.parametrize(
    ("listing", "webhooks"),
    [(True, False), (False, True), (False, False)],
    ids=["listing alone", "webhooks alone", "neither"],
)
async def test_with_fewer_ways_out_nothing_is_paid_twice_either(
    listing: bool, webhooks: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With any means of recovery, no track is paid for twice and none is lost silently."""
    pace, began = Pace(7), time.monotonic()
    async with slow_vendor(pace, listing=listing) as vendor:
        batch = Batch(vendor, tmp_path, tracks=10, webhooks=webhooks)
        await batch.killed_often(5, pace)
        vendor.faults.clear()
        await batch.finished()
        await batch.decided()
        names = {True: "listing", False: "no listing"}[listing], {True: "webhooks", False: "none"}
        with capsys.disabled():
            report(f"{names[0]}, {names[1][webhooks]}", batch, time.monotonic() - began)
        assert Counter(each.file_name for each in vendor.submissions) == dict.fromkeys(
            [track.name for track in batch.tracks], 1
        )
        served, missing = await batch.served(), set(batch.figures.unknown)
        assert _but_for(missing, batch.there()) == _but_for(missing, served)


def _but_for(missing: set[str], files: dict[str, str]) -> dict[str, str]:
    """Leave out the files, and the beginnings of files, of tracks that are unknown."""
    return {
        name: digest
        for name, digest in files.items()
        if name.lstrip(".").partition(" - ")[0] + ".mp3" not in missing
    }


def report(title: str, batch: Batch, seconds: float) -> None:
    """Print what was counted."""
    figures, vendor = batch.figures, batch.vendor
    sent = Counter(each.file_name for each in vendor.submissions)
    stood = ", ".join(f"{where} {number}" for where, number in sorted(figures.under_way.items()))
    print(  # noqa: T201 - the figures are what the test is for
        f"\n{title}: {figures.kills} kills over {len(batch.tracks)} tracks in {seconds:.0f} s\n"
        f"  jobs at the kills: {stood}\n"
        f"  answers lost: {len(figures.lost_answers)}, found again: {dict(figures.found)}, "
        f"unknown: {len(figures.unknown)}, submitted again by the user's decision: "
        f"{len(figures.decided)}\n"
        f"  submissions: {len(vendor.submissions)}, "
        f"double: {sum(number - 1 for number in sent.values())}, "
        f"tracks without: {len(batch.tracks) - len(sent)}, files: {len(batch.there())}"
    )
