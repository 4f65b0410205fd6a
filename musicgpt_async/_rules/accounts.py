"""Which sessions share an account: those with the same key at the same API."""

from __future__ import annotations

import hashlib
import json


def compute_account(api_key: str, base_url: str) -> str:
    """Return what is equal for the same account; the key cannot be read from it.

    Args:
        api_key: The account's key.
        base_url: The API's, without a trailing slash.
    """
    return hashlib.sha256(json.dumps([api_key, base_url]).encode()).hexdigest()[:32]
