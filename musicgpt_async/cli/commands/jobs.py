"""`jobs`: what a journal holds, a line at a time."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator

import anyio.to_thread

from musicgpt_async import Journal
from musicgpt_async._rules.records import is_unfinished, was_delivered
from musicgpt_async.cli import streams
from musicgpt_async.cli.attempts import Overview
from musicgpt_async.cli.commands.task_list import show_tasks
from musicgpt_async.cli.journals import require_journal
from musicgpt_async.cli.messages import for_shell
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.states import TrackState, state_of
from musicgpt_async.cli.text import count, plain
from musicgpt_async.cli.track_json import describe_record
from musicgpt_async.journal import Lease
from musicgpt_async.models import JobRecord

# Widths of the columns; the last one is as long as it needs to be.
STATE, TASK, CREDITS, FILES = 11, 36, 8, 5
# A narrower terminal shows the beginning of a task's id only, which distinguishes tasks.
WIDE, SHORT_TASK = 110, 9
MIN_TRACK = 10  # columns that the last column has at least
# States that are shown with their reason.
EXPLAINED = (TrackState.FAILED, TrackState.UNKNOWN)


async def show(settings: Settings, *, only_failed: bool = False) -> int:
    """Print the jobs of a journal; return the exit code.

    The table leaves out an attempt that cost nothing if its track was submitted again later.

    Args:
        settings: The command's options.
        only_failed: Whether to show only tracks that failed or whose response was lost.

    Raises:
        UsageError: There is no journal.
        JournalError: It cannot be read.
    """
    await anyio.to_thread.run_sync(require_journal, settings)
    async with Journal(settings.journal_place) as journal:
        owners = await journal._owners()
        overview = None
        if not settings.json:
            overview = Overview()
            await overview.read(journal.records())
        write_job = _choose_format(overview)
        left = 0
        async for record in journal.records():
            lease = owners.get(record.id)
            is_shown = overview is None or not overview.is_outdated(record)
            if is_shown and (not only_failed or state_of(record) in EXPLAINED):
                write_job(record, lease)
            if not settings.json and not (lease and lease.is_live):
                left += is_unfinished(record)
    if left:
        command = plain(settings.resume_command)
        streams.say(f"{count(left, 'track')} not finished; to resume them: {command}")
    if settings.tasks is not None:
        await show_tasks(settings.tasks, as_json=settings.json)
    return 0


def _choose_format(overview: Overview | None) -> Callable[[JobRecord, Lease | None], None]:
    """Return what writes a job as JSON, or as a line of a table, which begins with its header."""
    if overview is None:
        return lambda record, lease: streams.write_result(
            describe_record(record, in_work=_is_in_work(lease)).encode()
        )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    streams.write_result(_columns(("STATE", "TASK", "CREDITS", "FILES", "TRACK"), width))

    def write_lines(record: JobRecord, lease: Lease | None) -> None:
        for line in format_lines(record, lease, width, name=overview.name(record)):
            streams.write_result(line)

    return write_lines


def format_lines(
    record: JobRecord, lease: Lease | None, width: int | None, *, name: str
) -> Iterator[str]:
    """Yield a job as lines of the table.

    Args:
        record: The job.
        lease: Who works on it.
        width: Columns of the terminal, whose lines are kept short; ``None`` for one line a job.
        name: The track's name for people.
    """
    state = state_of(record)
    cost = record.credit_estimate if record.cost is None else record.cost
    credits_ = "" if cost is None else f"{'~' if record.cost is None else ''}{cost:g}"
    busy = "  (in work)" if _is_in_work(lease) else ""
    reason = for_shell(record.error) if record.error and state in EXPLAINED else None
    task = record.task_id or (f"job {record.id}" if was_delivered(record) else "-")
    suffix = f": {reason}" if reason and width is None else ""
    values = (str(state), task, credits_, str(len(record.files)), f"{name}{busy}{suffix}")
    yield _columns(values, width)
    if width is None:
        return
    if record.task_id is None and was_delivered(record):
        yield f"  job {record.id}"  # for `resume --found`
    if reason:
        yield from textwrap.wrap(reason, width, initial_indent="  ", subsequent_indent="  ")


def _is_in_work(lease: Lease | None) -> bool:
    return lease is not None and lease.is_live


def _columns(values: tuple[str, str, str, str, str], width: int | None) -> str:
    state, task, credits_, files, track = values
    if width is None or width >= WIDE:
        return f"{state:<{STATE}} {task:<{TASK}} {credits_:>{CREDITS}} {files:>{FILES}}  {track}"
    short = task if len(task) < SHORT_TASK else f"{task[: SHORT_TASK - 1]}…"
    start = f"{state:<{STATE}} {short:<{SHORT_TASK}} {credits_:>{CREDITS}} {files:>{FILES}}  "
    return start + _shorten(track, max(MIN_TRACK, width - len(start)))


def _shorten(text: str, width: int) -> str:
    """Cut a text to a number of columns; some characters take two."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - a table in a terminal only

    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…"
