"""Write the report of a directory; files are read and written in threads."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import anyio.to_thread
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from musicgpt_async import Journal
from musicgpt_async.cli import streams
from musicgpt_async.cli.journals import has_journal
from musicgpt_async.cli.report import tracks
from musicgpt_async.cli.report.page import Page
from musicgpt_async.cli.report.tracks import LeftOut, ReportTrack
from musicgpt_async.cli.report.waveforms import Waveform
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.text import plain
from musicgpt_async.cli.usage import UsageError

NAME = "report.html"


async def report(settings: Settings, *, last: int) -> int:
    """Write the report of an output directory, print its path, and return the exit code.

    Args:
        settings: The command's options.
        last: Tracks to show, the last ones; the others are only counted.

    Raises:
        UsageError: The directory holds nothing to report, or may not be written to.
        JournalError: Its journal cannot be read.
    """
    directory, quiet = settings.out, settings.quiet
    found, left_out = await _tracks(settings, last)
    title = await anyio.to_thread.run_sync(_name, directory)
    page = Page(directory, title, left_out)
    with _progress(quiet=quiet) as progress:
        bar = progress.add_task("", total=len(found))
        for track in found:
            waveforms = await _waves(track)
            await anyio.to_thread.run_sync(page.add, track, waveforms)
            progress.advance(bar)
    target = directory / NAME
    await anyio.to_thread.run_sync(_write, target, page)
    streams.write_result(plain(str(target)))
    if left_out and not quiet:
        total = len(found) + len(left_out)
        streams.say(
            f"The page shows the last {len(found):,} of {total:,} tracks; --last {total} shows all."
        )
    return 0


async def _tracks(settings: Settings, last: int) -> tuple[list[ReportTrack], LeftOut]:
    directory = settings.out
    is_there = await anyio.Path(directory).is_dir()
    if is_there and await anyio.to_thread.run_sync(has_journal, settings):
        attempts = tracks.Attempts(last)
        # A journal that others share has tracks of other directories, too.
        only = str(await anyio.Path(directory).resolve()) if settings.journal else None
        async with Journal(settings.journal_place) as journal:
            async for record in journal.records():
                if only is None or record.directory == only:
                    attempts.add(record)
        found = await anyio.to_thread.run_sync(attempts.tracks, directory)
        left_out = attempts.left_out
    else:
        all_ = await anyio.to_thread.run_sync(tracks.from_files, directory)
        found, left_out = all_[-last:], LeftOut()
        for number, track in enumerate(all_[:-last]):
            left_out.add_track(number, track.outcome, 0.0)
    if not found:
        reason = "no tracks" if is_there else "no such directory"
        raise UsageError(f"There is nothing to report of {directory}: {reason}.")
    return found, left_out


async def _waves(track: ReportTrack) -> dict[Path, Waveform | None]:
    """Read a track's files, as many at once as there are processors."""
    waveforms: dict[Path, Waveform | None] = {}
    limiter = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def read(path: Path) -> None:
        waveforms[path] = await anyio.to_thread.run_sync(Waveform.of, path, limiter=limiter)

    async with anyio.create_task_group() as tasks:
        for path in track.played:
            tasks.start_soon(read, path)
    return waveforms


def _name(directory: Path) -> str:
    return directory.resolve().name or str(directory)


def _progress(*, quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("Drawing"), BarColumn(), MofNCompleteColumn())
    is_off = quiet or not console.is_terminal
    return Progress(*columns, console=console, transient=True, disable=is_off)


def _write(target: Path, page: Page) -> None:
    """Write a file atomically.

    Raises:
        UsageError: It cannot be written.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(page.encode(time.time()), "utf-8", newline="\n")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"{target} cannot be written: {error.strerror}.") from error
