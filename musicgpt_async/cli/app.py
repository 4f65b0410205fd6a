"""The commands: what they are called, what they take, and which function does the work.

Each imports its function when it runs: `--help` would wait for what this module imports.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators
from cyclopts.exceptions import CycloptsError, MissingArgumentError

from musicgpt_async import AudioFormat, MusicGPTError
from musicgpt_async._rules import filenames
from musicgpt_async._version import __version__
from musicgpt_async.cli import event_loop, streams
from musicgpt_async.cli.options import (
    DEFAULT_LISTEN,
    DEFAULT_OUT,
    DEFAULT_TRACK_OPTIONS,
    DEFAULTS,
    LIST,
    Common,
    Directory,
    Flag,
    OutputDirectory,
    Positive,
    Quiet,
    SharedJournal,
    TrackOptions,
    Tracks,
    choose_directory,
    host_and_port,
    tasks_by_job,
)
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.text import plain
from musicgpt_async.cli.usage import UsageError

app: App = App(
    name="musicgpt-async",
    help="Split songs into stems with MusicGPT.\n\n"
    "The key is read from MUSICGPT_API_KEY, the file that MUSICGPT_API_KEY_FILE names, or the "
    "system's keyring (`keyring set musicgpt-async api-key`); the API's address from "
    "MUSICGPT_BASE_URL; the plan (free, plus or pro) from MUSICGPT_PLAN.",
    version=__version__,
    help_format="markdown",
    version_format="plaintext",
)
app.register_install_completion_command(help="Install completion for your shell.")


@app.command(sort_key=0)
def extract(
    files_or_urls: Tracks = [],  # noqa: B006 - never changed
    /,
    *,
    options: TrackOptions = DEFAULT_TRACK_OPTIONS,
    format: AudioFormat = "best",  # noqa: A002 - the option's name
    dry_run: Flag = False,
    no_journal: Flag = False,
    common: Common = DEFAULTS,
) -> int:
    """Split songs into stems.

    Run the same command again to continue: a track that was submitted is not paid for twice, and a
    file that exists is not downloaded twice.

    Args:
        files_or_urls: Audio files, URLs, directories (for all audio files below them) and globs.
        options: What `enqueue` takes, too.
        format: File format: `best` is WAV if MusicGPT has it, else MP3; `both` is every format
            there is.
        dry_run: List what would be submitted and its price; send nothing.
        no_journal: Keep no journal of submitted tracks; by default it is in the output directory.
        common: What other commands take, too.
    """
    from musicgpt_async.cli.commands import extract as command  # noqa: PLC0415 - other commands go without

    if no_journal and common.journal is not None:
        raise UsageError("Give --journal or --no-journal, not both.")
    settings = common.settings(format=format, keeps_journal=not no_journal)
    work = partial(
        command.dry_run if dry_run else command.extract,
        force=options.force,
        retry_failed=options.retry_failed,
    )
    with options.open_sources(
        files_or_urls, out=settings.out, layout=settings.layout, quiet=settings.quiet
    ) as sources:
        return event_loop.run(work, settings, sources)


@app.command(sort_key=1)
def resume(
    directory: Directory = None,
    /,
    *,
    found: Annotated[list[str], LIST] = [],  # noqa: B006 - never changed
    format: AudioFormat | None = None,  # noqa: A002 - the option's name
    common: Common = DEFAULTS,
) -> int:
    """Resume unfinished jobs from an earlier `extract --out` of the same directory.

    Args:
        directory: The output directory; the same as --out.
        found: JOB_ID=TASK_ID, once for each job that is unknown and that the MusicGPT dashboard
            shows; `jobs` shows the ids.
        format: File format; by default that of the earlier run. (For --layout the setting of the
            earlier run takes precedence.)
        common: What other commands take, too.
    """
    from musicgpt_async.cli.commands import extract as command  # noqa: PLC0415 - other commands go without

    settings = common.settings(directory=directory, format=format)
    return event_loop.run(partial(command.resume, settings, found=tasks_by_job(found)))


@app.command(sort_key=2)
def fetch(
    task_ids: Annotated[list[str], LIST],
    /,
    *,
    format: AudioFormat | None = None,  # noqa: A002 - the option's name
    common: Common = DEFAULTS,
) -> int:
    """Download the stems of tasks that were submitted elsewhere; wait for those that still run.

    Nothing is submitted or paid for; `--jobs` and `--max-credits` have no effect.

    Args:
        task_ids: MusicGPT's ids, as the dashboard and other programs show them.
        format: File format; by default `best`, or that of an earlier run in --out.
        common: What other commands take, too.
    """
    from musicgpt_async.cli.commands import fetch as command  # noqa: PLC0415 - other commands go without

    return event_loop.run(partial(command.fetch, common.settings(format=format), task_ids))


@app.command(sort_key=3)
def jobs(
    directory: Directory = None,
    /,
    *,
    out: OutputDirectory = DEFAULT_OUT,
    failed: Flag = False,
    journal: SharedJournal = None,
    database: str | None = None,
    json: Flag = False,
) -> int:
    """List what the journal of an output directory holds, or that of a database and its tasks.

    The states are queued, uploading, processing, downloading, done, failed; unknown for a track
    that was sent and whose response was lost; stopped for one that was interrupted before it was
    sent.

    Args:
        directory: The output directory; the same as --out.
        out: The output directory.
        failed: Only tracks that failed, or whose response was lost, with the reason.
        journal: Path or URL of a journal.
        database: URL of a PostgreSQL database that `enqueue` and `worker` use, in place of a
            directory.
        json: One JSON object a job, with the fields that `extract --json` has.
    """
    from musicgpt_async.cli.commands import jobs as command  # noqa: PLC0415 - other commands go without
    from musicgpt_async.cli.task_database import libpq_url  # noqa: PLC0415 - the same

    url = None if database is None else libpq_url(database)
    out = choose_directory(directory, out)
    settings = Settings(out=out, journal=journal, tasks=url, json=json)
    return event_loop.run(partial(command.show, settings, only_failed=failed))


@app.command(sort_key=4)
def report(
    directory: Directory = None,
    /,
    *,
    out: OutputDirectory = DEFAULT_OUT,
    last: Annotated[int, Positive] = 500,
    journal: SharedJournal = None,
    quiet: Quiet = False,
) -> int:
    """Write a page about an output directory: waveforms, players, costs and failures.

    It is one file, `report.html` beside the stems, and opens in any browser without a network.

    Args:
        directory: The output directory; the same as --out.
        out: The output directory.
        last: Tracks to show, the last ones; the sums are of all.
        journal: Path or URL of a journal.
        quiet: No progress.
    """
    from musicgpt_async.cli import report as page  # noqa: PLC0415 - other commands go without

    settings = Settings(out=choose_directory(directory, out), journal=journal, quiet=quiet)
    return event_loop.run(partial(page.report, settings, last=last))


@app.command(sort_key=5)
def doctor(
    *, webhook: str | None = None, listen: str = DEFAULT_LISTEN, journal: str | None = None
) -> int:
    """Check the key, the API, the webhook URL and the journal, and say how to fix what is wrong.

    Args:
        webhook: Public URL for MusicGPT's webhooks; a receiver runs during the check.
        listen: Address that the receiver listens on, as HOST:PORT.
        journal: Path or URL of a journal: whether its server keeps what was committed, whether
            processes are notified of each other's changes, and whether webhooks arrived.
    """
    from musicgpt_async.cli.commands import doctor as command  # noqa: PLC0415 - other commands go without

    return event_loop.run(command.examine, webhook, host_and_port(listen), journal)


@app.command(sort_key=6)
def emulate(
    *,
    generation: Literal[1, 2] = 1,
    wav: Annotated[bool | None, Parameter(show_default=False)] = None,
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 0,
    seconds: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 2.0,
    parallel: Annotated[int, Positive] = 10,
    polls: Annotated[int, Positive] = 500,
    speed: Annotated[float, Positive] = 1.0,
    credits: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 10_000.0,  # noqa: A002 - the option's name
    key: str = "emulator-key",
    separate: Annotated[bool, Parameter(negative="--pretend", show_default=False)] = True,
    fault: Annotated[list[str], LIST] = [],  # noqa: B006 - never changed
) -> int:
    """Run a local MusicGPT emulator (no key, no cost).

    The first two lines on stdout are for your shell: `export MUSICGPT_BASE_URL=…` and
    `export MUSICGPT_API_KEY=…`. Each request is logged on stderr. Press Ctrl-C to stop it.

    Args:
        generation: 1 for the API whose base URL ends in /v1, 2 for that of August 2026.
        wav: Whether results have WAV files; by default those of generation 1 have.
        port: The API's port; 0 for any free one.
        seconds: Seconds that a track takes at least.
        parallel: Unfinished tracks that are allowed at once.
        polls: byId calls that are allowed a minute.
        speed: Factor by which the emulator's time runs faster.
        credits: The account's balance.
        key: The key that is accepted.
        separate: Really separate tracks; --pretend makes quick noise instead.
        fault: A fault to inject; repeat the option for several. TARGET:KIND or
            TARGET:KIND:OPTION=VALUE,…, such as
            `submit:drop_before_answer` or `byId:status:status=503,times=always`.
    """
    from musicgpt_async.cli.commands import emulate as command  # noqa: PLC0415 - other commands go without

    settings = command.EmulatorSettings(
        generation=generation,
        wav=wav,
        port=port,
        seconds=seconds,
        parallel=parallel,
        polls=polls,
        speed=speed,
        credits=credits,
        key=key,
        separate=separate,
        faults=tuple(fault),
    )
    return event_loop.run(command.emulate, settings)


@app.command(sort_key=7)
def demo(
    *,
    out: OutputDirectory = Path("musicgpt-async-demo"),
    quiet: Quiet = False,
) -> int:
    """Compose a song, separate it on this machine, measure the stems, and write a report.

    It needs neither a key nor a network.

    Args:
        out: Directory for the song and its stems.
        quiet: Only the results.
    """
    from musicgpt_async.cli.commands import demo as command  # noqa: PLC0415 - other commands go without

    return event_loop.run(command.demonstrate, Settings(out=out, quiet=quiet))


@app.command(sort_key=8)
def enqueue(
    files_or_urls: Tracks = [],  # noqa: B006 - never changed
    /,
    *,
    database: str,
    options: TrackOptions = DEFAULT_TRACK_OPTIONS,
    site: str | None = None,
    out: OutputDirectory = DEFAULT_OUT,
    json: Flag = False,
    quiet: Quiet = False,
) -> int:
    """Make a task of each song in a PostgreSQL database, for `worker` on any number of machines.

    Nothing is submitted yet. The same command again adds what is new: a track that waits, or that
    was extracted before, is not paid for twice.

    Args:
        files_or_urls: Audio files, URLs, directories (for all audio files below them) and globs.
        database: Its URL, such as `postgresql://user:password@host/name`. Tables are created.
        options: What `extract` takes, too.
        site: Name of the machines that have these files at these paths; by default this host's
            name. URLs are taken by any worker.
        out: The workers' output directory: stems in it are not taken for songs.
        json: One JSON object a task on stdout.
        quiet: No summary.
    """
    from musicgpt_async.cli.commands import enqueue as command  # noqa: PLC0415 - other commands go without

    settings = command.EnqueueSettings(
        database=database,
        site=site,
        force=options.force,
        retry_failed=options.retry_failed,
        json=json,
        quiet=quiet,
    )
    with options.open_sources(
        files_or_urls, out=out, layout=filenames.DEFAULT_LAYOUT, quiet=quiet
    ) as sources:
        return event_loop.run(command.enqueue, settings, sources)


@app.command(sort_key=9)
def worker(
    *,
    database: str,
    format: AudioFormat | None = None,  # noqa: A002 - the option's name
    concurrency: Annotated[int, Positive] = 32,
    until_empty: Flag = False,
    stalled_after: Annotated[float, Positive] = 30.0,
    common: Common = DEFAULTS,
) -> int:
    """Extract the songs that `enqueue` made tasks of, together with workers on other machines.

    All workers share the journal, which is in the same database. When a worker is stopped, its
    tasks go back; when it dies, others take them over. Neither pays for a song twice.

    Args:
        database: URL of the tasks and, without --journal, of the journal, as for `enqueue`. Tasks
            of another --site are left to its workers; URLs are taken by any.
        format: Which files of each stem: `best` is WAV if the vendor has it, else MP3.
        concurrency: Tasks in work at once.
        until_empty: End when no task is due, in place of waiting for more.
        stalled_after: Seconds without a sign of life after which the tasks of another worker are
            taken over; the same for all workers.
        common: What other commands take, too.
    """
    from musicgpt_async.cli.commands import worker as command  # noqa: PLC0415 - other commands go without
    from musicgpt_async.cli.task_database import libpq_url  # noqa: PLC0415 - the same

    options = command.WorkerSettings(
        database=database,
        concurrency=concurrency,
        until_empty=until_empty,
        stalled_after=stalled_after,
    )
    settings = common.settings(format=format, tasks=libpq_url(database))
    return event_loop.run(command.work, settings, options)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    streams.open_missing()
    return streams.finish(_run(arguments))


def _run(arguments: Sequence[str]) -> int:
    try:
        return (
            app(
                _with_stdin(arguments),
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
            or 0
        )
    except CycloptsError as error:
        return _refuse(_explain(error))
    except UsageError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:  # before anything was sent
        return 128 + signal.SIGINT
    except (streams.OutputError, MusicGPTError, OSError) as error:  # cyclopts prints help itself
        return _failed(error)


def _failed(error: Exception) -> int:
    if not isinstance(error, BrokenPipeError) and not getattr(error, "is_closed", False):
        words = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)
        streams.say(f"musicgpt-async: {plain(words)}")
    return 1


def _with_stdin(arguments: Sequence[str]) -> list[str]:
    """Join ``--list -``, whose hyphen would be taken for an option."""
    words: list[str] = []
    for word in arguments:
        if word == "-" and words[-1:] == ["--list"]:
            words[-1] = "--list=-"
        else:
            words.append(word)
    return words


def _explain(error: CycloptsError) -> str:
    """Return a message that distinguishes a missing option from a missing value."""
    argument = error.argument
    if isinstance(error, MissingArgumentError) and argument and not error.keyword:
        command = " ".join(("musicgpt-async", *(error.command_chain or ())))
        return f"{argument.name} is missing; see `{command} --help`."
    return " ".join(str(error).split())


def _refuse(message: str) -> int:
    streams.say(f"musicgpt-async: {plain(message)}")
    return 2
