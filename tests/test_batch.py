"""Batches: one outcome per track, independent of the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from musicgpt_async import (
    BatchItem,
    ExtractionFailedError,
    InvalidOptionError,
    MusicGPTSession,
    Outcome,
    SessionClosedError,
    SourceError,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = [pytest.mark.anyio, pytest.mark.accelerated(20)]

AUDIO = b"ID3" + b"\x00" * 3000


async def drained(many: AsyncIterator[Outcome], outcomes: list[Outcome]) -> None:
    """Keep what comes, up to the end or an error."""
    async for outcome in many:
        outcomes.append(outcome)  # noqa: PERF401 - what came before an error is wanted too


async def test_each_track_has_one_outcome(
    vendor: Emulator, session: MusicGPTSession, tmp_path: Path
) -> None:
    """Good and bad tracks come out once each, as they finish, with files or a reason."""
    vendor.script(Fault("job", "fails", when=lambda o: o.submission.file_name == "bad.mp3"))
    sources: list[Any] = [
        ("a.mp3", AUDIO),
        ("bad.mp3", AUDIO),
        tmp_path / "missing.mp3",
        BatchItem(source=("b.mp3", AUDIO), options={"stems": ["drums"], "label": "B"}),
        BatchItem(source=("c.mp3", AUDIO), options={"stem": ["drums"]}),
        ("d.mp3", AUDIO, "too much"),
        "http://[oops/a.mp3",
    ]
    many = session.extract_many(sources, tmp_path, stems=["bass"])
    outcomes = [outcome async for outcome in many]
    assert len(outcomes) == len(sources)
    assert Counter(type(outcome.error) for outcome in outcomes) == {
        type(None): 2,
        ExtractionFailedError: 1,
        SourceError: 1,
        InvalidOptionError: 3,
    }
    names = sorted(path.name for each in outcomes if each.ok for path in each.files.values())
    assert names == ["B - drums.wav", "a - bass.wav"]
    assert all(each.extraction for each in outcomes if each.ok)


async def test_sources_are_taken_as_slots_come_free(
    vendor: Emulator, session: MusicGPTSession, tmp_path: Path
) -> None:
    """Of any number of tracks only a few more than fit are ever read ahead."""
    taken = 0
    ahead = 0

    def endless() -> Iterator[tuple[str, bytes]]:
        nonlocal taken
        while True:
            taken += 1
            yield f"{taken}.mp3", AUDIO

    seen = 0
    async for _ in session.extract_many(endless(), tmp_path, stems=["bass"], format="mp3"):
        seen += 1
        ahead = max(ahead, taken - seen)
        if seen == 30:
            break
    assert ahead <= 80


async def test_a_loop_that_is_left_detaches_its_tracks(
    vendor: Emulator, session: MusicGPTSession, tmp_path: Path
) -> None:
    """Leaving the loop cancels what is on its way, and the session can be left at once."""
    vendor.script(Fault("job", "never_finishes", times=None, after=1))
    many = session.extract_many([(f"{n}.mp3", AUDIO) for n in range(200)], tmp_path)
    async for _ in many:
        break
    await many.aclose()  # type: ignore[attr-defined] # it is a generator
    with anyio.fail_after(60):
        await session.aclose()


async def test_a_session_closed_under_a_batch_says_so(vendor: Emulator, tmp_path: Path) -> None:
    """A loop over a session that is closed meanwhile raises an error."""
    vendor.script(Fault("job", "never_finishes", times=None, after=2))
    session = await MusicGPTSession(vendor.api_key, base_url=vendor.base_url).start()
    many = session.extract_many([("a.mp3", AUDIO)] * 200, tmp_path)
    for _ in range(2):
        assert (await anext(many)).ok
    await session.aclose(drain=False)
    with pytest.raises(SessionClosedError):
        await drained(many, [])


async def test_what_the_sources_raise_is_raised_after_the_outcomes(
    session: MusicGPTSession, tmp_path: Path
) -> None:
    """An iterable that breaks off ends the batch with its own error, and loses no outcome."""

    async def broken() -> AsyncIterator[tuple[str, bytes]]:
        yield "a.mp3", AUDIO
        raise ZeroDivisionError

    outcomes: list[Outcome] = []
    with pytest.raises(ZeroDivisionError):
        await drained(session.extract_many(broken(), tmp_path, stems=["bass"]), outcomes)
    assert [each.ok for each in outcomes] == [True]


async def test_one_track_in_one_call(session: MusicGPTSession, tmp_path: Path) -> None:
    """extract() submits, waits and downloads in one await, and can be gathered."""
    calls = [session.extract((f"{n}.mp3", AUDIO), tmp_path, stems=["bass"]) for n in range(3)]
    files = await asyncio.gather(*calls)
    assert sorted(each["bass"].name for each in files) == [f"{n} - bass.wav" for n in range(3)]
