"""Text that is safe and pleasant to show."""

from __future__ import annotations

import re
import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def plain(text: str) -> str:
    """Return text that cannot move the cursor, change colours or read otherwise than it is."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_unsafe(each) else each for each in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE


def size(count: float) -> str:
    """Return bytes for people: ``"3.2 MB"``."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def span(seconds: float) -> str:
    """Return a time span as a clock shows it: ``"2:05"``, ``"1:02:05"``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def credit(amount: float) -> str:
    """Return credits for people: ``"2.5 credits"``."""
    return f"{round(amount, 2):g} credit{'' if amount == 1 else 's'}"


def dollars(amount: float) -> str:
    """Return a price for people: ``"$0.0135"``, ``"$12.40"``."""
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.4f}"


def count(number: int, noun: str) -> str:
    """Return a number and its noun: ``"1 track"``, ``"2 tracks"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def mask_password(url: str) -> str:
    """Return a database's URL for messages."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
