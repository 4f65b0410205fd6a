"""The event loop that commands run on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TypeVarTuple, Unpack

Arguments = TypeVarTuple("Arguments")


def run(command: Callable[[Unpack[Arguments]], Awaitable[int]], *arguments: *Arguments) -> int:
    """Run a command and return its exit code, on uvloop if it is installed."""
    import anyio  # noqa: PLC0415 - help and versions need no event loop

    options = {"use_uvloop": find_spec("uvloop") is not None}
    return anyio.run(command, *arguments, backend_options=options)
