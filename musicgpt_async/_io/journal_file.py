"""Checks of a journal's file before SQLite may touch it.

SQLite itself may write when it opens a file, so another program's database or a damaged one is
refused here, byte for byte as it was.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from musicgpt_async._io.database_errors import LOCK_TIMEOUT
from musicgpt_async._io.schema import APPLICATION_ID, check_version
from musicgpt_async.errors import JournalError


def inspect_file(file: Path) -> None:
    """Refuse a file that is no journal, without leaving a trace on it or beside it."""
    entry = _stat(file)
    if entry is None:
        _check_folder(file)
        return
    if stat.S_ISDIR(entry.st_mode):
        raise JournalError(f"{file} is a folder; give the journal the name of a file in it.")
    if not stat.S_ISREG(entry.st_mode):
        raise JournalError(f"{file} is no regular file; choose another path for the journal.")
    _check_header(file)
    _check_folder(file)
    if not os.access(file, os.W_OK):
        raise JournalError(f"The journal {file} may not be written; make it writable.")
    if entry.st_size:
        _check_content(file)


def _check_folder(file: Path) -> None:
    folder = file.parent
    if not folder.is_dir():
        raise JournalError(f"The journal {file} cannot be made: there is no folder {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise JournalError(
            f"The journal {file} cannot be used: nothing may be written in the folder {folder}."
        )


def _check_header(file: Path) -> None:
    """Read the first 100 bytes by hand: SQLite itself might write on opening."""
    with file.open("rb") as stream:
        header = stream.read(100)
    if not header and not _has_content(_sibling(file, "-wal")):
        return
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise JournalError(
            f"{file} is no journal, or a damaged one; it was left as it is. "
            "Move it aside and restore a copy, or choose another path."
        )
    if int.from_bytes(header[68:72]) != APPLICATION_ID:
        raise JournalError(
            f"{file} is another program's SQLite database; it was left as it is. "
            "Choose another path for the journal."
        )


def _check_content(file: Path) -> None:
    while True:
        before = _traces(file)
        try:
            return _verify_content(file)
        except (JournalError, sqlite3.Error):
            if _traces(file) == before:
                raise
            # Another process wrote while we looked past its locks: look again.


def _traces(file: Path) -> list[tuple[int, int]]:
    found = (_stat(path) for path in (file, _sibling(file, "-wal"), _sibling(file, "-journal")))
    return [(entry.st_size, entry.st_mtime_ns) if entry else (0, 0) for entry in found]


def _verify_content(file: Path) -> None:
    if _has_content(_sibling(file, "-journal")):
        return  # Its creation was broken off: SQLite undoes that when it opens the file.
    # Without a log beside it the file is all there is, and `immutable` makes no log either.
    query = "mode=ro" if _has_content(_sibling(file, "-wal")) else "mode=ro&immutable=1"
    uri = f"{file.as_uri()}?{query}"
    with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT)) as database:
        version = database.execute("SELECT version FROM musicgpt_journal").fetchone()
        check_version(str(file), version and version[0])
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise JournalError(f"The journal {file} is damaged ({verdict}); restore a copy of it.")


def _sibling(file: Path, ending: str) -> Path:
    real = file.resolve()
    return real.with_name(real.name + ending)


def _has_content(file: Path) -> bool:
    entry = _stat(file)
    return entry is not None and entry.st_size > 0


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
