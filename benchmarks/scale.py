"""What grows with what a journal holds, and with what a batch lists.

Every client here is ours, at another size. The first table opens journals that hold so many
finished jobs, resumes, and extracts more tracks; the second one lists so many tracks.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import vendor
from comparison import Column, Table, compare
from uploading import memory

MIB = 1 << 20
FINISHED = (1000, 10_000, 100_000)  # jobs in a journal
LISTED = (1000, 1_000_000)  # tracks
MORE = 100  # tracks that are extracted on top
PAGE = 2000  # rows that are inserted at a time
JOURNAL_COLUMNS = (
    Column("file MiB", lambda each: each["file"], ".1f"),
    Column("open s", lambda each: each["open"]),
    Column("resume s", lambda each: each["resume"]),
    Column("CPU ms/track", lambda each: each["track"]),
    Column("jobs --json CPU s", lambda each: each["jobs"]),
    Column("its MiB", lambda each: each["jobs_memory"], ".0f"),
)
LISTED_COLUMNS = (
    Column("CPU ms to the first submit", lambda each: 1000 * each["cpu"], ".0f"),
    Column("added MiB", lambda each: each["added"], ".1f"),
)
COUNTED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""

Run = Callable[[], Awaitable[dict[str, float]]]


async def fill(path: Path, jobs: int, *, seed: int) -> None:
    """Add finished jobs to a journal, each with four stems downloaded."""
    from musicgpt_async import Journal  # noqa: PLC0415 - each client loads the library alone
    from musicgpt_async._io.job_rows import encode_record  # noqa: PLC0415

    async with Journal(path) as journal:
        statements: Any = journal._sql
        for first in range(0, jobs, PAGE):
            numbers = range(first, min(first + PAGE, jobs))
            rows = [
                {**encode_record(_make_record(path.parent, f"{seed}-{n}")), "owner": None}
                for n in numbers
            ]

            async def insert(connection: Any, rows: list[dict[str, Any]] = rows) -> None:
                await connection.execute(statements.insert, rows)

            await journal._write(insert)


def _make_record(directory: Path, name: str) -> Any:
    from musicgpt_async.models import JobRecord, JobState, StemFile, StemLinks  # noqa: PLC0415

    stems = ("vocals", "drums", "bass", "piano")
    task_id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    link = f"https://files.example.com/files/{task_id}"
    return JobRecord(
        id=task_id.replace("-", ""),
        fingerprint=f"{task_id}-fingerprint-of-the-track",
        source=f"/music/{name}.flac",
        title=name,
        stems=stems,
        state=JobState.COMPLETED,
        size=30 * MIB,
        sha256="0" * 64,
        task_id=task_id,
        conversion_id=task_id,
        eta=60.0,
        credit_estimate=2.5,
        sent_at=1e9,
        accepted_at=1e9,
        links={
            stem: StemLinks(mp3=f"{link}/{stem}.mp3", wav=f"{link}/{stem}.wav") for stem in stems
        },
        cost=2.5,
        duration=240.0,
        directory=str(directory),
        format="best",
        files=tuple(
            StemFile(
                stem=stem,
                format="wav",
                path=str(directory / name / f"{stem}.wav"),
                size=40 * MIB,
                sha256="0" * 64,
            )
            for stem in stems
        ),
        created_at=1e9,
    )


@asynccontextmanager
async def journal(
    base: str, parent: str, more: int, share: float, *, finished: int
) -> AsyncIterator[Run]:
    """Work on a journal of so many finished jobs."""
    from musicgpt_async import Journal, Limits, MusicGPTSession  # noqa: PLC0415
    from musicgpt_async.cli.settings import JOURNAL  # noqa: PLC0415

    with tempfile.TemporaryDirectory(dir=parent) as directory:
        path = Path(directory, JOURNAL)
        await fill(path, max(10, int(share * finished)), seed=finished)
        tracks = [Path(directory, f"{number}.wav") for number in range(more)]
        for track in tracks:
            track.write_bytes(b"RIFF" + os.urandom(4092))

        async def run() -> dict[str, float]:
            figures = {"file": path.stat().st_size / MIB}  # noqa: ASYNC240
            started = time.perf_counter()
            async with MusicGPTSession(
                "emulator-key",
                base_url=base,
                limits=Limits(parallel=10, polls_per_minute=3000),
                journal=Journal(path),
            ) as session:
                opened = time.perf_counter()
                assert not await session.resume()
                resumed = time.perf_counter()
                cpu = time.process_time()
                async for outcome in session.extract_many(tracks, directory, stems=["vocals"]):
                    assert outcome.ok, outcome.error
                cpu = time.process_time() - cpu
            figures |= {"open": opened - started, "resume": resumed - opened}
            return {**figures, "track": 1000 * cpu / more, **await _list_jobs(directory)}

        yield run


async def _list_jobs(directory: str) -> dict[str, float]:
    """Measure the command that lists the jobs."""
    command = [sys.executable, "-m", "musicgpt_async.cli", "jobs", "--json", directory]
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", COUNTED, *command], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    return dict(zip(("jobs", "jobs_memory"), map(float, done.stdout.split()), strict=True))


@asynccontextmanager
async def listing(base: str, share: float, *, tracks: int) -> AsyncIterator[Run]:
    """List tracks for a batch on an account that is full, until the first one is submitted."""
    from musicgpt_async import Limits, MusicGPTSession  # noqa: PLC0415

    async with MusicGPTSession("emulator-key", base_url=base, limits=Limits.FREE) as session:

        async def run() -> dict[str, float]:
            names = (f"https://127.0.0.1/{number}.flac" for number in range(tracks))
            outcomes = session.extract_many(names, "stems")
            first = asyncio.ensure_future(anext(outcomes))
            while not session.slots[0]:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return {}

        yield run


CLIENTS: dict[str, Any] = {
    **{f"{jobs:,} finished": partial(journal, finished=jobs) for jobs in FINISHED},
    **{f"{tracks:,} listed": partial(listing, tracks=tracks) for tracks in LISTED},
}


def tables(rounds: int, *, quick: bool) -> Iterator[Table]:
    """Work on journals of 1,000 to 100,000 jobs; list up to 1,000,000 tracks."""
    share = 0.1 if quick else 1.0
    with (
        tempfile.TemporaryDirectory(dir=memory()) as directory,
        vendor.running(seconds=0.2, stem_bytes=4096, parallel=10) as base,
    ):
        yield compare(
            f"Journals of finished jobs{' (a tenth of them)' if quick else ''}",
            "scale",
            JOURNAL_COLUMNS,
            rounds=min(rounds, 3),
            arguments={"base": base, "parent": directory, "more": MORE, "share": share},
            warm_up={"share": 0.0, "more": 1},
            names=[name for name in CLIENTS if name.endswith("finished")],
        )
        yield compare(
            "Batches that list so many tracks",
            "scale",
            LISTED_COLUMNS,
            rounds=min(rounds, 3),
            arguments={"base": base, "share": share},
            warm_up={},
            names=[name for name in CLIENTS if name.endswith("listed")],
        )
