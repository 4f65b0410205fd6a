"""What a database's errors mean: what the user can do, and how long it is worth trying again."""

from __future__ import annotations

import sqlite3

from musicgpt_async.errors import MusicGPTError

# Seconds that a writer waits for another process's transaction.
LOCK_TIMEOUT = 30.0
# Seconds that a read or a write waits for a server that is away: a restart, a failover, a network.
OUTAGE_TIMEOUT = 300.0
ADVICE = {
    sqlite3.SQLITE_BUSY: "another process keeps it locked; end that process or try again",
    sqlite3.SQLITE_FULL: "the disk is full; make room and try again",
    sqlite3.SQLITE_IOERR: "the disk failed; check its room, its limits and its health",
    sqlite3.SQLITE_READONLY: "it may not be written; make it and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its folder exists and is writable",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it aside and restore a copy, or start a new one",
    sqlite3.SQLITE_NOTADB: "it is no journal; move it aside or choose another path",
}
# SQLSTATEs of PostgreSQL that pass: deadlock, serialization failure, too many connections, a server
# that is shut down, has crashed or is starting, and a primary that has become a standby.
_TRANSIENT = frozenset({"40P01", "40001", "53300", "57P01", "57P02", "57P03", "25006"})
_LOCK_NOT_AVAILABLE = "55P03"


def advise(error: BaseException) -> str:
    """Return what happened and what to do about it."""
    code = _sqlite_code(error)
    return f"{ADVICE[code]} ({error})" if code in ADVICE else f"{error or type(error).__name__}"


def is_busy(error: BaseException) -> bool:
    """Return whether another process's transaction is in the way."""
    cause = getattr(error, "orig", None) or error
    return _sqlite_code(cause) == sqlite3.SQLITE_BUSY or _state(cause) == _LOCK_NOT_AVAILABLE


def is_outage(error: BaseException) -> bool:
    """Return whether a server cannot be reached, or not used, for now."""
    cause = getattr(error, "orig", None) or error
    if isinstance(error, MusicGPTError):  # some are OSErrors: a work's own, which stay as they are
        return False
    if isinstance(cause, OSError) or getattr(error, "connection_invalidated", False):
        return True
    state = _state(cause)
    return state in _TRANSIENT or state.startswith("08")


def find_patience(error: BaseException) -> float:
    """Return for how many seconds what failed so may be tried again, 0 if it is of no use."""
    if is_busy(error):
        return LOCK_TIMEOUT
    return OUTAGE_TIMEOUT if is_outage(error) else 0.0


def _state(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or "")


def _sqlite_code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
