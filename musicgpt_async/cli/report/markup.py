"""HTML in which everything is escaped that is not markup itself."""

from __future__ import annotations

from markupsafe import Markup, escape

from musicgpt_async.cli.text import plain

__all__ = ["Markup", "element", "join"]

# They join letters and emoji, and are harmless.
_JOINERS = frozenset("\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")

Value = str | int | float | bool | None


def element(name: str, /, *children: str | None, **attributes: Value) -> Markup:
    """Return an element.

    Args:
        name: The tag's; ``"input"`` has no children.
        children: Text, which is escaped, or markup; ``None`` for nothing.
        attributes: Their names with ``_`` for ``-``, and a trailing ``_`` if it is a Python
            keyword. ``True`` for one without a value; ``None`` and ``False`` leave it out.
    """
    opening = f"<{name}{''.join(_attribute(*each) for each in attributes.items())}>"
    if name == "input":
        return Markup(opening)  # noqa: S704 - its parts are escaped
    return Markup(f"{opening}{join(*children)}</{name}>")  # noqa: S704 - the same


def join(*children: str | None) -> Markup:
    """Return markup one after another, with all else escaped."""
    return Markup("").join(_escape(child) for child in children if child is not None)


def _attribute(name: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    key = name.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{_escape(str(value))}"'


def _escape(text: str) -> Markup:
    if isinstance(text, Markup):
        return text
    return escape("".join(each if each in _JOINERS else plain(each) for each in text))
