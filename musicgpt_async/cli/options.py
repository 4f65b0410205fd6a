"""The options that several commands take, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token, validators

from musicgpt_async import InvalidOptionError, Preprocessing, Stem
from musicgpt_async._rules import filenames
from musicgpt_async.cli.names import match_case, split_names
from musicgpt_async.cli.settings import Plan, Settings
from musicgpt_async.cli.usage import UsageError

Positive: Parameter = Parameter(validator=validators.Number(gt=0))
# Without "--no-…" and "--empty-…", which are not needed, and without "[default: False]".
FLAG = LIST = Parameter(negative=(), show_default=False)


def _convert_names(kind: type[StrEnum], _: Any, tokens: Sequence[Token]) -> list[str]:
    """Return the names in an option's values; cyclopts rejects one that does not exist."""
    return [*match_case(chain.from_iterable(split_names(each.value) for each in tokens), kind)]


STEMS = Parameter(converter=partial(_convert_names, Stem))
OPTIONS = Parameter(converter=partial(_convert_names, Preprocessing))
DEFAULT_OUT = Path("stems")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of all commands that work on tracks."""

    out: Annotated[Path, Parameter(name=("--out", "-o"))] = DEFAULT_OUT
    """Directory for the stems and their journal; made if it does not exist."""
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
    listen: str = "127.0.0.1:8080"
    """Address that the webhook receiver listens on, as HOST:PORT."""
    json: Annotated[bool, FLAG] = False
    """One JSON object a track on stdout: track, source, ok, state, id, task_id, conversion_id,
    label, stems, preprocessing, eco_mode, format, directory, size, files (stem → format → path),
    duration, credits_estimated, credits_charged, created, accepted, in_work, error (type, message,
    status, vendor_message)."""
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q")), FLAG] = False
    """Show only failures."""
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v")), FLAG] = False
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
            **more,
        )


DEFAULTS = Common()


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
