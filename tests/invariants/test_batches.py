"""extract_many: as many outcomes as tracks, or an exception; and leaving it takes nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from musicgpt_async import BatchItem, JobState, Limits, Outcome
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

AUDIO = b"ID3" + bytes(3000)
STEMS = ["bass"]
AT_ONCE = 5.0  # seconds; far more than it takes, and nothing here ends by itself


def tracks(count: int) -> list[Any]:
    """Return so many tracks in memory."""
    return [(f"{number}.mp3", AUDIO) for number in range(count)]


@pytest.fixture
async def vendor() -> AsyncIterator[Emulator]:
    """The vendor, quick and without real separation."""
    async with Emulator(seconds=0.05, separate=False, stem_bytes=4096) as emulator:
        yield emulator


class Unprintable:
    """A source that cannot even be shown."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


BAD_ITEMS: dict[str, Any] = {
    "label with a lone surrogate": BatchItem(source=("x.mp3", AUDIO), options={"label": "\ud800"}),
    "label with a NUL": BatchItem(source=("x.mp3", AUDIO), options={"label": "a\0b"}),
    "stems that are a number": BatchItem(source=("x.mp3", AUDIO), options={"stems": 5}),
    "stems that are unhashable": BatchItem(source=("x.mp3", AUDIO), options={"stems": [["bass"]]}),
    "options that are none": BatchItem(source=("x.mp3", AUDIO), options=None),  # type: ignore[arg-type]
    "a number": 7,
    "None": None,
    "a name that is a number": (7, AUDIO),
    "a source that cannot be shown": Unprintable(),
    "a name with a lone surrogate": ("\ud800.mp3", AUDIO),
    "an empty name": ("", AUDIO),
    "an empty path": "",
}


@pytest.mark.parametrize("journal", [False, True], ids=["no journal", "journal"])
@pytest.mark.parametrize("bad", BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
async def test_a_bad_track_costs_its_own_outcome_alone(
    bad: Any, journal: bool, vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """Five tracks, the second of which is nonsense: five outcomes, at least four good ones."""
    path = tmp_path / "journal.db" if journal else None
    sources = [(f"{number}.mp3", AUDIO + bytes([number])) for number in range(4)]
    sources.insert(1, bad)
    async with connect(vendor, journal=path) as session:
        many = session.extract_many(sources, tmp_path / "stems", stems=STEMS)
        outcomes = [each async for each in many]
    assert len(outcomes) == 5
    nonsense = bad.source if isinstance(bad, BatchItem) else bad
    good = [each for each in outcomes if each.source is not nonsense]
    assert [each.error for each in good] == [None] * 4


@pytest.mark.parametrize(
    ("label", "journal"), [(7, False), (7, True), (b"x", False), (["x"], False), (["x"], True)]
)
async def test_a_bad_label_costs_its_own_outcome_alone(
    label: Any, journal: bool, vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """The same with labels that are no text: five outcomes, of which four are good."""
    bad = BatchItem(source=("x.mp3", AUDIO), options={"label": label})
    await test_a_bad_track_costs_its_own_outcome_alone(bad, journal, vendor, connect, tmp_path)


async def waiting(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    """Yield items of a queue, and wait while it is empty: a bot's inbox."""
    while True:
        yield await queue.get()


async def one_outcome(session: Any, queue: asyncio.Queue[Any], folder: Path, how: str) -> None:
    """Take one outcome of an endless batch and leave it, in one of three ways."""
    many = session.extract_many(waiting(queue), folder, stems=STEMS)
    if how == "break":
        async for outcome in many:
            assert outcome.ok
            break
        return
    async with aclosing(many):
        async for outcome in many:
            assert outcome.ok
            if how == "an exception":
                raise ZeroDivisionError
            break


@pytest.mark.parametrize("how", ["break", "aclose", "an exception"])
async def test_a_batch_that_is_left_takes_nothing_more(
    how: str, vendor: Emulator, connect: Any, tmp_path: Path, until: Any
) -> None:
    """Leaving the loop ends its wait for the next track: later ones stay in the user's queue."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    queue.put_nowait(tracks(1)[0])
    session = await connect(vendor).start()
    try:
        await one_outcome(session, queue, tmp_path, how)
    except ZeroDivisionError:
        assert how == "an exception"
    await anyio.sleep(0.05)
    queue.put_nowait("a track for somebody else")
    await anyio.sleep(0.05)
    assert queue.qsize() == 1
    with anyio.fail_after(AT_ONCE):
        await session.aclose()


@pytest.mark.parametrize("how", ["break", "aclose", "an exception"])
async def test_a_batch_that_is_left_detaches_what_was_on_its_way(
    how: str, vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """Leaving the loop detaches the running tracks, so that closing does not wait for them."""
    vendor.script(Fault("job", "never_finishes", times=None, after=1))
    queue: asyncio.Queue[Any] = asyncio.Queue()
    for track in tracks(5):
        queue.put_nowait(track)
    session = await connect(vendor, limits=Limits(parallel=5, polls_per_minute=6000)).start()
    try:
        await one_outcome(session, queue, tmp_path, how)
    except ZeroDivisionError:
        assert how == "an exception"
    with anyio.fail_after(AT_ONCE):
        await session.aclose()
    assert len(vendor.submissions) <= 5


async def test_a_batch_whose_feeder_waits_is_left_at_once(
    vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """A batch that waits for its reader holds nothing up when it is left."""
    session = await connect(vendor, limits=Limits(parallel=20, polls_per_minute=6000)).start()
    many = session.extract_many(tracks(300), tmp_path, stems=STEMS)
    assert (await anext(many)).ok
    await anyio.sleep(0.3)
    with anyio.fail_after(AT_ONCE):
        await many.aclose()
        await session.aclose()


async def test_a_batch_nobody_iterates_runs_nothing(
    vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """extract_many() alone submits nothing and holds no session up."""
    async with connect(vendor) as session:
        many = session.extract_many(tracks(3), tmp_path, stems=STEMS)
        await anyio.sleep(0.05)
    assert not vendor.submissions
    await many.aclose()


async def test_cancelling_the_reader_of_a_batch_ends_it(
    vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """A task that reads a batch and is cancelled leaves nothing that draining would wait for."""
    vendor.script(Fault("job", "never_finishes", times=None))
    session = await connect(vendor).start()

    async def read() -> None:
        async for _ in session.extract_many(tracks(5), tmp_path, stems=STEMS):
            pass

    task = asyncio.create_task(read())
    while len(vendor.submissions) < 5:
        await anyio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    with anyio.fail_after(AT_ONCE):
        await session.aclose()


async def test_a_directory_that_cannot_be_made_is_every_tracks_own_failure(
    vendor: Emulator, connect: Any, tmp_path: Path
) -> None:
    """If a file has the directory's name, each track has an outcome, all with an error."""
    (tmp_path / "stems").write_text("a file")
    async with connect(vendor) as session:
        many = session.extract_many(tracks(4), tmp_path / "stems", stems=STEMS)
        outcomes: list[Outcome] = [each async for each in many]
    assert len(outcomes) == 4
    assert all(each.error for each in outcomes)
    assert all(each.job and each.job.state is JobState.COMPLETED for each in outcomes)
