"""Ctrl-C, termination and a lost terminal: the first asks for a clean end, the second ends it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import anyio
import attrs
from anyio.lowlevel import current_token

from musicgpt_async.cli import streams

# A terminal that is closed sends SIGHUP, more than once.
HANGUP = getattr(signal, "SIGHUP", None)
SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, HANGUP)))
SHOW_CURSOR = b"\x1b[?25h\n"


@attrs.define
class Interrupts:
    """Whether and how the command was interrupted.

    Attributes:
        first: The first signal that came.
    """

    first: int | None = None
    _interrupted: anyio.Event = attrs.field(factory=anyio.Event)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + (self.first or signal.SIGINT)

    async def wait(self) -> None:
        """Wait for the first signal."""
        await self._interrupted.wait()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals for the duration of the block, in the running event loop."""
        token = current_token()
        call_soon: Callable[..., object] = token.native_token.call_soon_threadsafe  # type: ignore[attr-defined]

        def handle(number: int, _: FrameType | None) -> None:
            if self.first is not None:
                if number != HANGUP:
                    _exit_now(128 + number)
                return
            self.first = number
            call_soon(self._interrupted.set)

        # What the parent process ignores for us (nohup, a job in the background) stays ignored.
        heeded = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handle) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _exit_now(code: int) -> None:
    """End the process at once; the journal makes that safe."""
    with suppress(*streams.FAILURES):
        if sys.stderr.isatty():
            os.set_blocking(sys.stderr.fileno(), False)  # the terminal may be stopped
            os.write(sys.stderr.fileno(), SHOW_CURSOR)
    os._exit(code)
