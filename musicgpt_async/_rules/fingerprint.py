"""Fingerprints that identify equal submits: same track and options, or same key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

from musicgpt_async.errors import InvalidOptionError

MAX_KEY_LENGTH = 1024  # characters
_KEYED = "key:"


def compute_fingerprint(
    location: str,
    version: str,
    *,
    stems: Collection[str],
    preprocessing: Collection[str],
    eco_mode: bool = False,
) -> str:
    """Return a digest that is equal for the same track with the same options.

    Args:
        location: Absolute path or URL, or empty for bytes.
        version: Changes with the content: size and mtime of a file, or a digest of bytes.
        stems: Names of stems, in any order.
        preprocessing: Names of preprocessing options, in any order.
        eco_mode: Whether the submit asks for the faster separation.
    """
    # A false eco_mode is omitted: journals older than the option hold fingerprints without it.
    options = [sorted(stems), sorted(preprocessing), *(["eco_mode"] if eco_mode else ())]
    text = json.dumps([location, version, *options])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def compute_key_fingerprint(key: str) -> str:
    """Return a digest that depends on the key alone.

    Options are excluded, so that a key that is reused with other options is recognized and refused
    instead of being paid for again.
    """
    return _KEYED + hashlib.sha256(key.encode()).hexdigest()


def is_keyed(fingerprint: str) -> bool:
    """Return whether a fingerprint was computed from a key."""
    return fingerprint.startswith(_KEYED)


def check_key(key: object) -> str | None:
    """Return a caller's key unchanged, or ``None`` if there is none.

    Raises:
        InvalidOptionError: The key is empty, too long, or holds characters that a database cannot
            store.
    """
    if key is None:
        return None
    if not isinstance(key, str) or not key.strip() or len(key) > MAX_KEY_LENGTH:
        shown = repr(key)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
        raise InvalidOptionError(
            f"key= must be a string of 1 to {MAX_KEY_LENGTH} characters, not {shown}."
        )
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in key):
        raise InvalidOptionError("key= must not contain NUL characters or lone surrogates.")
    return key
