"""The part of `jobs` that lists the tasks of a database: those that wait, run or have failed."""

from __future__ import annotations

import json
from importlib.util import find_spec

from musicgpt_async.cli import streams
from musicgpt_async.cli.task_database import EXTRACT, open_app
from musicgpt_async.cli.text import plain

# procrastinate's word → ours; a task that succeeded is deleted, and its job is in the journal.
STATES = {"todo": "waiting", "doing": "running", "failed": "failed"}


async def show_tasks(database: str, *, as_json: bool) -> None:
    """Print the tasks that failed and count the others; with JSON print all.

    A database without tasks, or an installation without procrastinate, has none to show.

    Raises:
        UsageError: The database cannot be used.
    """
    if find_spec("procrastinate") is None:
        return
    async with open_app(database, create=False) as app:
        if not await app.check_connection_async():
            return
        numbers = []
        for status, state in STATES.items():
            tasks = list(await app.job_manager.list_jobs_async(task=EXTRACT, status=status))
            numbers.append(f"{len(tasks):,} {state}")
            for task in tasks:
                if as_json:
                    about = {"task": task.id, "state": state, "attempts": task.attempts}
                    line = json.dumps({**about, "queue": task.queue, **task.task_kwargs})
                    streams.write_result(line)
                elif status == "failed":
                    streams.write_result(plain(f"failed     {task.task_kwargs.get('source')}"))
    if not as_json:
        streams.say(f"Tasks: {', '.join(numbers)}.")
