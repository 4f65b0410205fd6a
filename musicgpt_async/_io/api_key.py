"""The API key where the caller gives none: environment, file, and the system's keyring."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from musicgpt_async.errors import ConfigurationError

KEY_VARIABLE = "MUSICGPT_API_KEY"
KEY_FILE_VARIABLE = "MUSICGPT_API_KEY_FILE"
# What `keyring set musicgpt-async api-key` stores.
KEYRING_SERVICE, KEYRING_USER = "musicgpt-async", "api-key"


@attrs.frozen
class FoundKey:
    """A key and where it is from.

    Attributes:
        key: The key; empty if there is none.
        origin: What it was read from, for people.
    """

    key: str = attrs.field(repr=False)
    origin: str


def find_key(environment: Mapping[str, str] = os.environ, *, keyring: bool = False) -> FoundKey:
    """Return the key of `MUSICGPT_API_KEY`, or of the file that `MUSICGPT_API_KEY_FILE` names.

    Args:
        environment: The environment's variables.
        keyring: Whether to ask the system's keyring if neither is set. It may ask the user for a
            password, so only a command does that.

    Raises:
        ConfigurationError: The file cannot be read, or is empty.
    """
    if key := environment.get(KEY_VARIABLE, "").strip():
        return FoundKey(key, KEY_VARIABLE)
    if path := environment.get(KEY_FILE_VARIABLE, "").strip():
        return FoundKey(_read_file(Path(path)), f"the file {path}")
    return FoundKey(_ask_keyring() if keyring else "", "the keyring")


def _read_file(path: Path) -> str:
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(
            f"{KEY_FILE_VARIABLE} names {path}, which cannot be read: {reason}."
        ) from error
    if not key:
        raise ConfigurationError(f"{KEY_FILE_VARIABLE} names {path}, which is empty.")
    return key


def _ask_keyring() -> str:
    """Return the key in the system's keyring; empty without one, or without the extra."""
    try:
        import keyring  # noqa: PLC0415 - an extra
        from keyring.errors import KeyringError  # noqa: PLC0415 - the same
    except ImportError:
        return ""
    try:
        return (keyring.get_password(KEYRING_SERVICE, KEYRING_USER) or "").strip()
    except KeyringError:  # there is no keyring, or it stays locked
        return ""
