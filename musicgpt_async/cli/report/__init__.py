"""`report`: one HTML file beside the stems, with their waveforms and players."""

from __future__ import annotations

from pathlib import Path

from musicgpt_async.cli.usage import UsageError


async def report(directory: Path, *, quiet: bool = False) -> int:
    """Write the report of an output directory, print its path, and return the exit code.

    Raises:
        UsageError: The directory holds nothing to report, may not be written to, or what reads
            audio is not installed.
        JournalError: Its journal cannot be read.
    """
    try:
        from musicgpt_async.cli.report import writing  # noqa: PLC0415 - an extra, slow to import
    except ImportError as error:
        raise UsageError(
            'The report needs numpy and soundfile: pip install "musicgpt-async[emulator]"'
        ) from error
    return await writing.report(directory, quiet=quiet)
