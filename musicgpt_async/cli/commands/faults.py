"""Faults of the emulator, as `emulate --fault` takes them: ``submit:status:status=503,times=2``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from musicgpt_async.cli.usage import UsageError
from musicgpt_async.emulator import Fault

FORM = "TARGET:KIND or TARGET:KIND:OPTION=VALUE,…, such as submit:drop_before_answer"


def parse_fault(text: str) -> Fault:
    """Return the fault that a text names.

    Raises:
        UsageError: There is no such fault, or one of its options is wrong.
    """
    target, _, rest = text.partition(":")
    kind, _, options = rest.partition(":")
    if not target or not kind:
        raise UsageError(f"--fault {text!r} is not understood; it looks like {FORM}.")
    try:
        values = dict(_option(each) for each in options.split(",") if each)
        return Fault(target, kind, **values)  # type: ignore[arg-type]  # it checks them itself
    except (ValueError, TypeError) as error:
        raise UsageError(f"--fault {text!r} is not understood: {error}.") from error


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if name not in OPTIONS or not equals:
        raise ValueError(f"{text!r} is not one of {', '.join(OPTIONS)} with =VALUE")
    return name, OPTIONS[name](value)


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _times(value: str) -> int | None:
    return None if value == "always" else int(value)


def _bytes_or_fraction(value: str) -> float:
    return int(value) if value.isdecimal() else float(value)


OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "times": _times,
    "after": int,
    "status": int,
    "body": str,
    "retry_after": _number_or_text,
    "location": str,
    "seconds": float,
    "at": _bytes_or_fraction,
    "word": str,
    "message": str,
}
