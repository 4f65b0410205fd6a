"""What `doctor` finds out about a journal."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs

from musicgpt_async._io.schema import SCHEMA_VERSION
from musicgpt_async._io.server_settings import ServerSettings
from musicgpt_async.errors import MusicGPTError
from musicgpt_async.journal import Journal

LISTEN_TIMEOUT = 5.0  # seconds
MAX_CLOCK_OFFSET = 5.0  # seconds
CONNECTIONS_EACH = 4  # that one process may use


@attrs.frozen
class JournalCheck:
    """What one check found.

    Attributes:
        subject: What is so.
        advice: What to do about it, empty if it is in order.
    """

    subject: str
    advice: str = ""


async def check_journal(place: str) -> AsyncIterator[JournalCheck]:
    """Open a journal, creating it if there is none, and check what it is on."""
    try:
        async with Journal(place) as journal:
            yield JournalCheck(f"{journal!r} has schema version {SCHEMA_VERSION}")
            settings = await journal._read_server_settings()
            if settings is not None:
                for check in _check_settings(settings):
                    yield check
                yield _check_listen(is_proven=await journal._notifications.prove(LISTEN_TIMEOUT))
    except MusicGPTError as error:
        yield JournalCheck(f"the journal {place.rpartition('@')[2]}", error.message)


def _check_settings(found: ServerSettings) -> list[JournalCheck]:
    clock = f"this machine's clock is {found.clock_offset:+.1f} s off the server's"
    return [
        JournalCheck("the server's fsync is on")
        if found.has_fsync
        else JournalCheck(
            "the server's fsync is off",
            "a crash of its machine loses what was paid for; set fsync = on",
        ),
        JournalCheck("the server has no asynchronous standby")
        if not found.async_standbys
        else JournalCheck(
            f"the server has {found.async_standbys} asynchronous standby(s)",
            "one that takes over may lack the latest jobs; list it in synchronous_standby_names",
        ),
        JournalCheck(clock)
        if abs(found.clock_offset) <= MAX_CLOCK_OFFSET
        else JournalCheck(clock, "lost responses are found by time; synchronize the clock by NTP"),
        JournalCheck(f"the server has {found.free_connections} free connections")
        if found.free_connections >= CONNECTIONS_EACH
        else JournalCheck(
            f"the server has {found.free_connections} free connections",
            f"each process needs up to {CONNECTIONS_EACH}; raise max_connections, or use a pooler",
        ),
    ]


def _check_listen(*, is_proven: bool) -> JournalCheck:
    if is_proven:
        return JournalCheck("notifications of the server arrive")
    return JournalCheck(
        "notifications of the server do not arrive",
        "other processes hear of a webhook only after a second; connect to the server itself, not "
        "through a pooler in transaction mode",
    )
