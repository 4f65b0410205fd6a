"""The options of the commands that work on tracks; cheap to import."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Literal

import attrs

from musicgpt_async._rules import filenames, plans
from musicgpt_async.cli.text import mask_password
from musicgpt_async.models import AudioFormat

JOURNAL = ".musicgpt-async.sqlite"

Plan = Literal["free", "plus", "pro"]


@attrs.frozen(kw_only=True)
class Settings:
    """The options of every command that works on tracks.

    Attributes:
        out: Directory for the stems.
        format: Which files of each stem; ``None`` for the format in the journal, else the best.
        layout: The template of the files' names.
        plan: The account's; ``None`` for the environment's, else its limits are learned.
        jobs: Tracks at MusicGPT at once; ``None`` for as many as the account allows.
        deadline: Seconds from acceptance in which a track has to finish.
        max_credits: Credits after which nothing more is submitted.
        webhook: The public URL for MusicGPT's webhooks.
        listen: Host and port that the receiver listens on.
        keeps_journal: Whether to keep a journal.
        journal: Path or URL of a journal that others share, in place of the output directory's.
        tasks: URL of the database of the task queue, which holds the journal, too.
        site: Name of the machines that have the same files; ``None`` for this host's name.
        json: Whether to write outcomes to stdout as JSON.
        quiet: Whether to report failures only.
        verbose: Whether to show the library's log.
        api_key: ``None`` for the environment's.
        base_url: ``None`` for the environment's.
    """

    out: Path
    format: AudioFormat | None = None
    layout: str = filenames.DEFAULT_LAYOUT
    plan: Plan | None = None
    jobs: int | None = None
    deadline: float | None = 3600.0
    max_credits: float | None = None
    webhook: str | None = None
    listen: tuple[str, int] = ("127.0.0.1", 8080)
    keeps_journal: bool = True
    journal: str | None = attrs.field(default=None, repr=False)
    tasks: str | None = attrs.field(default=None, repr=False)
    site: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    api_key: str | None = attrs.field(default=None, repr=False)
    base_url: str | None = None

    @property
    def known_plan(self) -> str | None:
        """The account's plan, as the command or the environment names it.

        Raises:
            ConfigurationError: The environment names one that does not exist.
        """
        return self.plan or plans.check_plan(os.environ.get(plans.PLAN_VARIABLE))

    @property
    def shared_journal(self) -> str | None:
        """Path or URL of the journal if other processes are expected on it."""
        return self.journal or self.tasks

    @property
    def journal_place(self) -> str | Path:
        """Path or URL of the journal."""
        return self.shared_journal or self.out / JOURNAL

    @property
    def resume_command(self) -> str:
        """The command that resumes the tracks that a run has detached, without a password."""
        if self.tasks is not None:
            return "musicgpt-async worker, on any machine that has the tracks"
        place = () if self.journal is None else ("--journal", mask_password(self.journal))
        return shlex.join(["musicgpt-async", "resume", *place, "--out", os.fspath(self.out)])

    @property
    def fetch_command(self) -> str:
        """The command that downloads tasks that no journal holds; their ids come behind it."""
        return shlex.join(["musicgpt-async", "fetch", "--out", os.fspath(self.out)])
