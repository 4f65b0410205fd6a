"""Startup: makes a session's runtime in a task of its own."""

from __future__ import annotations

import asyncio

import anyio

from musicgpt_async._engine.runtime import Runtime
from musicgpt_async._engine.settings import RuntimeSettings


async def start_runtime(settings: RuntimeSettings) -> Runtime:
    """Start a session's runtime in a task of its own.

    A service may start a session in one task and close it in another.

    Raises:
        ConfigurationError: The caller's ``http`` is closed.
        JournalError: The journal cannot be used.
    """
    settings.http.open()
    try:
        if settings.journal is not None:
            await settings.journal._open()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await settings.http.close()
        raise
    started: asyncio.Future[Runtime] = asyncio.get_running_loop().create_future()
    host = asyncio.create_task(_host(settings, started), name="musicgpt-async session")
    interrupted: asyncio.CancelledError | None = None
    while not (host.done() or started.done()):
        with anyio.CancelScope(shield=True):
            try:
                await asyncio.wait((host, started), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as error:  # a native one, which no scope stops
                interrupted = error
    runtime = started.result()
    if interrupted is not None:  # the caller has no runtime to close
        await runtime.close()
        raise interrupted
    return runtime


async def _host(settings: RuntimeSettings, started: asyncio.Future[Runtime]) -> None:
    runtime: Runtime | None = None
    try:
        async with anyio.create_task_group() as group:
            runtime = Runtime(settings, group)
            started.set_result(runtime)
            await runtime.run()
    except BaseException as error:
        if runtime is not None and runtime.is_open:
            runtime.fail("own task", error)
        elif not isinstance(error, asyncio.CancelledError):
            raise
    finally:
        with anyio.CancelScope(shield=True):
            if runtime is not None:
                await runtime.finish()
