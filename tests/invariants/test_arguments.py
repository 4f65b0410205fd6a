"""Every argument is checked in the constructor: none can raise once money is spent."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from musicgpt_async import ConfigurationError, MusicGPTSession

NUMBERS = {
    "timedelta": dt.timedelta(minutes=1),
    "str": "60",
    "bytes": b"60",
    "list": [60],
    "NaN": float("nan"),
    "zero": 0,
    "negative": -1.0,
    "complex": 1j,
}

WRONG: list[tuple[str, Any]] = [
    *[
        (name, value)
        for name in ("deadline", "stall_timeout", "request_timeout", "max_credits")
        for value in NUMBERS.values()
    ],
    ("request_timeout", None),
    ("stall_timeout", None),
    ("downloads", 2.5),
    ("downloads", "4"),
    ("downloads", float("nan")),
    ("limits", 10),
    ("limits", "PRO"),
    ("limits", {"parallel": 2}),
    ("webhooks", "https://bot.example.com/hooks"),
    ("webhooks", object()),
    ("journal", 7),
    ("journal", object()),
    ("http", "https://example.com"),
    ("http", object()),
    ("base_url", 7),
    ("base_url", b"https://api.example.com/v1"),
    ("layout", 7),
    ("api_key", 7),
    ("api_key", b"key"),
]


def named(value: Any) -> str:
    """Return a name for a value that is the same in every process."""
    text = value if isinstance(value, str) else f"{type(value).__name__} {value}"
    return text[:30].partition(" at ")[0]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=named)
def test_a_wrong_argument_is_refused_by_the_constructor(name: str, value: Any) -> None:
    """A value of the wrong type or size is at once an error that names the argument."""
    with pytest.raises(ConfigurationError, match=name if name != "api_key" else "(?i)key"):
        MusicGPTSession(**{"api_key": "key", name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline", None),
        ("deadline", 60),
        ("deadline", 0.5),
        ("max_credits", None),
        ("max_credits", 5),
        ("max_credits", Decimal(5)),
        ("stall_timeout", 5),
        ("request_timeout", 0.5),
        ("downloads", 1),
    ],
)
def test_a_right_argument_is_taken(name: str, value: Any) -> None:
    """Integers, fractions, and None for "no limit" are accepted."""
    assert MusicGPTSession(**{"api_key": "key", name: value})
