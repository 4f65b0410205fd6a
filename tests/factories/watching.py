"""Wait for conditions, and observe the test's own process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

# Seconds that a wait may take before it is said to hang; no test comes near it.
PATIENCE = 150.0


def held(path: Path) -> list[str]:
    """The descriptors of this process that lead to a file or into a directory."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(path)):
                found.append(fd)
    return found


async def until(condition: Callable[[], Any], *, within: float = PATIENCE) -> None:
    """Wait for what another process, thread or the kernel does."""
    with anyio.fail_after(within):
        while not condition():
            await anyio.sleep(0.002)


async def largest_gap(stop: anyio.Event) -> float:
    """Return the longest time for which the loop was blocked."""
    largest, last = 0.0, anyio.current_time()
    while not stop.is_set():
        await anyio.sleep(0.001)  # spinning would take the threads' share of the interpreter
        now = anyio.current_time()
        largest, last = max(largest, now - last), now
    return largest
