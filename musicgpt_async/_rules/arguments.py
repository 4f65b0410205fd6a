"""What a caller may give to a session, checked before anything is done."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from musicgpt_async.errors import ConfigurationError, InvalidOptionError


def check_seconds(name: str, seconds: Any, *, may_be_none: bool = False) -> None:
    """Refuse what is not a number of seconds."""
    if seconds is None and may_be_none:
        return
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not seconds > 0:
        raise ConfigurationError(f"{name}= is a number of seconds, more than 0; not {seconds!r}.")


def check_types(**arguments: tuple[object, type | tuple[type, ...]]) -> None:
    """Refuse arguments that are of none of their types; ``None`` is of each."""
    for name, (value, kinds) in arguments.items():
        if value is not None and not isinstance(value, kinds):
            kind = kinds[0] if isinstance(kinds, tuple) else kinds
            shown = "" if name == "api_key" else f", not {value!r}"
            raise ConfigurationError(f"{name}= takes a {kind.__name__}{shown}.")


def validate_credits(max_credits: Any) -> float | None:
    """Return a limit of credits as a number, ``None`` for no limit."""
    if max_credits is None:
        return None
    is_number = isinstance(max_credits, (int, float, Decimal)) and max_credits is not True
    if not is_number or not max_credits > 0:
        raise ConfigurationError(f"max_credits= is a number, more than 0; not {max_credits!r}.")
    return float(max_credits)


def check_label(label: object) -> None:
    """Refuse a label that is not a text."""
    if label is not None and not isinstance(label, str):
        raise InvalidOptionError(f"label= is a text; not {label!r}.")


def validate_downloads(downloads: int) -> int:
    """Return how many files may be downloaded at once."""
    if not isinstance(downloads, int) or downloads < 1:
        raise ConfigurationError(f"downloads= must be at least 1, got {downloads!r}.")
    return downloads


def check_task_id(task_id: object) -> None:
    """Refuse what cannot be a task_id."""
    if not isinstance(task_id, str) or not task_id.strip():
        raise InvalidOptionError(f"{task_id!r} is no task_id; it is the text that submits get.")
