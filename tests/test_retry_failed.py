"""extract_many(retry_failed=): tracks that MusicGPT failed in an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories.sessions import SOUND, connected

from musicgpt_async import BatchItem, ExtractionFailedError, Outcome
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio


async def run(vendor: Emulator, folder: Path, sources: Any, **options: Any) -> list[Outcome]:
    """Run a batch in a new session; return its outcomes."""
    async with connected(vendor, folder / "journal.db") as session:
        many = session.extract_many(sources, folder / "stems", stems=["bass"], **options)
        return [outcome async for outcome in many]


async def fail_once(vendor: Emulator, folder: Path, source: Any) -> Outcome:
    """Run a batch of one track, which MusicGPT fails."""
    vendor.script(Fault("job", "fails", message="not music"))
    (outcome,) = await run(vendor, folder, [source])
    assert isinstance(outcome.error, ExtractionFailedError)
    return outcome


@pytest.fixture
def song_path(tmp_path: Path) -> Path:
    """A track on disk."""
    path = tmp_path / "song.mp3"
    path.write_bytes(SOUND)
    return path


async def test_a_failed_track_is_not_paid_again(
    vendor: Emulator, tmp_path: Path, song_path: Path
) -> None:
    """The second run has the first one's failure as its outcome, beside a new track's files."""
    first = await fail_once(vendor, tmp_path, song_path)
    outcomes = await run(vendor, tmp_path, [song_path, ("new.mp3", SOUND + b"\1")])
    assert sorted(each.ok for each in outcomes) == [False, True]
    error = next(each.error for each in outcomes if not each.ok)
    assert isinstance(error, ExtractionFailedError)
    assert (error.task_id, error.message) == (first.error.task_id, first.error.message)  # type: ignore[union-attr]
    assert len(vendor.submissions) == 2


@pytest.mark.parametrize("options", [{"retry_failed": True}, {"force": True}])
async def test_a_failed_track_is_paid_again_on_demand(
    options: dict[str, bool], vendor: Emulator, tmp_path: Path, song_path: Path
) -> None:
    """retry_failed= and force=True submit it again."""
    await fail_once(vendor, tmp_path, song_path)
    (outcome,) = await run(vendor, tmp_path, [song_path], **options)
    assert outcome.ok
    assert len(vendor.submissions) == 2
    (again,) = await run(vendor, tmp_path, [song_path])  # the later success counts from then on
    assert again.ok
    assert len(vendor.submissions) == 2


async def test_submit_itself_asks_again(vendor: Emulator, tmp_path: Path, song_path: Path) -> None:
    """Submitting a single failed track submits it again."""
    await fail_once(vendor, tmp_path, song_path)
    async with connected(vendor, tmp_path / "journal.db") as session:
        await session.submit(song_path, stems=["bass"])
    assert len(vendor.submissions) == 2


async def test_a_failed_key_is_not_paid_again(vendor: Emulator, tmp_path: Path) -> None:
    """With keys a copy of the failed track is the same failure."""
    items = [
        BatchItem(source=(f"{n}.mp3", SOUND + bytes([n])), options={"key": "k"}) for n in range(2)
    ]
    await fail_once(vendor, tmp_path, items[0])
    (outcome,) = await run(vendor, tmp_path, items[1:])
    assert isinstance(outcome.error, ExtractionFailedError)
    assert len(vendor.submissions) == 1


async def test_a_track_that_was_refused_is_submitted_again(
    vendor: Emulator, tmp_path: Path, song_path: Path
) -> None:
    """A track that was not accepted was not paid for, and can be submitted again."""
    vendor.script(Fault("submit", "status", status=422, body="detail_list"))
    (refused,) = await run(vendor, tmp_path, [song_path])
    assert not refused.ok
    (outcome,) = await run(vendor, tmp_path, [song_path])
    assert outcome.ok
