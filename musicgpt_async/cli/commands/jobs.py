"""`jobs`: what a journal holds, a line at a time."""

from __future__ import annotations

import json
import time

import anyio.to_thread

from musicgpt_async import Journal
from musicgpt_async._rules import filenames
from musicgpt_async._rules.records import is_unfinished, was_delivered
from musicgpt_async.cli import streams
from musicgpt_async.cli.commands.extract import require_journal
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.text import count, plain
from musicgpt_async.journal import Lease
from musicgpt_async.models import JobRecord, JobState

# Widths of the columns; the last one is as long as it needs to be.
STATE, TASK, CREDITS, FILES = 10, 36, 8, 5
# States that are shown with their reason.
TELLING = (JobState.FAILED, JobState.UNKNOWN)


async def show(settings: Settings) -> int:
    """Print every job of the journal in the output directory; return the exit code.

    Raises:
        UsageError: There is no journal.
        JournalError: It cannot be read.
    """
    await anyio.to_thread.run_sync(require_journal, settings)
    async with Journal(settings.journal_path) as journal:
        owners = await journal.owners()
        if not settings.json:
            streams.write_result(_columns("STATE", "TASK", "CREDITS", "FILES", "TRACK"))
        left = 0
        async for record in journal.records():
            lease = owners.get(record.id)
            streams.write_result(
                as_json(record, lease) if settings.json else as_line(record, lease)
            )
            left += is_unfinished(record) and not (lease and lease.is_live)
    if left and not settings.json:
        command = plain(settings.resume_command)
        streams.say(f"{count(left, 'track')} not finished; to resume them: {command}")
    return 0


def as_line(record: JobRecord, lease: Lease | None) -> str:
    """Return a job as a line of the table."""
    cost = record.credit_estimate if record.cost is None else record.cost
    credits_ = "" if cost is None else f"{'~' if record.cost is None else ''}{cost:g}"
    track = record.label or filenames.name_of(record.source) or record.id
    told = f": {record.error}" if record.error and record.state in TELLING else ""
    busy = "  (in work)" if lease and lease.is_live else ""
    return plain(
        _columns(
            str(record.state),
            record.task_id or (f"job {record.id}" if was_delivered(record) else "-"),
            credits_,
            str(len(record.files)),
            f"{track}{busy}{told}",
        )
    )


def as_json(record: JobRecord, lease: Lease | None) -> str:
    """Return a job as one line of JSON."""
    return json.dumps(
        {
            "id": record.id,
            "source": record.source,
            "label": record.label,
            "state": record.state,
            "stems": record.stems,
            "preprocessing": record.preprocessing,
            "eco_mode": record.eco_mode,
            "task_id": record.task_id,
            "conversion_id": record.conversion_id,
            "credits_estimated": record.credit_estimate,
            "credits_charged": record.cost,
            "duration": record.duration,
            "directory": record.directory,
            "format": record.format,
            "files": [file.path for file in record.files],
            "error": record.error,
            "created": _moment(record.created_at),
            "accepted": _moment(record.accepted_at),
            "in_work": lease is not None and lease.is_live,
        }
    )


def _columns(state: str, task: str, credits_: str, files: str, track: str) -> str:
    return f"{state:<{STATE}} {task:<{TASK}} {credits_:>{CREDITS}} {files:>{FILES}}  {track}"


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
