"""The options that several commands take, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token, validators

from musicgpt_async import InvalidOptionError, Preprocessing, PreprocessingName, Stem, StemName
from musicgpt_async._rules import filenames
from musicgpt_async.cli import streams
from musicgpt_async.cli.names import match_case, split_names
from musicgpt_async.cli.settings import Plan, Settings
from musicgpt_async.cli.text import plain
from musicgpt_async.cli.usage import UsageError

if TYPE_CHECKING:
    from musicgpt_async.cli.sources import TrackSources

Positive: Parameter = Parameter(validator=validators.Number(gt=0))
# Without "--no-…" and "--empty-…", which are not needed, and without "[default: False]".
LIST: Parameter = Parameter(negative=(), show_default=False)
Flag = Annotated[bool, LIST]
Quiet = Annotated[bool, Parameter(name=("--quiet", "-q")), LIST]
Tracks = Annotated[list[str], LIST]
Directory = Annotated[Path | None, Parameter(show_default=False)]
OutputDirectory = Annotated[Path, Parameter(name=("--out", "-o"))]
SharedJournal = Annotated[
    str | None,
    Parameter(
        name="--journal",
        help="Path or URL of a journal in place of the one in the output directory, such as "
        "`postgresql://user@host/name`. Commands and services on one journal share the account: "
        "its slots, its polls and --max-credits, and they pay for no track twice.",
    ),
]
DEFAULT_OUT = Path("stems")
DEFAULT_LISTEN = "127.0.0.1:8080"


def _convert_names(kind: type[StrEnum], _: Any, tokens: Sequence[Token]) -> list[str]:
    """Return the names in an option's values; cyclopts rejects one that does not exist."""
    return [*match_case(chain.from_iterable(split_names(each.value) for each in tokens), kind)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """Options of all commands that read tracks and say what to do with each."""

    stem: Annotated[
        list[StemName],
        Parameter(name=("--stem", "-s"), converter=partial(_convert_names, Stem)),
        LIST,
    ] = field(default_factory=list)
    """Stems to extract: `vocals,drums`, or the option once for each; by default drums, bass, piano
    and guitar."""
    preprocess: Annotated[
        list[PreprocessingName], Parameter(converter=partial(_convert_names, Preprocessing)), LIST
    ] = field(default_factory=list)
    """Process the song first; several options as with --stem."""
    eco: Flag = False
    """Ask for MusicGPT's faster parallel separation (second generation of its API)."""
    list_path: Annotated[Path | None, Parameter(name="--list")] = None
    """File with one track per line: a path or URL; or CSV or JSON lines with source, stems,
    preprocessing, eco_mode, label, key. Relative paths are resolved against the list's directory.
    `-` reads it from standard input."""
    force: Flag = False
    """Submit tracks again, and pay again, that were submitted before; and files that are not audio
    by their first bytes."""
    retry_failed: Flag = False
    """Submit tracks again that MusicGPT could not process before, and pay again."""

    @contextmanager
    def open_sources(
        self, named: Sequence[str], *, out: Path, layout: str, quiet: bool
    ) -> Iterator[TrackSources]:
        """Open the list, and yield the tracks that the arguments and the list name.

        Args:
            named: Files, URLs, directories and globs.
            out: The output directory; stems in it are not tracks.
            layout: Names of the stems.
            quiet: Whether to leave warnings out.
        """
        from musicgpt_async.cli import sources, track_list  # noqa: PLC0415 - other commands go without

        with track_list.open_list(self.list_path) as list_file:
            yield sources.TrackSources(
                named=named,
                list_file=list_file,
                stems=tuple(self.stem),
                preprocessing=tuple(self.preprocess),
                eco_mode=self.eco,
                generated=sources.GeneratedFiles(out, layout),
                warn=_make_warn(quiet=quiet),
            )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of all commands that work on tracks."""

    out: OutputDirectory = DEFAULT_OUT
    """Directory for the stems and their journal; made if it does not exist."""
    journal: SharedJournal = None
    site: str | None = None
    """Name of the machines that have the same files at the same paths, for a journal on a server;
    by default this host's name."""
    plan: Plan | None = None
    """The account's plan; by default that of MUSICGPT_PLAN, else its limits are learned."""
    jobs: Annotated[int | None, Parameter(name=("--jobs", "-j")), Positive] = None
    """Tracks at MusicGPT at once; by default as many as the account allows."""
    deadline: Annotated[float | None, Positive] = 3600.0
    """Give up on a track after this many seconds."""
    max_credits: Annotated[float | None, Positive] = None
    """Stop submitting when this many credits are used."""
    layout: str = filenames.DEFAULT_LAYOUT
    """Names of the files below --out, made of {track}, {stem}, {ext} and {folder}: the track's path
    below the directory that was given."""
    webhook: str | None = None
    """Public URL for MusicGPT's webhooks, such as https://example.com/musicgpt."""
    listen: str = DEFAULT_LISTEN
    """Address that the webhook receiver listens on, as HOST:PORT."""
    json: Flag = False
    """One JSON object a track on stdout: track, source, ok, state, id, task_id, conversion_id,
    label, stems, preprocessing, eco_mode, format, directory, size, files (stem → format → path),
    duration, credits_estimated, credits_charged, created, accepted, in_work, error (type, message,
    status, vendor_message)."""
    quiet: Quiet = False
    """Show only failures."""
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v")), LIST] = False
    """Show the library's log on stderr."""

    def settings(self, *, directory: Path | None = None, **more: Any) -> Settings:
        """Return the validated settings.

        Args:
            directory: The directory given instead of --out.
            more: Options of one command.
        """
        return Settings(
            out=choose_directory(directory, self.out),
            plan=self.plan,
            jobs=self.jobs,
            deadline=self.deadline,
            max_credits=self.max_credits,
            layout=validate_layout(self.layout),
            webhook=self.webhook,
            listen=host_and_port(self.listen),
            json=self.json,
            quiet=self.quiet,
            verbose=self.verbose,
            journal=self.journal,
            site=self.site,
            **more,
        )


DEFAULTS = Common()
DEFAULT_TRACK_OPTIONS = TrackOptions()


def host_and_port(text: str) -> tuple[str, int]:
    """Return the two halves of an address such as ``127.0.0.1:8080`` or ``[::1]:8080``.

    Raises:
        UsageError: It is not such an address.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{text!r} is not an address to listen on, such as 127.0.0.1:8080.")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)  # noqa: S104 - asked for


def choose_directory(directory: Path | None, out: Path) -> Path:
    """Return the output directory, which may be named by itself or with --out.

    Raises:
        UsageError: Both are given, and differ.
    """
    if directory is None:
        return out
    if out not in (DEFAULT_OUT, directory):
        raise UsageError(f"Two output directories are given: {directory} and --out {out}.")
    return directory


def tasks_by_job(found: Sequence[str]) -> dict[str, str]:
    """Return job id → task_id out of texts such as ``JOB_ID=TASK_ID``.

    Raises:
        UsageError: A text has another form, or names a job or a task again.
    """
    tasks: dict[str, str] = {}
    for text in found:
        job_id, _, task_id = (part.strip() for part in text.partition("="))
        if not job_id or not task_id:
            raise UsageError(f"--found {text!r} is not understood; it looks like JOB_ID=TASK_ID.")
        if job_id in tasks or task_id in tasks.values():
            raise UsageError(f"--found {text!r} names a job or a task for the second time.")
        tasks[job_id] = task_id
    return tasks


def validate_layout(layout: str) -> str:
    """Return a layout that can be used.

    Raises:
        UsageError: It cannot.
    """
    try:
        return filenames.validate_layout(layout)
    except InvalidOptionError as error:
        raise UsageError(error.message) from error


def _make_warn(*, quiet: bool) -> Callable[[str], None]:
    """Return a function that shows a warning on stderr, unless the run is quiet."""

    def say(text: str) -> None:
        if not quiet:
            streams.say(plain(text))

    return say
