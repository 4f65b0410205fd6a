"""Whether there is a journal where a command looks for one."""

from __future__ import annotations

import os

from musicgpt_async import ConfigurationError
from musicgpt_async._io.database import parse_database_url
from musicgpt_async.cli.settings import JOURNAL, Settings
from musicgpt_async.cli.usage import UsageError


def require_journal(settings: Settings) -> None:
    """Refuse to start without a journal.

    Raises:
        UsageError: There is none.
    """
    if not has_journal(settings):
        raise UsageError(
            f"There is no journal ({JOURNAL}) in {settings.out}: name the directory that `extract` "
            "wrote to, its --out."
            if settings.shared_journal is None
            else f"There is no journal {settings.shared_journal}; `extract --journal` makes one."
        )


def has_journal(settings: Settings) -> bool:
    """Return whether there may be a journal: of a server's, only opening it tells.

    Raises:
        UsageError: It cannot be one.
    """
    try:
        file = parse_database_url(os.fspath(settings.journal_place)).file
    except ConfigurationError as error:
        raise UsageError(error.message) from error
    return file is None or file.is_file()
