"""Comparisons: clients take turns on one core, and only the ratios between them count."""

from __future__ import annotations

import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import attrs

HERE = Path(__file__).parent
OURS = "ours"
TABLE_TIME = 75.0  # seconds after which a table gets no further round, so that a run has an end
CLIENT_TIMEOUT = 180.0  # seconds that one round of one client may take


@attrs.frozen
class Figure:
    """One figure over all rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value that half of the rounds stayed below."""
        return statistics.median(self.values)

    def __format__(self, spec: str) -> str:
        if not self.values or math.isnan(self.median):
            return "-"
        low, high = min(self.values), max(self.values)
        return f"{self.median:{spec}} [{low:{spec}}-{high:{spec}}]"


@attrs.frozen
class Column:
    """A figure that a table shows: its heading, how it is made of a round, how it is written."""

    name: str
    of: Callable[[Mapping[str, float]], float]
    spec: str = ".2f"


@attrs.define
class Table:
    """What the clients of one comparison took."""

    title: str
    columns: tuple[Column, ...]
    rounds: dict[str, list[dict[str, float]]] = attrs.field(factory=dict)
    missing: dict[str, str] = attrs.field(factory=dict)

    def figure(self, name: str, column: str) -> Figure:
        """Return a client's figure."""
        of = next(each.of for each in self.columns if each.name == column)
        return Figure(tuple(of(each) for each in self.rounds[name]))

    def ratio(self, column: str, over: str, name: str = OURS) -> Figure:
        """Return a client's figure over another's, round by round."""
        pairs = zip(self.figure(name, column).values, self.figure(over, column).values, strict=True)
        return Figure(tuple(mine / theirs if theirs else float("nan") for mine, theirs in pairs))

    def print(self) -> None:
        """Print it: medians with the least and the most, and ours as a ratio of each."""
        print(f"\n{self.title}")
        widths = [max(len(f"{name}") for name in (*self.rounds, *self.missing, "")) + 2]
        heads = [f"{column.name}" for column in self.columns]
        first = self.columns[0].name
        print(" " * widths[0] + "".join(f"{head:>26}" for head in heads) + f"{'ours/it':>9}")
        for name in self.rounds:
            cells = [f"{self.figure(name, c.name):{c.spec}}" for c in self.columns]
            ratio = f"{self.ratio(first, name).median:9.2f}" if OURS in self.rounds else ""
            print(f"{name:<{widths[0]}}" + "".join(f"{cell:>26}" for cell in cells) + ratio)
        for name, why in self.missing.items():
            print(f"{name:<{widths[0]}}  {why}")

    def as_json(self) -> dict[str, Any]:
        """Return every round of every client."""
        figures = {
            name: {c.name: attrs.asdict(self.figure(name, c.name)) for c in self.columns}
            for name in self.rounds
        }
        return {"title": self.title, "figures": figures, "missing": self.missing}


class Worker:
    """A client's process."""

    def __init__(self, module: str, name: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), module, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )
        if cores() is not None:
            os.sched_setaffinity(self._process.pid, {cores()[1]})  # type: ignore[index]
        self._read_result()

    def run(self, **arguments: Any) -> dict[str, float]:
        """Run one round."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        return self._read_result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _read_result(self) -> dict[str, float]:
        assert self._process.stdout is not None
        timer = threading.Timer(CLIENT_TIMEOUT, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            words = self._process.communicate()[1].strip().rpartition("\n")[2]
            raise RuntimeError(words or f"took longer than {CLIENT_TIMEOUT:g} s")
        result: dict[str, float] = json.loads(line)
        return result


def without(client: Any, change: Callable[[], None]) -> Callable[..., Any]:
    """Return a client on the loop with a part of it taken away in this process."""

    @asynccontextmanager
    async def changed(**arguments: Any) -> AsyncIterator[Any]:
        change()
        async with client(**arguments) as run:
            yield run

    return changed


def cores() -> tuple[int, int] | None:
    """Return a core for servers and one for clients, ``None`` where there is no choice."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    mine = sorted(os.sched_getaffinity(0))
    return (mine[0], mine[1]) if len(mine) > 1 else None


def compare(
    title: str,
    module: str,
    columns: tuple[Column, ...],
    *,
    rounds: int,
    arguments: Mapping[str, Any],
    warm_up: Mapping[str, Any],
    names: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Table:
    """Have clients take turns, each in a process of its own, in another order each round."""
    table = Table(title, columns)
    names = list(names or importlib.import_module(module).CLIENTS)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in names:
            try:
                workers[name] = stack.enter_context(Worker(module, name, environment or {}))
                workers[name].run(**{**arguments, **warm_up})
            except RuntimeError as error:
                workers.pop(name, None)
                table.missing[name] = str(error)
        began = time.monotonic()
        for turn in range(rounds):
            if turn and time.monotonic() - began > TABLE_TIME:
                break
            order = list(workers)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                try:
                    table.rounds.setdefault(name, []).append(workers[name].run(**arguments))
                except RuntimeError as error:
                    table.missing[name] = str(error)
                    workers.pop(name)
                    table.rounds.pop(name, None)
    table.rounds = {name: table.rounds[name] for name in names if name in table.rounds}
    return table
