"""Run the emulator in its own thread, for programs without an event loop or with one per test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from musicgpt_async.emulator.emulator import Emulator


@contextmanager
def run_in_thread(**settings: Any) -> Iterator[Emulator]:
    """Run an emulator for the duration of the block.

    Args:
        settings: Arguments of `Emulator`.
    """
    vendor = Emulator(**settings)
    thread = _EmulatorThread(vendor)
    thread.start()
    thread.started.wait()
    try:
        if thread.error is not None:
            raise thread.error
        yield vendor
    finally:
        thread.stop()


class _EmulatorThread(threading.Thread):
    """The thread that runs an emulator."""

    def __init__(self, vendor: Emulator) -> None:
        super().__init__(name="musicgpt-emulator", daemon=True)
        self._vendor = vendor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self.started = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._start())
        except BaseException as error:  # noqa: BLE001 - re-raised by `run_in_thread`
            self.error = error
        finally:
            self.started.set()

    def stop(self) -> None:
        if self._loop is not None and self._end is not None and self.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self.join()

    async def _start(self) -> None:
        self._end = asyncio.Event()
        async with self._vendor:
            self._loop = asyncio.get_running_loop()
            self.started.set()
            await self._end.wait()
