"""Processes that share an account on one journal, beside one process: time, refusals and polls.

    python benchmarks/fleet.py [--jobs 40] [--processes 1,4] [--seconds 1.0] [--journal URL]

Each round has a new emulator with ten slots and runs the same number of jobs. Without ``--journal``
the journal is a file of SQLite. ``--jobs 200 --processes 1,4,8`` is the large run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from musicgpt_async.emulator import Emulator

TESTS = Path(__file__).parents[1] / "tests"
SLOTS = 10
MAX_JOBS, MAX_PROCESSES = 400, 16
ROUND_TIMEOUT = 600.0  # seconds


async def run_round(journal: str, processes: int, jobs: int, seconds: float) -> str:
    """Run jobs in so many processes and return a line of figures."""
    sys.path.insert(0, str(TESTS))
    from factories.accounts import open_process, run_together  # noqa: PLC0415 - from the tests

    async with (
        Emulator(seconds=seconds, separate=False, stem_bytes=4096, parallel=SLOTS) as vendor,
        AsyncExitStack() as stack,
    ):
        tracks = [f"{time.time_ns()}-{number}.mp3" for number in range(jobs)]
        opened = [
            await stack.enter_async_context(
                open_process(vendor, journal, tracks[number::processes], parallel=SLOTS)
            )
            for number in range(processes)
        ]
        async with asyncio.timeout(ROUND_TIMEOUT):
            await run_together(*opened)
        wall = max(each.seconds for each in opened)
        errors = sum(error is not None for each in opened for error in each.tracks.values())
        files = [each.file_name for each in vendor.submissions]
        figures = {
            "processes": processes,
            "wall": round(wall, 2),
            "bound": round(-(-jobs // SLOTS) * seconds, 2),
            "submitted": len(files),
            "twice": len(files) - len(set(files)),
            "failed": errors,
            "refused": vendor.throttled["parallel"],
            "refused polls": vendor.throttled["polls"],
            "polls per job": round(vendor.polls / jobs, 2),
        }
    return json.dumps(figures)


async def main() -> None:
    """Run the rounds one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--processes", default="1,4")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--journal", default=None)
    options = parser.parse_args()
    jobs = min(options.jobs, MAX_JOBS)
    with tempfile.TemporaryDirectory() as folder:
        journal = options.journal or str(Path(folder) / "journal.db")
        for count in map(int, options.processes.split(",")):
            processes = min(count, MAX_PROCESSES)
            print(await run_round(journal, processes, jobs, options.seconds), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
