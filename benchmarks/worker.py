"""One client in a process of its own, which reports what each round cost.

    python benchmarks/worker.py MODULE CLIENT

reads lines of JSON, each the arguments of one round, and answers each with one of what it took.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import resource
import selectors
import sys
import time
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any

MIB = 1 << 20


class MeasuringSelector(selectors.DefaultSelector):
    """Measures how long the loop was held between two polls of its sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.held = self.worked = 0.0
        self._since, self._processor = time.perf_counter(), time.thread_time()

    def select(self, timeout: float | None = None) -> Any:
        """Wait, and note how long it was since the last time, and the CPU that the loop used."""
        self.held = max(self.held, time.perf_counter() - self._since)
        self.worked = max(self.worked, time.thread_time() - self._processor)
        ready = super().select(timeout)
        self._since, self._processor = time.perf_counter(), time.thread_time()
        return ready

    def figures(self) -> dict[str, float]:
        """Return both."""
        return {"held": self.held, "worked": self.worked}


def _status(name: str) -> float:
    """Return a figure of /proc/self/status in MiB, nothing where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak is that of all rounds
        return


@functools.cache
def _resting() -> float:
    """Return the memory in use before the first round: what is kept from round to round counts."""
    return _status("VmRSS")


def _cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


class Cost:
    """What a piece of work took."""

    def __enter__(self) -> None:
        self._resting = _resting()
        _reset_peak()
        self._wall, self._processor = time.perf_counter(), _cpu()

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = _cpu() - self._processor
        self.added = _status("VmHWM") - self._resting

    def figures(self, extra: dict[str, float] | None = None) -> dict[str, float]:
        """Return all of it as numbers."""
        return {"wall": self.wall, "cpu": self.cpu, "added": self.added, **(extra or {})}


def run_blocking(make: Any, arguments: dict[str, Any]) -> dict[str, float]:
    """Run one round of a client that blocks."""
    cost = Cost()
    manager: AbstractContextManager[Any] = make(**arguments)
    with manager as run:
        with cost:
            extra = run()
        return cost.figures(extra)


async def run_async(
    make: Any, arguments: dict[str, Any], selector: MeasuringSelector | None
) -> dict[str, float]:
    """Run one round of a client on the loop."""
    cost = Cost()
    manager: AbstractAsyncContextManager[Any] = make(**arguments)
    async with manager as run:
        await asyncio.sleep(0)
        if selector is not None:
            selector.reset()
        with cost:
            extra = await run()
        held = selector.figures() if selector else {}
        return cost.figures({**held, **(extra or {})})


def main(module: str, name: str) -> None:
    """Serve rounds until standard input closes."""
    make = importlib.import_module(module).CLIENTS[name]
    function = make.func if isinstance(make, functools.partial) else make
    is_async = inspect.isasyncgenfunction(inspect.unwrap(function))
    selector = None
    runner: asyncio.Runner | None = None
    if is_async and name.endswith("uvloop"):
        import uvloop  # noqa: PLC0415 - only where it is asked for

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    elif is_async:
        selector = MeasuringSelector()
        runner = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector))
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    is_first = True
    for line in sys.stdin:
        arguments = json.loads(line)
        if runner is not None:
            result = runner.run(run_async(make, arguments, selector))
        else:
            result = run_blocking(make, arguments)
        if is_first:  # it was the warm-up
            _resting.cache_clear()
            is_first = False
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    if runner is not None:
        runner.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
