"""`fetch`: the stems of tasks that were submitted elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

import anyio

from musicgpt_async import (
    ExtractionJob,
    MusicGPTError,
    MusicGPTSession,
    NotFoundError,
    Outcome,
)
from musicgpt_async._rules.records import is_task_id
from musicgpt_async.cli.commands.extract import iterate_outcomes
from musicgpt_async.cli.run import Run
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.usage import UsageError


async def fetch(settings: Settings, task_ids: Sequence[str]) -> int:
    """Wait for tasks and download their stems; return the exit code.

    Raises:
        UsageError: An id cannot be one, or the run could not start.
    """
    for task_id in task_ids:
        if not is_task_id(task_id.strip()):
            raise UsageError(f"{task_id!r} is not a task id; `jobs` and the dashboard show them.")
    distinct = list(dict.fromkeys(task_id.strip() for task_id in task_ids))
    run = Run(settings, total=len(distinct))
    return await run.execute(partial(_iterate_fetched, settings, distinct))


async def _iterate_fetched(
    settings: Settings, task_ids: Sequence[str], session: MusicGPTSession, run: Run
) -> AsyncGenerator[Outcome, None]:
    events = session.events()
    jobs: dict[str, ExtractionJob] = {}
    for task_id in task_ids:
        if run.should_stop:
            break
        try:
            job = await _follow(task_id, settings, session, run)
        except MusicGPTError as error:
            yield Outcome(source=task_id, error=error)
        else:
            jobs[job.id] = job
    async with aclosing(iterate_outcomes(jobs, events, settings)) as each:
        async for outcome in each:
            yield outcome


async def _follow(
    task_id: str, settings: Settings, session: MusicGPTSession, run: Run
) -> ExtractionJob:
    if not run.has_journal:
        return session.attach(task_id)
    directory = await anyio.Path(settings.out).resolve()
    runtime = session._open_runtime()  # noqa: SLF001 - only the command journals what it attaches
    try:
        return await runtime.adopt(task_id, Path(directory), settings.format)
    except NotFoundError as error:
        raise NotFoundError(
            f"MusicGPT does not know the task {task_id}; check the id, and that the key is of the "
            "same account.",
            status=error.status,
            task_id=task_id,
        ) from error
