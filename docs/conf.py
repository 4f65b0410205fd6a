"""Sphinx's settings for the API page, and how it shows docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

project = "musicgpt-async"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"
add_module_names = False
maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True

html_theme = "furo"
html_title = "musicgpt-async"
templates_path = ["."]
html_static_path = ["page.css"]
html_css_files = ["page.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "names.html",
        "sidebar/scroll-end.html",
    ]
}


def setup(app: Sphinx) -> None:
    """Connect the functions below; it is what Sphinx calls."""
    app.connect("autodoc-process-signature", hide_signature)
    # After napoleon, which makes fields out of the docstring's sections.
    app.connect("autodoc-process-docstring", edit_docstring, priority=900)


def hide_signature(
    _app: Sphinx, what: str, _name: str, thing: Any, options: Any, *_: str | None
) -> tuple[str, None] | None:
    """Hide the arguments of what users are given and do not make.

    These are errors, pytest's fixtures, and the classes that the page marks with
    ``:class-doc-from: class``.
    """
    is_given = what == "class" and options.class_doc_from == "class"
    is_fixture = what == "function" and not inspect.isfunction(thing)
    return ("", None) if is_given or is_fixture or what == "exception" else None


def edit_docstring(
    _app: Sphinx, _what: str, _name: str, thing: Any, _options: Any, lines: list[str]
) -> None:
    """Shorten the types of attributes, and list the keys of a table below its docstring."""
    lines[:] = [_shorten(line) if line.startswith(":vartype") else line for line in lines]
    if isinstance(thing, dict):
        lines += ["", *(_format_entry(key, row) for key, row in thing.items())]


def _shorten(line: str) -> str:
    """Have Sphinx leave the module out of a type's name."""
    return re.sub(r"(?<![\w~.])(?:\w+\.)+[A-Z]", r"~\g<0>", line)


def _format_entry(key: str, row: Any) -> str:
    """Return a table's row as an item of a list; faults also say what they hit and do."""
    rest = f" ({', '.join(sorted(row.targets))}): {row.effect}" if hasattr(row, "effect") else ""
    return f"- ``{key}``{rest}"
