"""What every test shares: the loop it runs on, and the guard against blocking it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from factories.blocking import forbid_blocking
from hypothesis import HealthCheck, settings

from musicgpt_async import Limits, MusicGPTSession
from musicgpt_async.emulator import Emulator
from musicgpt_async.emulator.audio.song import compose
from musicgpt_async.testing import accelerated_loop

# Fixtures that are in a file of their own.
pytest_plugins = ["factories.postgres_fixtures"]

# A busy machine generates examples slowly; that says nothing of the code.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {},
    "debug": {"debug": True},
    "uvloop": {"use_uvloop": True},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of the event loop."""
    parser.addoption("--loop", choices=LOOPS, default="asyncio", help="the event loop to test on")


def pytest_configure() -> None:
    """Compile each module once for all workers and for the hundreds of processes that tests start.

    Container images often set this variable, with which every one of them compiles every import.
    """
    sys.dont_write_bytecode = False
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the workers for ``-n auto``: tests mostly wait for clocks and processes."""
    return 3 * (os.cpu_count() or 1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the long tests first, shared among the workers, so that the run does not end with them.

    ``--dist worksteal`` gives each worker an equal stretch of the tests to begin with.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if item.get_closest_marker("long")]
    short = iter([item for item in items if not item.get_closest_marker("long")])
    left = len(items)
    items.clear()
    for worker in range(workers):
        size = left // (workers - worker)
        first = long[worker::workers]
        items += [*first, *islice(short, max(0, size - len(first)))]
        left -= size
    items += short


@pytest.fixture
def anyio_backend(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config
) -> tuple[str, dict[str, Any]]:
    """Return the event loop that async tests run on; uvloop's clock cannot be accelerated."""
    options = LOOPS[pytestconfig.getoption("--loop")]
    marker = request.node.get_closest_marker("accelerated")
    if marker and not options.get("use_uvloop"):
        options = {**options, "loop_factory": accelerated_loop(*marker.args)}
    return "asyncio", options


@pytest.fixture(autouse=True)
def _loop_is_never_blocked() -> Iterator[None]:
    """Fail a test in which the library itself makes a blocking call on the event loop."""
    with forbid_blocking():
        yield


@pytest.fixture(scope="session")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real track: two seconds of several instruments."""
    return compose(tmp_path_factory.mktemp("song") / "Mårten's song.flac", seconds=2)


@pytest.fixture
async def vendor() -> AsyncIterator[Emulator]:
    """Run a fast emulator without real separation."""
    async with Emulator(seconds=0.05, separate=False, stem_bytes=4096) as emulator:
        yield emulator


@pytest.fixture
async def session(vendor: Emulator) -> AsyncIterator[MusicGPTSession]:
    """Yield a session with the emulator; at its end, unfinished jobs are detached."""
    opened = MusicGPTSession(vendor.api_key, base_url=vendor.base_url, limits=Limits.PRO)
    await opened.start()
    yield opened
    await opened.aclose(drain=False)
