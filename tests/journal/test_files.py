"""A journal's file: damage is seen, and files that are not its own are left alone."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from factories.journals import beside, contents_of, execute, job, killed_owner

from musicgpt_async.errors import ConfigurationError, JournalError
from musicgpt_async.journal import Journal

pytestmark = pytest.mark.anyio


def _a_journal(path: Path) -> None:
    async def fill() -> None:
        async with Journal(path) as journal:
            for number in range(200):
                await journal._add_or_get(job(f"{number}"))

    asyncio.run(fill())


def _random_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def _text(path: Path) -> None:
    path.write_text("my shopping list\n" * 100)


def _only_a_header(path: Path) -> None:
    _a_journal(path)
    os.truncate(path, 50)


def _half_a_journal(path: Path) -> None:
    _a_journal(path)
    os.truncate(path, path.stat().st_size // 2)


def _half_a_page_less(path: Path) -> None:
    _a_journal(path)
    os.truncate(path, path.stat().st_size - 2048)


def _a_torn_page(path: Path) -> None:
    _a_journal(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(os.urandom(4096))


def _nothing_but_a_log(path: Path) -> None:
    path.touch()
    path.with_name(path.name + "-wal").write_bytes(os.urandom(4128))


def _a_link_to_a_log(path: Path) -> None:
    target = path.with_name("target")
    _nothing_but_a_log(target)
    path.symlink_to(target)


def _another_programs_database(path: Path) -> None:
    execute(path, "CREATE TABLE holidays (day TEXT)", "INSERT INTO holidays VALUES ('today')")


def _another_programs_log(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE musicgpt_journal (version INTEGER)")
        copies = {file: file.read_bytes() for file in path.parent.iterdir()}
    for file, content in copies.items():
        file.write_bytes(content)


def _a_later_version(path: Path) -> None:
    _a_journal(path)
    execute(path, "UPDATE musicgpt_journal SET version = 99")


def _an_earlier_version(path: Path) -> None:
    _a_journal(path)
    execute(path, "UPDATE musicgpt_journal SET version = 1")


def _no_version(path: Path) -> None:
    _a_journal(path)
    execute(path, "DELETE FROM musicgpt_journal")


def _a_folder(path: Path) -> None:
    path.mkdir()


def _a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_random_bytes, "no journal"),
        (_text, "no journal"),
        (_only_a_header, "no journal"),
        (_half_a_journal, "damaged"),
        (_half_a_page_less, "damaged"),
        (_a_torn_page, "damaged"),
        (_nothing_but_a_log, "damaged"),
        (_a_link_to_a_log, "damaged"),
        (_another_programs_database, "another program's"),
        (_another_programs_log, "another program's"),
        (_a_later_version, "Upgrade"),
        (_an_earlier_version, "the release that made it"),
        (_no_version, "version None"),
        (_a_folder, "is a folder"),
        (_a_pipe, "no regular file"),
    ],
)
async def test_what_is_no_sound_journal_is_left_as_it_is(
    tmp_path: Path, make: Any, words: str
) -> None:
    """A damaged or foreign file is refused by name, and neither it nor its folder changes."""
    path = tmp_path / "journal.db"
    await anyio.to_thread.run_sync(make, path)
    before = contents_of(tmp_path)
    with pytest.raises(JournalError, match=words) as caught:
        await Journal(path)._open()
    assert str(path) in str(caught.value)
    assert contents_of(tmp_path) == before


async def test_damage_to_a_journal_with_a_log_is_named(tmp_path: Path) -> None:
    """Where a killed process left a log, a truncated file is refused and its bytes are kept."""
    path = tmp_path / "journal.db"
    await anyio.to_thread.run_sync(_a_journal, path)
    killed_owner(path)
    os.truncate(path, 8192)
    before = (path.read_bytes(), beside(path, "-wal").read_bytes())
    with pytest.raises(JournalError, match="damaged"):
        await Journal(path)._open()
    assert (path.read_bytes(), beside(path, "-wal").read_bytes()) == before


async def test_there_must_be_a_folder(tmp_path: Path) -> None:
    """A journal makes its file, not the folders above it."""
    with pytest.raises(JournalError, match="there is no folder"):
        await Journal(tmp_path / "nowhere" / "journal.db")._open()
    assert contents_of(tmp_path) == {}


@pytest.mark.parametrize("name_", ["a b?c=d&e#f%20.db", ":memory:", "file:x", os.fsdecode(b"\xff")])
async def test_any_name_will_do(tmp_path: Path, name_: str) -> None:
    """Characters that mean something in a URL are plain ones in the name of a file."""
    for _ in range(2):
        async with Journal(tmp_path / name_) as journal:
            await journal._add_or_get(job())
    assert list(contents_of(tmp_path)) == [name_]


async def test_a_link_to_a_journal_is_that_journal(tmp_path: Path) -> None:
    """A symbolic link and its target are one journal with one log."""
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    async with Journal(target) as first, Journal(link) as second:
        await first._add_or_get(job())
        assert await second._find("a") == job()
    assert set(contents_of(tmp_path)) == {"link", "target"}


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "://", "http://host/journal.db"])
async def test_other_urls_are_refused(url: str) -> None:
    """Only SQLite's and PostgreSQL's URLs lead to a journal."""
    with pytest.raises(ConfigurationError, match="SQLite or PostgreSQL"):
        Journal(url)


async def test_a_password_stays_out_of_the_name() -> None:
    """A journal's repr shows its location, without the password."""
    pytest.importorskip("asyncpg")
    journal = Journal("postgresql://user:secret@127.0.0.1:1/db")
    assert "secret" not in repr(journal)
    with pytest.raises(JournalError, match=r"127\.0\.0\.1:1") as caught:
        await journal._open()
    assert "secret" not in "".join(traceback.format_exception(caught.value))
