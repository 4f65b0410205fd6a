"""The one way to say that a command cannot begin."""

from __future__ import annotations


class UsageError(Exception):
    """The command was refused before anything was sent; the message says what to do."""
