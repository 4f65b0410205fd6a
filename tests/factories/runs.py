"""What earlier runs left: tracks, journals, and processes that were killed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import attrs
from factories.forked import BatchProcess
from factories.sessions import connected

from musicgpt_async import (
    JobState,
)
from musicgpt_async.emulator import Emulator
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord

SECRET = "kept between runs"
STEMS = ["bass", "drums"]
LONG = 24 << 20
# A wait that ends in a failure rather than in a hang.
HANG = 60.0

FOREVER: dict[str, Any] = {"times": None}


def track(folder: Path, name: str = "song.mp3", size: int = 20_000) -> Path:
    """Make a track, different for each name."""
    path = folder / name
    path.write_bytes((b"ID3" + name.encode()).ljust(size, b"~"))
    return path


def lost(name: str = "a", **changes: Any) -> JobRecord:
    """Return the record of a submit that was delivered a minute ago without a response."""
    return attrs.evolve(
        JobRecord(
            id=name,
            fingerprint=f"print of {name}",
            source=f"/music/{name}.mp3",
            stems=tuple(STEMS),
            state=JobState.UNACKNOWLEDGED,
            sent_at=time.time() - 50.0,
            created_at=time.time() - 60.0,
        ),
        **changes,
    )


async def written(path: Path, *records: JobRecord) -> Path:
    """Write records to a journal that has no owner."""
    async with Journal(path) as journal:
        for record in records:
            await journal._add_or_get(record)
    return path


async def read(path: Path) -> list[JobRecord]:
    """Return what a journal holds."""
    async with Journal(path) as journal:
        return [record async for record in journal.records()]


async def accepted_by(vendor: Emulator, stems: Sequence[str] = STEMS) -> str:
    """Let the emulator accept a track from another client; return its task."""
    form = aiohttp.FormData({"stems": json.dumps(list(stems))})
    form.add_field("audio_file", b"ID3" + bytes(9000), filename="other.mp3")
    async with aiohttp.request(
        "POST",
        f"{vendor.base_url}/Extraction",
        data=form,
        headers={"Authorization": vendor.api_key},
    ) as answer:
        return str((await answer.json())["task_id"])


def asked(vendor: Emulator, word: str) -> int:
    """Return how many requests had a word in their path."""
    return sum(word in each.path for each in vendor.requests)


def there(folder: Path) -> dict[str, str]:
    """Return file name → digest of everything in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


async def reference(vendor: Emulator, folder: Path, *tracks: Path) -> dict[str, str]:
    """Return the expected files, downloaded by an independent session."""
    async with connected(vendor, None) as session:
        for submission in vendor.submissions:
            await session.attach(submission.task_id).download(folder)
    digests = there(folder)
    titles = {path.name: path.stem for path in tracks}
    return {
        f"{titles[each.file_name or '']} - {stem}.wav": digests[f"{each.task_id} - {stem}.wav"]
        for each in vendor.submissions
        for stem in each.stems
    }


@asynccontextmanager
async def process(
    vendor: Emulator, folder: Path, *tracks: Path, **changes: Any
) -> AsyncIterator[BatchProcess]:
    """Run a batch in another process, which is killed at the end of the block."""
    settings = {
        "base_url": vendor.base_url,
        "key": vendor.api_key,
        "port": 0,
        "journal": str(folder / "journal.db"),
        "lease": 0.5,
        "parallel": 5,
        "deadline": 60.0,
        "out": str(folder / "stems"),
        "stems": STEMS,
        "tracks": [str(path) for path in tracks],
        "force": False,
        **changes,
    }
    async with BatchProcess(settings).running() as running:
        yield running


async def until_leases_expire(path: Path) -> None:
    """Wait until the leases of a killed process have run out."""
    with anyio.fail_after(HANG):
        async with Journal(path) as journal:
            while any(lease.is_live for lease in (await journal._owners()).values()):
                await anyio.sleep(0.02)
