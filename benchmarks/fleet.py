"""Processes that share an account on one journal, beside one process: time, refusals and load.

    python benchmarks/fleet.py [--jobs 16] [--processes 1,2,4] [--seconds 4.0] [--journal URL]

Each round has a new emulator with the slots and polls of the largest plan, and runs the same number
of jobs. The journal is a file of SQLite, with ``--postgres`` a server that is started for the run,
or what ``--journal`` names. ``--jobs 200 --processes 1,4,8`` is the large run.

No round can be faster than its bound: the jobs in turns of as many as there are slots, and a poll
for each. With jobs shorter than a second and a half the polls are the bound, not the slots.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import attrs

from musicgpt_async.emulator import Emulator

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SLOTS, POLLS_PER_MINUTE = 10, 500
MAX_JOBS, MAX_PROCESSES = 400, 16
ROUND_TIMEOUT = 600.0  # seconds
STATISTICS_DELAY = 1.5  # seconds after which a server's statistics have what ended before
BEFORE = (
    "Before processes shared an account, 16 jobs of 4 s took 9 s in one process, 33 s in four\n"
    "that got their own webhooks, and 121 s in four behind one webhook URL."
)


@attrs.frozen
class DatabaseLoad:
    """What a database has done so far.

    Attributes:
        transactions: Transactions that have ended.
        statements: Statements of clients, ``None`` if the server does not count them.
    """

    transactions: int
    statements: int | None

    def __sub__(self, before: DatabaseLoad) -> DatabaseLoad:
        statements = None
        if self.statements is not None and before.statements is not None:
            statements = self.statements - before.statements
        return DatabaseLoad(self.transactions - before.transactions, statements)

    @classmethod
    async def read(cls, url: str) -> DatabaseLoad | None:
        """Ask the server of a journal; ``None`` for a file."""
        if "://" not in url or url.startswith("sqlite"):
            return None
        import asyncpg  # noqa: PLC0415 - an extra

        await asyncio.sleep(STATISTICS_DELAY)
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        try:
            transactions = await connection.fetchval(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database"
                " WHERE datname = current_database()"
            )
            if not await connection.fetchval("SELECT to_regclass('pg_stat_statements')"):
                return cls(transactions, None)
            statements = await connection.fetchval(
                "SELECT sum(calls) FROM pg_stat_statements AS all_of JOIN pg_database AS here"
                " ON here.oid = all_of.dbid WHERE here.datname = current_database()"
            )
            return cls(transactions, int(statements))
        finally:
            await connection.close()


@attrs.frozen(kw_only=True)
class Round:
    """The figures of one round.

    Attributes:
        processes: Processes.
        jobs: Jobs of all processes.
        wall: Seconds from the word to begin until the last process has ended its jobs.
        bound: Seconds that it takes at least.
        twice: Submits of a track that had been submitted.
        failed: Jobs that failed.
        refused: Submits that met the limit.
        refused_polls: Polls that met the limit.
        polls: Polls.
        load: What the database did.
    """

    processes: int
    jobs: int
    wall: float
    bound: float
    twice: int
    failed: int
    refused: int
    refused_polls: int
    polls: int
    load: DatabaseLoad | None

    def line(self, one: Round) -> str:
        """Return a line of the table.

        Args:
            one: The round that it is compared with.
        """
        transactions = statements = ""
        if self.load is not None:
            transactions = f"{self.load.transactions / self.jobs:.1f}"
            if self.load.statements is not None:
                statements = f"{self.load.statements / self.jobs:.1f}"
        return (
            f"{self.processes:9}{self.wall:8.2f}{self.bound:7.1f}{self.wall / one.wall:8.2f}"
            f"{self.twice:6}{self.failed:7}{self.refused:8}{self.refused_polls:6}"
            f"{self.polls / self.jobs:10.1f}{transactions:>10}{statements:>11}"
        )


HEADER = (
    "                               |      refused |             per job\n"
    "processes seconds  bound  of one twice failed submits polls     polls    trans. statements"
)


async def run_round(journal: str, processes: int, jobs: int, seconds: float) -> Round:
    """Run jobs in so many processes."""
    from factories.accounts import open_process, run_together  # noqa: PLC0415 - from the tests

    vendor = Emulator(
        seconds=seconds,
        separate=False,
        stem_bytes=4096,
        parallel=SLOTS,
        polls_per_minute=POLLS_PER_MINUTE,
    )
    async with vendor, AsyncExitStack() as stack:
        tracks = [f"{time.time_ns()}-{number}.mp3" for number in range(jobs)]
        opened = [
            await stack.enter_async_context(
                open_process(vendor, journal, tracks[number::processes], parallel=SLOTS)
            )
            for number in range(processes)
        ]
        before = await DatabaseLoad.read(journal)
        async with asyncio.timeout(ROUND_TIMEOUT):
            await run_together(*opened)
        after = await DatabaseLoad.read(journal)
        files = [each.file_name for each in vendor.submissions]
        return Round(
            processes=processes,
            jobs=jobs,
            wall=max(each.seconds for each in opened),
            bound=max(-(-jobs // SLOTS) * seconds, 60.0 * jobs / POLLS_PER_MINUTE),
            twice=len(files) - len(set(files)),
            failed=sum(error is not None for each in opened for error in each.tracks.values()),
            refused=vendor.throttled["parallel"],
            refused_polls=vendor.throttled["polls"],
            polls=vendor.polls,
            load=None if before is None or after is None else after - before,
        )


@contextmanager
def choose_journal(place: str | None, *, on_postgres: bool) -> Iterator[str]:
    """Yield the place of a new journal, or the one that was named."""
    with tempfile.TemporaryDirectory() as folder:
        if place is not None or not on_postgres:
            yield place or str(Path(folder) / "journal.db")
            return
        with start_postgres() as url:
            yield url


@contextmanager
def start_postgres() -> Iterator[str]:
    """Run a server that counts statements; yield the URL of a database."""
    from factories.postgres import (  # noqa: PLC0415 - from the tests
        PostgresServers,
        find_installations,
        make_run_directory,
    )

    directory = make_run_directory()
    with (directory / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # once it is free, the tests' reaper stops the server
        server = PostgresServers(directory).start(
            find_installations()[-1],
            shared_preload_libraries="pg_stat_statements",
            **{"pg_stat_statements.track_utility": "off"},  # a transaction's begin and end
        )
        with server.database() as url:
            server.execute("CREATE EXTENSION pg_stat_statements", url.rpartition("/")[2])
            yield url


async def main() -> None:
    """Run the rounds one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--journal", default=None)
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args()
    jobs = min(options.jobs, MAX_JOBS)
    one: Round | None = None
    with choose_journal(options.journal, on_postgres=options.postgres) as journal:
        print(f"{jobs} jobs of {options.seconds:g} s, {SLOTS} slots, {POLLS_PER_MINUTE} polls")
        print(HEADER, flush=True)
        for count in map(int, options.processes.split(",")):
            found = await run_round(journal, min(count, MAX_PROCESSES), jobs, options.seconds)
            one = one or found
            print(found.line(one), flush=True)
    print(BEFORE)


if __name__ == "__main__":
    asyncio.run(main())
