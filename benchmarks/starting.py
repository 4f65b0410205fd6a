"""Start-up: what importing and the command's help cost, in fresh processes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from comparison import Column, Table, compare

COLUMNS = (
    Column("CPU ms", lambda each: 1000 * each["cpu"], ".0f"),
    Column("wall ms", lambda each: 1000 * each["wall"], ".0f"),
    Column("memory MiB", lambda each: each["resident"], ".1f"),
    Column("modules", lambda each: each["modules"], ".0f"),
)
COUNTED = """
import resource, sys, time
wall, before = time.perf_counter(), time.process_time()
{0}
cpu = time.process_time() - before
wall = time.perf_counter() - wall
print(wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(sys.modules))
"""


def importing(statement: str) -> Any:
    """Return a client that imports something in a fresh process."""

    @contextmanager
    def client() -> Iterator[Callable[[], dict[str, float]]]:
        name = statement.split()[1].rstrip(",")
        if importlib.util.find_spec(name) is None:
            raise RuntimeError(f"{name} is not installed")

        yield lambda: _measure(statement)

    return client


def _measure(statement: str) -> dict[str, float]:
    command = [sys.executable, "-c", COUNTED.format(statement)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = map(float, done.stdout.split())
    return dict(zip(("wall", "cpu", "resident", "modules"), figures, strict=True))


def running(option: str) -> Any:
    """Return a client that runs the command with an option."""

    @contextmanager
    def client() -> Iterator[Callable[[], dict[str, float]]]:
        command = [sys.executable, "-m", "musicgpt_async.cli", option]

        def run() -> dict[str, float]:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return {}

        yield run

    return client


COMMANDS: dict[str, Any] = {option: running(option) for option in ("--help", "--version")}
CLIENTS: dict[str, Any] = {
    "bare dependencies": importing("import attrs, anyio, aiofiles, stamina, aiohttp"),
    "ours": importing("import musicgpt_async"),
    "ours, its session": importing("from musicgpt_async import MusicGPTSession"),
    "aiohttp alone": importing("import aiohttp"),
    "requests": importing("import requests"),
    "pyreqwest": importing("import pyreqwest.client"),
    "niquests": importing("import niquests"),
    "fal-client": importing("import fal_client"),
    "openai": importing("import openai"),
    **COMMANDS,
}


def tables(rounds: int) -> Iterator[Table]:
    """Import each in turn; run the command in turn."""
    once: dict[str, Any] = {"rounds": rounds, "arguments": {}, "warm_up": {}}
    imports = [name for name in CLIENTS if name not in COMMANDS]
    yield compare("Import, in a fresh process", "starting", COLUMNS, names=imports, **once)
    yield compare("Commands", "starting", COLUMNS[:2], names=COMMANDS, **once)
