"""When two submits are the same one: the same track with the same options, or the same key."""

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
    """Return what is equal for the same track with the same options.

    Args:
        location: Absolute path or URL, or empty.
        version: Changes with the content: size and time of a file, a digest of bytes.
        stems: In any order.
        preprocessing: In any order.
        eco_mode: Whether the faster separation is asked for.
    """
    # Left out if false: journals older than the option hold fingerprints without it.
    options = [sorted(stems), sorted(preprocessing), *(["eco_mode"] if eco_mode else ())]
    text = json.dumps([location, version, *options])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def compute_key_fingerprint(key: str) -> str:
    """Return what is equal for the same key, whatever the track and the options are.

    The options are no part of it: a key that is used again with other options has to be seen as the
    same key, so that it can be refused rather than paid for a second time.
    """
    return _KEYED + hashlib.sha256(key.encode()).hexdigest()


def is_keyed(fingerprint: str) -> bool:
    """Return whether a fingerprint was computed from a key."""
    return fingerprint.startswith(_KEYED)


def check_key(key: object) -> str | None:
    """Return a caller's key, or ``None`` if there is none.

    Raises:
        InvalidOptionError: It is empty, too long, or holds what no database can store.
    """
    if key is None:
        return None
    if not isinstance(key, str) or not key.strip() or len(key) > MAX_KEY_LENGTH:
        shown = repr(key)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
        raise InvalidOptionError(
            f"key= takes a text of 1 to {MAX_KEY_LENGTH} characters, not {shown}."
        )
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in key):
        raise InvalidOptionError("key= must not contain NUL characters or lone surrogates.")
    return key
