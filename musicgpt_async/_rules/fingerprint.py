"""When two submits are the same one: the same track with the same options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection


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
