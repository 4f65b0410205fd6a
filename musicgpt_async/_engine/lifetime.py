"""Lifetime: runs the parts of a session, drains them and closes them.

Each part runs as a supervised child for as long as the session is open; if one stops earlier, the
session ends with an error that says so. One time limit applies to all that closing does.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.abc

from musicgpt_async._engine.account import Account
from musicgpt_async._engine.deliveries import Deliveries
from musicgpt_async._engine.following import make_taken_over_error
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.jobs import Jobs
from musicgpt_async._engine.poller import Poller
from musicgpt_async._engine.recovery import Recovery
from musicgpt_async._engine.runner import Runner
from musicgpt_async._engine.settings import RuntimeSettings
from musicgpt_async._engine.store import JobStore
from musicgpt_async._engine.supervision import Supervisor, is_cancellation_requested
from musicgpt_async._rules.lifecycle import MAY_BE_PAID, Effect, Trigger
from musicgpt_async.errors import (
    ConfigurationError,
    JobDetachedError,
    MusicGPTError,
    SessionClosedError,
)
from musicgpt_async.journal import Claim
from musicgpt_async.models import JobRecord

_log = logging.getLogger(__name__)

RESPONSE_GRACE = 5.0  # seconds that a response may still take when the session is left
FIRST_ADOPTION = 2.0  # seconds after the start until jobs of killed processes are adopted
LEAVE_TIMEOUT = 10.0  # seconds that closing may take


class Lifetime(ABC):
    """The life of a session; the runtime is one with its parts.

    Args:
        settings: The checked options.
        group: Where its children run.

    Attributes:
        account: What limits the account.
        failure: What ended the session before it was left.
    """

    account: Account
    _store: JobStore
    _jobs: Jobs
    _runner: Runner
    _poller: Poller
    _recovery: Recovery
    _deliveries: Deliveries

    def __init__(self, settings: RuntimeSettings, group: anyio.abc.TaskGroup) -> None:
        self._host: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self.failure: MusicGPTError | None = None
        self._is_failure_raised = False
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._outside = contextvars.copy_context()
        self._group = group
        self._supervisor = Supervisor(group)
        self._background_tasks = 0
        self._left_alone: set[str] = set()  # adopted jobs, which draining does not wait for
        self._calls: set[anyio.CancelScope] = set()
        self._idle, self._leaving = anyio.Event(), anyio.Event()
        self._leave_scope = anyio.CancelScope()

    @property
    def is_open(self) -> bool:
        """Whether jobs may be submitted."""
        return not self._leaving.is_set()

    def check_loop(self) -> None:
        """Refuse to be used when not open, or in another event loop than the session's."""
        if not self.is_open:
            raise SessionClosedError(
                "The session is closed; start another one."
                if self.failure is None
                else f"The session has ended: {self.failure}"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "The session belongs to another event loop; make one session for each loop."
            )

    def start_background_task(
        self, body: Callable[[], Awaitable[None]], on_failure: Callable[[Exception], None]
    ) -> None:
        """Run something beside the jobs; a session that drains waits for it."""
        self.check_loop()
        self._background_tasks += 1
        self._supervisor.spawn(self._run_background_task, body, on_failure=on_failure)

    async def _run_background_task(self, body: Callable[[], Awaitable[None]]) -> None:
        try:
            await body()
        finally:
            self._background_tasks -= 1
            self._idle.set()

    @contextmanager
    def exclude_from_drain(self) -> Iterator[None]:
        """Do not let a background task delay draining while it waits for its consumer."""
        self._background_tasks -= 1
        self._idle.set()
        try:
            yield
        finally:
            self._background_tasks += 1

    async def run(self) -> None:
        """Run the parts until the session is closed, then stop them."""
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "submit queue": self._runner.run,
            "poller": self._poller.run,
            "recovery": self._recovery.run,
        }
        if self._settings.webhooks is not None:
            parts["webhook dispatcher"] = self._deliveries.run
        if self._settings.webhooks is not None and self._settings.journal is not None:
            parts["webhook collector"] = self._deliveries.collect
        if self._settings.journal is not None:
            parts["journal writer"] = self._save_and_renew
            parts["account"] = self.account.run
        for name, part in parts.items():
            self._supervisor.spawn(self._run_part, name, part, on_failure=partial(self.fail, name))
        await self._leaving.wait()
        self._begin_to_leave()
        with self._leave_scope:
            await self._runner.wait_for_responses(RESPONSE_GRACE)
            while self._calls:  # each says why it ends
                await self._wait_progress()
        self._runner.abandon()
        self._group.cancel_scope.cancel()

    async def finish(self) -> None:
        """Save the jobs and close the resources; nothing else runs any more."""
        self._begin_to_leave()
        await self._store.flush()
        self._store.drop_claims()
        await self.account.close()
        self._deliveries.close()
        self._settings.event_bus.close()
        await self._settings.http.close()
        if self._settings.journal is not None:
            await self._settings.journal._close()
        self._settings.executor.shutdown(wait=False)

    def _begin_to_leave(self) -> None:
        """Detach all jobs; from here on closing has a time limit."""
        if self._settings.journal is not None:
            self._settings.journal._give_up_after(LEAVE_TIMEOUT)
        self.leave()
        self._leave_scope.deadline = min(
            self._leave_scope.deadline, anyio.current_time() + LEAVE_TIMEOUT
        )
        self.account.stop_asking()
        for job in self._jobs:
            words = describe_detached(job) if self.failure is None else str(self.failure)
            self._jobs.apply(job, Trigger.SESSION_LEFT, outcome=JobDetachedError(words))
        for scope in tuple(self._calls):
            scope.cancel()

    async def wait_idle(self) -> None:
        """Wait until no job, background task or call runs any more."""
        while self.is_open and (
            len(self._jobs) > len(self._left_alone) or self._background_tasks or self._calls
        ):
            await self._wait_progress()

    async def _wait_progress(self) -> None:
        """Wait until a job, a background task or a call has ended."""
        if self._idle.is_set():  # a set one is replaced, never one that another aclose() waits for
            self._idle = anyio.Event()
        await self._idle.wait()

    def leave(self) -> None:
        """Begin to leave; nothing is submitted any more."""
        self._leaving.set()
        self._idle.set()

    def runs_caller(self) -> bool:
        """Return whether the running task is a child of the session, so that closing waits for it.

        Such tasks run code of the application as well: sources, iterables and trace hooks.
        """
        parents = {task.id: task.parent_id for task in anyio.get_running_tasks()}
        task_id: int | None = anyio.get_current_task().id
        while task_id is not None and task_id != id(self._host):
            task_id = parents.get(task_id)
        return task_id is not None

    def check_caller_may_drain(self) -> None:
        """Refuse a caller that jobs may be waiting for: they would wait for each other.

        Raises:
            ConfigurationError: The caller was started by code that the session runs.
        """
        if self.is_open and self._supervisor.may_wait_for_caller() and not self.runs_caller():
            raise ConfigurationError(
                "aclose() would wait for the source, iterable or hook that started this task, and "
                "that may wait for this task. Nothing was closed; use aclose(drain=False), or call "
                "aclose() outside."
            )

    async def close(self) -> None:
        """Leave, and wait until all is closed.

        Raises:
            MusicGPTError: A part of the session had stopped before.
        """
        self.leave()
        interrupted: asyncio.CancelledError | None = None
        # If the caller's scope was cancelled before, the session is closed normally; a cancellation
        # that arrives while it is closed means that the caller does not want to wait.
        shield = is_cancellation_requested()
        patience: float | None = None
        while not self._host.done():
            with anyio.CancelScope(shield=shield):
                try:
                    await asyncio.wait((self._host,), timeout=patience)
                    break
                except asyncio.CancelledError as error:
                    interrupted, shield, patience = error, True, LEAVE_TIMEOUT
                    self._cut_short()
        if interrupted is not None:
            raise interrupted
        if self.failure is not None and not self._is_failure_raised:
            self._is_failure_raised = True
            raise self.failure.copy()

    def _cut_short(self) -> None:
        self._leave_scope.cancel()
        if self._settings.journal is not None:
            self._settings.journal._give_up_after(0.0)

    def on_change(self, job: Job, effects: Effect) -> None:
        """Wake what waits for the last job, if a job has ended."""
        if Effect.END in effects:
            self._left_alone.discard(job.id)
            self._idle.set()

    async def _run_part(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except asyncio.CancelledError:
            if self.is_open:  # the session has not cancelled it, and nothing else may
                self.fail(name, RuntimeError("it was cancelled"))
            raise
        raise RuntimeError(f"the {name} returned")

    def fail(self, name: str, error: BaseException) -> None:
        """End the session: one of its parts has stopped."""
        _log.error("The %s stopped unexpectedly", name, exc_info=error)
        if self.failure is None:
            self.failure = MusicGPTError(
                f"The session ended because its {name} stopped unexpectedly: {error!r}. What was "
                "accepted goes on at MusicGPT."
            )
            self.failure.__cause__ = error
        self.leave()

    async def _save_and_renew(self) -> None:
        is_first = True  # resume() at the start takes precedence over adoption
        while True:
            for record, claim in await self._store.renew(adopt=not is_first):
                self._adopt(record, claim)
            pause = self._store.renewal_interval
            renewal = anyio.current_time() + (min(FIRST_ADOPTION, pause) if is_first else pause)
            is_first = False
            while anyio.current_time() < renewal:
                await self._store.wait_due(renewal)
                await self._flush()

    @abstractmethod
    def _adopt(self, record: JobRecord, claim: Claim) -> None:
        """Continue the job of a process that has died; no user of this session waits for it."""

    async def _flush(self) -> None:
        for lost in await self._store.flush():
            self._jobs.apply(lost, Trigger.SESSION_LEFT, outcome=make_taken_over_error(lost))

    @contextmanager
    def _user_call(self) -> Iterator[None]:
        """End a call that waits in a user's task when the session is closed."""
        with self._supervisor.work(), anyio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                yield
            finally:
                self._calls.discard(scope)
                self._idle.set()
        if scope.cancelled_caught:
            raise SessionClosedError("The session was closed before this was done.")


def describe_detached(job: Job) -> str:
    """Return what a detached job's user should know."""
    task_id = job.record.task_id
    again = f": session.attach({task_id!r}) follows it again" if task_id else ""
    goes_on = job.record.state in MAY_BE_PAID
    words = f"It goes on at MusicGPT{again}." if goes_on else "It was not submitted."
    return f"{job.title} was detached. {words}"
