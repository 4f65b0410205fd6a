"""`report`: one HTML file beside the stems, with their waveforms and players."""

from __future__ import annotations

from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.usage import UsageError

# Tracks that a page shows unless asked: with four stems and a song each, about six megabytes.
DEFAULT_LAST = 500


async def report(settings: Settings, *, last: int = DEFAULT_LAST) -> int:
    """Write the report of an output directory, print its path, and return the exit code.

    Args:
        settings: The command's options.
        last: Tracks to show, the last ones; the others are only counted.

    Raises:
        UsageError: The directory holds nothing to report, may not be written to, or what reads
            audio is not installed.
        JournalError: Its journal cannot be read.
    """
    try:
        from musicgpt_async.cli.report import writing  # noqa: PLC0415 - an extra, slow to import
    except ImportError as error:
        raise UsageError(
            'The report needs packages that are not installed: pip install "musicgpt-async[report]"'
        ) from error
    return await writing.report(settings, last=last)
