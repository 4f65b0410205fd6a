"""What `doctor` finds out about a journal."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Sequence

import attrs

from musicgpt_async._io.schema import SCHEMA_VERSION
from musicgpt_async._io.server_settings import ServerSettings
from musicgpt_async.errors import MusicGPTError
from musicgpt_async.journal import Journal

LISTEN_TIMEOUT = 5.0  # seconds
MAX_CLOCK_OFFSET = 5.0  # seconds
CONNECTIONS_EACH = 4  # that one process may use
LATEST_WEBHOOKS = 20  # jobs whose webhooks are judged
MIN_MISSING = 3  # jobs in a row without a webhook from which it is reported; one or two can be late


@attrs.frozen
class JournalCheck:
    """What one check found.

    Attributes:
        subject: What is so.
        advice: What to do about it, empty if it is in order.
    """

    subject: str
    advice: str = ""


@attrs.frozen
class WebhookOfJob:
    """The webhook of a finished job.

    Attributes:
        submitted_at: When the job was submitted, in seconds since the epoch.
        has_arrived: Whether a delivery arrived before the job was known to be finished.
    """

    submitted_at: float
    has_arrived: bool


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
            if webhooks := check_webhooks(await _read_webhooks(journal)):
                yield webhooks
    except MusicGPTError as error:
        yield JournalCheck(f"the journal {place.rpartition('@')[2]}", error.message)


async def _read_webhooks(journal: Journal) -> list[WebhookOfJob]:
    """Read the webhooks of the latest finished jobs that asked for one, the newest first."""
    return [WebhookOfJob(*each) for each in await journal._read_webhooks(LATEST_WEBHOOKS)]


def check_webhooks(latest: Sequence[WebhookOfJob]) -> JournalCheck | None:
    """Return whether webhooks arrive, or ``None`` if too few jobs asked for one.

    Args:
        latest: The webhooks of the latest finished jobs, the newest first.
    """
    missing = list(itertools.takewhile(lambda each: not each.has_arrived, latest))
    if len(missing) >= MIN_MISSING:
        first, last = _format_time(missing[-1].submitted_at), _format_time(missing[0].submitted_at)
        return JournalCheck(
            f"no webhook arrived in time for the latest {len(missing)} finished jobs that asked "
            f"for one (submitted {first} to {last})",
            "polls finished these jobs; check the public URL of the receiver with --webhook URL",
        )
    if len(missing) == len(latest):
        return None
    arrived = sum(each.has_arrived for each in latest)
    return JournalCheck(
        f"webhooks arrived for {arrived} of the latest {len(latest)} finished jobs that asked "
        "for one"
    )


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


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
