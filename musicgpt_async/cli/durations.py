"""The length of a track, read from its header."""

from __future__ import annotations

import math
from pathlib import Path


def read_duration(path: Path) -> float | None:
    """Return the seconds of audio in a file, ``None`` if its header does not say.

    Args:
        path: The file; only its beginning and its end are read.
    """
    try:
        from tinytag import TinyTag, TinyTagException  # noqa: PLC0415 - slow to import, and an extra
    except ImportError:
        return None
    try:
        duration = TinyTag.get(path, tags=False).duration
    except (TinyTagException, OSError, ValueError):
        return None
    return duration if duration is not None and math.isfinite(duration) and duration > 0 else None
