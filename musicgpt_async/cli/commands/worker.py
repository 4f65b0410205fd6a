"""`worker`: takes tasks from a database and extracts their tracks, in one session."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import anyio
import attrs

from musicgpt_async import MusicGPTError, MusicGPTSession, Outcome
from musicgpt_async._rules.formats import DEFAULT_FORMAT
from musicgpt_async._rules.retrying import backoff
from musicgpt_async.cli import output, streams
from musicgpt_async.cli.messages import for_shell
from musicgpt_async.cli.run import FATAL_ERRORS, Run
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.task_database import describe_failure, open_app
from musicgpt_async.cli.text import count, span

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectSendStream
    from procrastinate import App

    from musicgpt_async.task_queue import Extractor

CONCURRENCY = 32  # tasks in work at once: enough for the slots of every plan, and the downloads
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds before a lost database is connected to again


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """The options of the command that the session does not have.

    Attributes:
        database: URL of the task queue's database, which the journal is in too.
        concurrency: Tasks in work at once.
        until_empty: Whether to end when no task is due.
        stalled_after: Seconds after which the tasks of a silent worker are given to others.
    """

    database: str
    concurrency: int = CONCURRENCY
    until_empty: bool = False
    stalled_after: float


async def work(settings: Settings, worker: WorkerSettings) -> int:
    """Extract the tracks of tasks until there are none, or for ever; return the exit code.

    Raises:
        UsageError: It could not begin.
    """
    async with open_app(worker.database, stalled_after=worker.stalled_after) as app:
        run = Run(settings)
        code = await run.execute(partial(_iterate_outcomes, app, settings, worker))
    if run.summary.failed and not settings.quiet:
        failed = count(run.summary.failed, "task")
        streams.say(f"{failed} failed and not tried again; the same `enqueue` makes new ones.")
    return code


async def _iterate_outcomes(
    app: App, settings: Settings, worker: WorkerSettings, session: MusicGPTSession, run: Run
) -> AsyncGenerator[Outcome, None]:
    from musicgpt_async.task_queue import Extractor, worker_queues  # noqa: PLC0415 - an extra

    send, receive = anyio.create_memory_object_stream[Outcome | MusicGPTError](math.inf)
    extractor = Extractor(
        session,
        settings.out,
        format=settings.format or DEFAULT_FORMAT,
        report=partial(_report, run, send),
    )
    # A task of its own, since cancelling it is procrastinate's way to stop a worker in good order.
    queues = worker_queues(settings.site)
    tasks = asyncio.create_task(_TaskWorker(app, worker, queues, extractor, run.say).run())
    tasks.add_done_callback(lambda _: send.close())
    try:
        async for outcome in receive:
            if isinstance(outcome, MusicGPTError):
                raise outcome
            run.summary.total += 1
            yield outcome
        await tasks
    finally:
        extractor.stop()
        tasks.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([tasks])
        receive.close()


def _report(
    run: Run,
    send: MemoryObjectSendStream[Outcome | MusicGPTError],
    outcome: Outcome,
    delay: float | None,
) -> None:
    """Pass on what became of a track; what is wrong with the account ends the worker."""
    if isinstance(outcome.error, FATAL_ERRORS):
        send.send_nowait(outcome.error)
    elif outcome.error is None or delay is None:
        send.send_nowait(outcome)
    else:
        words = for_shell(outcome.error.message)
        run.say(f"again   {output.title(outcome)} in {span(delay)}: {words}", "yellow")


@attrs.frozen
class _TaskWorker:
    """Procrastinate's worker, run again whenever its database was away.

    Attributes:
        app: The app with our tasks.
        options: The command's.
        queues: What to take tasks from.
        extractor: What the tasks do their work with.
        say: Shows a line.
    """

    app: App
    options: WorkerSettings
    queues: list[str]
    extractor: Extractor
    say: Callable[[str, str], None]

    async def run(self) -> None:
        """Work until it is cancelled, or until no task is due if that is the end."""
        from procrastinate.exceptions import ConnectorException  # noqa: PLC0415 - an extra

        failures = 0
        while True:
            began = anyio.current_time()
            try:
                await self._run_once()
                if not await self._has_due_task():
                    return
            except ConnectorException as error:
                failures = failures + 1 if anyio.current_time() - began < LONGEST_DELAY else 1
                await self._wait(error, failures)

    async def _wait(self, lost: Exception, failures: int) -> None:
        delay = backoff(failures, first=FIRST_DELAY, most=LONGEST_DELAY)
        words = describe_failure(self.options.database, lost)
        self.say(f"{words} Trying again in {delay:g} s.", "yellow")
        await asyncio.sleep(delay)

    async def _run_once(self) -> None:
        from procrastinate.exceptions import ConnectorException  # noqa: PLC0415 - an extra

        from musicgpt_async.task_queue import CONTEXT_KEY  # noqa: PLC0415 - an extra

        await self.app.run_worker_async(
            queues=self.queues,
            concurrency=self.options.concurrency,
            wait=not self.options.until_empty,
            additional_context={CONTEXT_KEY: self.extractor},
            # What succeeded is in the journal, with its files and its cost.
            delete_jobs="successful",
            install_signal_handlers=False,
            update_heartbeat_interval=self.options.stalled_after / 3,
            stalled_worker_timeout=self.options.stalled_after,
        )
        if not self.options.until_empty:  # a broken connection stops it without an error
            raise ConnectorException("the connection was lost.")

    async def _has_due_task(self) -> bool:
        now = datetime.now(UTC)
        for queue in self.queues:
            for task in await self.app.job_manager.list_jobs_async(queue=queue, status="todo"):
                if task.scheduled_at is None or task.scheduled_at <= now:
                    return True
        return False
