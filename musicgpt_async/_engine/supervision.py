"""The one way to start a child task, whose owner receives its failure.

A CancelledError is a cancellation only if the child's own scope, or its task, was cancelled. One
that is raised by a user's code (a source that awaits a cancelled task, a trace hook) would end a
child of a task group *silently*: it is converted to an error, and the owner decides what failed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVarTuple

import anyio
import anyio.abc

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
        self._group.start_soon(run_child, body, args, on_failure)


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
