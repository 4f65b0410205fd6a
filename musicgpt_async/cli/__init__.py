"""The command `musicgpt-async`: arguments → calls → text; the only code that prints."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

EXTRA = frozenset({"cyclopts", "rich"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: What follows the command's name; by default the process's own arguments.
    """
    try:
        from musicgpt_async.cli import app  # noqa: PLC0415 - what it imports is an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print(
            "The command needs packages that are not installed. "
            'Install them with: pip install "musicgpt-async[cli]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return app.run(sys.argv[1:] if arguments is None else arguments)
