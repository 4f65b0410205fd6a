"""The one way to start a child task, whose owner receives its failure.

A CancelledError is a cancellation only if the child's own scope, or its task, was cancelled. One
that is raised by a user's code (a source that awaits a cancelled task, a trace hook) would end a
child of a task group *silently*: it is converted to an error, and the owner decides what failed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVarTuple

import anyio
import anyio.abc
import attrs

from musicgpt_async.errors import MusicGPTError

Ts = TypeVarTuple("Ts")


class StrayCancellationError(MusicGPTError):
    """Code outside the session raised CancelledError though nothing was cancelled."""


def is_cancellation_requested() -> bool:
    """Return whether the running task, or a scope around it, was asked to stop."""
    task = asyncio.current_task()
    return (task is not None and task.cancelling() > 0) or (
        anyio.current_effective_deadline() == -math.inf
    )


def as_error(error: BaseException) -> Exception:
    """Return what ended a call as an error; a cancellation that was asked for is raised again."""
    if isinstance(error, Exception):
        return error
    if isinstance(error, asyncio.CancelledError) and not is_cancellation_requested():
        stray = StrayCancellationError(
            "A source, an iterable or a hook of the application raised CancelledError."
        )
        stray.__cause__ = error
        return stray
    raise error


@attrs.define(eq=False)
class _Work:
    """Code that a session waits for before it ends.

    Attributes:
        session: The session's supervisor, ``None`` once the code has ended.
        outer: The work inside which it began.
    """

    session: Supervisor | None
    outer: _Work | None


# Inherited by every task that the code of the application starts, whichever way it does.
_work: ContextVar[_Work | None] = ContextVar("musicgpt_async_work", default=None)


class Supervisor:
    """Starts the children of a session.

    Args:
        group: The session's task group.
    """

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        self._group = group

    def spawn(
        self,
        body: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Start a child.

        Args:
            body: What to run.
            args: Its arguments.
            on_failure: Called with whatever ended it, unless it returned or was cancelled.
        """
        self._group.start_soon(self._run, body, args, on_failure)

    async def _run(
        self,
        body: Callable[[*Ts], Awaitable[Any]],
        args: tuple[*Ts],
        on_failure: Callable[[Exception], None],
    ) -> None:
        with self.work():
            await run_child(body, args, on_failure)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Mark code, and the tasks that it starts, as what the session waits for."""
        work = _Work(self, _work.get())
        token = _work.set(work)
        try:
            yield
        finally:
            _work.reset(token)
            work.session = None

    def may_wait_for_caller(self) -> bool:
        """Return whether the caller was started by code that the session still waits for."""
        work = _work.get()
        while work is not None and work.session is not self:
            work = work.outer
        return work is not None


async def run_child(
    body: Callable[[*Ts], Awaitable[Any]],
    args: tuple[*Ts],
    on_failure: Callable[[Exception], None],
) -> None:
    """Run a child and hand its failure to its owner."""
    try:
        await body(*args)
    except BaseException as error:  # noqa: BLE001 - as_error raises again what is no failure
        on_failure(as_error(error))
