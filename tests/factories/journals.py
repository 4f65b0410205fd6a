"""Records and time for journals, and other processes at the same one."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
from sqlalchemy.ext.asyncio import AsyncConnection

from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord

# A wait that ends in a failure rather than in a hang; no test comes near it.
GUARD = 60.0


async def let_pass(journal: Journal, seconds: float) -> None:
    """Have a time pass for all that the journal holds, by the database's clock."""
    tables = journal._sql.tables
    owners, deliveries = tables.owners, tables.deliveries

    async def work(connection: AsyncConnection) -> None:
        lease_until = owners.c.lease_until - seconds
        await connection.execute(owners.update().values(lease_until=lease_until))
        await connection.execute(deliveries.update().values(at=deliveries.c.at - seconds))

    await journal._write(work)


def job(name: str = "a", **changes: Any) -> JobRecord:
    """Return the record of a new track."""
    return attrs.evolve(
        JobRecord(id=name, fingerprint=f"track {name}", source=f"/music/{name}.flac"), **changes
    )


def select(path: Path, statement: str) -> list[Any]:
    """Return what a statement finds in a journal's file."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()


def execute(path: Path, *statements: str) -> None:
    """Change a journal's file behind its back."""
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def contents_of(path: Path) -> dict[str, bytes | None]:
    """Return each file of a folder with its content."""
    return {
        entry.name: entry.read_bytes() if stat.S_ISREG(entry.stat().st_mode) else None
        for entry in path.iterdir()
    }


# The start of scripts for second processes: a journal, a record, and a line when they are ready.
CHILD = """
import asyncio, os, resource, sys
from musicgpt_async.errors import JournalError
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord, JobState

def say(*words):
    print(*words, flush=True)

def job(name, **changes):
    return JobRecord(id=name, fingerprint="track " + name, source="", **changes)

place = sys.argv[1]
"""


@contextmanager
def child_process(code: str, place: object) -> Iterator[subprocess.Popen[str]]:
    """Run a second process, which is killed at the end of the block if it still runs."""
    command = [sys.executable, "-c", CHILD + textwrap.dedent(code), str(place)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def lines_of(child: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what a process says, line by line."""
    assert child.stdout is not None
    for line in child.stdout:
        yield line.strip()


def let_continue(child: subprocess.Popen[str]) -> None:
    """Send a waiting process its one word."""
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def answer_of(code: str, place: object) -> list[str]:
    """Run a process to its end and return its words."""
    with child_process(code, place) as child:
        out, _ = child.communicate(timeout=GUARD)
    assert child.returncode == 0
    return out.split()


def beside(path: Path, ending: str) -> Path:
    """Return the file beside another whose name ends so."""
    return path.with_name(path.name + ending)


OWNER = """
    async def main():
        async with Journal(place) as journal:
            for number in range(5):
                await journal._add_or_get(job(str(number)))
            say("entered")
            await asyncio.sleep(3600)

    asyncio.run(main())
"""


def killed_owner(place: object) -> None:
    """Enter five jobs by a process that is then killed."""
    with child_process(OWNER, place) as child:
        assert next(lines_of(child), None) == "entered"
