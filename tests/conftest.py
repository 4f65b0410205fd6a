"""What every test shares: the loop it runs on, and the guard against blocking it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {},
    "debug": {"debug": True},
    "uvloop": {"use_uvloop": True},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=LOOPS, default="asyncio", help="the event loop to test on")


@pytest.fixture
def anyio_backend(pytestconfig: pytest.Config) -> tuple[str, dict[str, Any]]:
    return "asyncio", LOOPS[pytestconfig.getoption("--loop")]


@pytest.fixture(autouse=True)
def _loop_is_never_blocked() -> Iterator[None]:
    """Fail a test in which the library itself makes a blocking call on the event loop."""
    with blockbuster_ctx("musicgpt_async"):
        yield
