"""`enqueue`: tracks as tasks, which any number of workers take from a database."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import attrs

from musicgpt_async._rules import fingerprint
from musicgpt_async.cli import streams
from musicgpt_async.cli.sources import TrackRequest, TrackSources, is_url, why_not_audio
from musicgpt_async.cli.task_database import EXTRACT, describe_failure, open_app
from musicgpt_async.cli.text import count, plain
from musicgpt_async.cli.usage import UsageError

if TYPE_CHECKING:
    from procrastinate import App
    from procrastinate.jobs import Job

BATCH = 1000  # tasks in one statement


@attrs.frozen(kw_only=True)
class EnqueueSettings:
    """The options of the command.

    Attributes:
        database: URL of the task queue's database.
        site: Name of the machines that have the paths; ``None`` for this host's name.
        force: Whether to extract tracks again that were extracted before.
        retry_failed: Whether to submit tracks again that MusicGPT could not process before.
        json: Whether to write tasks to stdout as JSON.
        quiet: Whether to leave the summary out.
    """

    database: str
    site: str | None = None
    force: bool = False
    retry_failed: bool = False
    json: bool = False
    quiet: bool = False


async def enqueue(settings: EnqueueSettings, sources: TrackSources) -> int:
    """Make a task of each track that is not waiting already; return the exit code.

    Raises:
        UsageError: A track or an option is wrong, or the database cannot be used.
    """
    await anyio.to_thread.run_sync(sources.validate)
    async with open_app(settings.database) as app:
        from procrastinate.exceptions import ConnectorException  # noqa: PLC0415 - an extra

        enqueued, refused = Counter[str](), list[str]()
        try:
            pending = {**await _read_keys(app, "todo"), **await _read_keys(app, "doing")}
            tasks = _make_tasks(settings, sources, pending, refused)
            await _defer_all(app, settings, tasks, enqueued)
        except ConnectorException as error:
            raise UsageError(describe_failure(settings.database, error)) from error
        finally:  # what is enqueued stays enqueued, even if the rest failed
            for line in refused:
                streams.say(line)
            if not settings.quiet:
                streams.say(_format_summary(enqueued, len(refused)))
    return 1 if refused else 0


async def _defer_all(
    app: App, settings: EnqueueSettings, tasks: Iterator[Job], enqueued: Counter[str]
) -> None:
    failed = await _read_keys(app, "failed")
    while batch := await anyio.to_thread.run_sync(partial(_take_batch, tasks)):
        await _forget(app, [failed.get(task.task_kwargs["key"]) for task in batch])
        # Not by the task's own method, which describes each one for the log.
        batch = await app.job_manager.batch_defer_jobs_async(batch)
        enqueued.update(task.queue for task in batch)
        if settings.json:
            lines = [
                json.dumps({"task": task.id, "queue": task.queue, **task.task_kwargs})
                for task in batch
            ]
            await streams.run_in_thread(partial(streams.write_result, "\n".join(lines)))


async def _read_keys(app: App, status: str) -> dict[object, int | None]:
    """Return key → id of the tasks with a status."""
    tasks = await app.job_manager.list_jobs_async(task=EXTRACT, status=status)
    return {task.task_kwargs.get("key"): task.id for task in tasks}


async def _forget(app: App, ids: list[int | None]) -> None:
    """Delete tasks that failed and are made anew."""
    if known := [id_ for id_ in ids if id_ is not None]:
        sql = "DELETE FROM procrastinate_jobs WHERE id = ANY(%(ids)s) AND status = 'failed'"
        await app.connector.execute_query_async(sql, ids=known)


def _take_batch(tasks: Iterator[Job]) -> list[Job]:
    return list(islice(tasks, BATCH))


def _make_tasks(
    settings: EnqueueSettings,
    sources: TrackSources,
    pending: Collection[object],
    refused: list[str],
) -> Iterator[Job]:
    for request in sources.tracks():
        task = _make_task(request, settings)
        if task.task_kwargs["key"] in pending:
            continue
        if not settings.force and (reason := why_not_audio(request.source)):
            refused.append(plain(f"{request.source} is left out: {reason} (--force enqueues it)."))
        else:
            yield task


def _make_task(request: TrackRequest, settings: EnqueueSettings) -> Job:
    from procrastinate.jobs import Job  # noqa: PLC0415 - an extra

    from musicgpt_async.task_queue import format_task_source, queue_of  # noqa: PLC0415 - an extra

    source = request.source if is_url(request.source) else os.path.abspath(request.source)  # noqa: PTH100 - Path.absolute() keeps the ".."
    queue = queue_of(source, site=settings.site)
    arguments: dict[str, Any] = {
        "source": format_task_source(source),
        "key": request.key or _make_key(request, source, queue, force=settings.force),
    }
    options = {
        "stems": list(request.stems),
        "preprocessing": list(request.preprocessing),
        "eco_mode": request.eco_mode,
        "label": request.label,
        "folder": request.folder,
        "retry_failed": settings.retry_failed,
    }
    arguments.update({name: value for name, value in options.items() if value})
    return Job(task_name=EXTRACT, queue=queue, task_kwargs=arguments, lock=None, queueing_lock=None)


def _make_key(request: TrackRequest, source: str, queue: str, *, force: bool) -> str:
    """Return what is equal for the same track with the same options at the same site.

    It is made here, once, so that all deliveries of the task have the same, and so that the same
    command again finds what it enqueued before.
    """
    if force:
        return f"enqueue:{uuid.uuid4()}"
    version = "" if is_url(source) else _read_version(source)
    digest = fingerprint.compute_fingerprint(
        f"{queue}:{source}",
        version,
        stems=request.stems,
        preprocessing=request.preprocessing,
        eco_mode=request.eco_mode,
    )
    return f"enqueue:{digest}"


def _read_version(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of 100,000 takes twice the time
    except OSError as error:
        raise UsageError(f"{plain(path)} cannot be read: {error.strerror}.") from error
    return f"{status.st_size}:{status.st_mtime_ns}"


def _format_summary(enqueued: Counter[str], refused: int) -> str:
    if not enqueued:
        return f"Nothing {'' if refused else 'new '}to enqueue."
    queues = ", ".join(
        f"{number:,} in {plain(queue)}" for queue, number in sorted(enqueued.items())
    )
    return f"{count(enqueued.total(), 'task')} enqueued: {queues}."
