"""The standard streams: closed from the start or failing midway, they must not cost money.

Results on stdout are what a command is run for: if they cannot be written, the run ends as it does
for Ctrl-C. What is said on stderr is not: if it cannot be written, the work continues in silence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

# What a closed pipe, a full disk, a lost terminal and a closed file raise.
FAILURES = (OSError, ValueError)
_stuck = 0  # writes that a thread has begun and not ended


class OutputError(Exception):
    """Results cannot be written to standard output.

    Attributes:
        is_closed: Whether its reader has closed the pipe, as `head` does, which needs no words.
    """

    def __init__(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        super().__init__(f"Standard output cannot be written: {reason}.")
        self.is_closed: bool = isinstance(error, BrokenPipeError)


def open_missing() -> None:
    """Open the null device as each standard stream that is closed.

    The next file to be opened, such as a journal, would get its descriptor, and whatever a library
    writes to stderr would end up in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - stays open
            setattr(sys, name, stream)
        # Names of files may hold what the terminal's encoding lacks.
        stream.reconfigure(errors="backslashreplace")


def write_result(text: str) -> None:
    """Write a line of results, at once.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except FAILURES as error:
        _discard(sys.stdout)
        raise OutputError(error) from error


def say(text: str) -> None:
    """Write a line on stderr, if it can be written."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except FAILURES:
        _discard(sys.stderr)


async def run_in_thread(write: Callable[[], None]) -> None:
    """Run a write in a thread; cancelling abandons one that is stuck in a stopped terminal."""
    import anyio.to_thread  # noqa: PLC0415 - help and versions need no event loop

    def run() -> None:
        global _stuck  # noqa: PLW0603 - one process, one terminal
        _stuck += 1
        try:
            write()
        finally:
            _stuck -= 1

    await anyio.to_thread.run_sync(run, abandon_on_cancel=True)


def finish(code: int) -> int:
    """Flush what is left and return the exit code; Python itself would fail, and change it."""
    if _stuck:
        os._exit(code)  # Python would wait for the thread, and the thread for the terminal
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except FAILURES:
            _discard(stream)
    return code


def _discard(stream: TextIO) -> None:
    """Send what is still buffered, and all that follows, to the null device."""
    with suppress(*FAILURES):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
