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
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        return _show_versions()
    try:
        from musicgpt_async.cli import app  # noqa: PLC0415 - what it imports is an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        if given == ["doctor"]:
            return _examine()
        print(
            "The command needs packages that are not installed. "
            'Install them with: pip install "musicgpt-async[cli]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return app.run(given)


def _show_versions() -> int:
    """Print what is installed; this needs no extra."""
    from musicgpt_async.cli import streams, versions  # noqa: PLC0415 - only if it is needed

    streams.open_missing()
    try:
        streams.write_result("\n".join(versions.version_lines()))
    except streams.OutputError:
        return 1
    return streams.finish(0)


def _examine() -> int:
    """Run `doctor` without options, which needs no extra."""
    import anyio  # noqa: PLC0415 - as the imports below, only if it is needed

    from musicgpt_async.cli import streams  # noqa: PLC0415
    from musicgpt_async.cli.commands import doctor  # noqa: PLC0415

    streams.open_missing()
    try:
        return streams.finish(anyio.run(doctor.examine, None, ("127.0.0.1", 8080)))
    except streams.OutputError:
        return 1
