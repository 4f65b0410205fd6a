"""The library's messages in the words of the command: its options in place of Python."""

from __future__ import annotations

import re

from musicgpt_async import AuthenticationError
from musicgpt_async.cli.text import plain

_UNKNOWN = r"Look for it in the MusicGPT dashboard and follow it with {}, or submit it again with force=True if it is not there\."  # noqa: E501 - one sentence of the library
_LOST = "If the MusicGPT dashboard shows it, `{}` downloads it; if not, --force submits it again."

# What the library advises → what the command advises.
_TRANSLATIONS = (
    (
        _UNKNOWN.format(r"await session\.bind\('([^']*)', task_id\)"),
        _LOST.format(r"resume --found \1=TASK_ID"),
    ),
    (_UNKNOWN.format(r"session\.attach\(task_id\)"), _LOST.format("fetch TASK_ID")),
    (r"session\.attach\('([^']*)'\) follows it again", r"`resume` or `fetch \1` downloads it"),
    (re.escape(AuthenticationError.advice), "Check MUSICGPT_API_KEY."),
    (r"force=True", "--force"),
)


def for_shell(message: str) -> str:
    """Return a message of the library, safe to show, for users of the command."""
    for advice, words in _TRANSLATIONS:
        message = re.sub(advice, words, message)
    return plain(message)
