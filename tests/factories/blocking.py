"""The guard against blocking the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blockbuster import blockbuster_ctx

# What may block, by file and functions.
ALLOWED = {
    # Coverage's tracer is called between the library's own lines.
    "coverage/collector.py": {"lock_data", "unlock_data"},
    "coverage/control.py": {"_should_trace"},
    # asyncpg looks for password and key files before it connects.
    "asyncpg/connect_utils.py": {"_parse_connect_arguments"},
}


@contextmanager
def forbid_blocking() -> Iterator[None]:
    """Fail if the library itself makes a blocking call on an event loop."""
    with blockbuster_ctx("musicgpt_async") as guard:
        # They ask for the working directory, which waits for nothing.
        guard.functions["os.path.abspath"].deactivate()
        guard.functions["os.getcwd"].deactivate()
        for function in guard.functions.values():
            for file, names in ALLOWED.items():
                function.can_block_in(file, names)
        yield
