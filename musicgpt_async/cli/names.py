"""Names of stems and options as people type them: any case, several in one text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

_SEPARATORS = re.compile(r"[\s,;|]+")


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a text such as ``"vocals, drums"``."""
    return tuple(name for name in _SEPARATORS.split(text) if name)


def match_case(names: Iterable[str], kind: type[StrEnum]) -> tuple[str, ...]:
    """Return names as the API spells them, each once; one that does not exist stays."""
    known = {str(member).lower(): str(member) for member in kind}
    return tuple(dict.fromkeys(known.get(name.lower(), name) for name in names))
