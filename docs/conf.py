"""Sphinx's settings, and how the API reference shows docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import musicgpt_async
from musicgpt_async import emulator

project = "musicgpt-async"
release = musicgpt_async.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "cyclopts.ext.sphinx",
]
default_role = "code"
smartquotes_action = "qe"  # no dashes: --option is one
exclude_patterns = ["_build"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

add_module_names = False
maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True

# Every name that the reference mentions has to be found, but for those of other projects, whose
# pages a build without a network cannot ask, and the types of arguments.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(_?asyncio|collections|datetime|os|pathlib|ssl|aiohttp|opentelemetry|procrastinate)\..*",
    ),
    (r"py:class", r"web\.RouteDef|AbstractContextManager"),
    (r"py:class", r".*\.(BinaryReader|InstrumentedSession|Kind|Stage)"),
]

copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "musicgpt-async"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
# Addresses in examples.
linkcheck_ignore = [r"https?://127\.0\.0\.1", r"https://(music\.)?example\.com"]

# Names in the prose that become links to the API reference where a section names them first.
LINKED_NAMES = {
    name: f"{module}.{name}"
    for module, names in (
        ("musicgpt_async", musicgpt_async.__all__),
        ("musicgpt_async.emulator", emulator.__all__),
    )
    for name in names
    if name[0].isupper() and not name.isupper()
}
# Docstrings that are set aside while napoleon runs: name of the attribute → lines.
SENTENCES: dict[str, list[str]] = {}


def setup(app: Sphinx) -> None:
    """Connect the functions below; it is what Sphinx calls."""
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("autodoc-process-docstring", set_sentence_aside, priority=100)
    # After napoleon, which makes fields out of the docstring's sections.
    app.connect("autodoc-process-docstring", edit_docstring, priority=900)
    app.connect("doctree-read", link_names)
    app.connect("doctree-read", draw_dashes)


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


def set_sentence_aside(
    _app: Sphinx, what: str, name: str, _thing: Any, _options: Any, lines: list[str]
) -> None:
    """Keep an attribute's docstring from napoleon, which reads ``type: description`` in it."""
    if what in {"attribute", "data", "property"} and ":" in "".join(lines[:1]):
        SENTENCES[name] = lines.copy()
        lines.clear()


def edit_docstring(
    _app: Sphinx, _what: str, name: str, thing: Any, _options: Any, lines: list[str]
) -> None:
    """Shorten the types of attributes, and list the keys of a table below its docstring."""
    lines += SENTENCES.pop(name, [])
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


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Make the first mention of a public name in each section a link to its reference."""
    if app.env.docname.startswith("api/"):
        return
    linked = set()
    for literal in list(doctree.findall(nodes.literal)):
        name, section = literal.astext(), _section_of(literal)
        if name not in LINKED_NAMES or section is None or (section, name) in linked:
            continue
        linked.add((section, name))
        link = pending_xref(
            "",
            literal.deepcopy(),
            refdomain="py",
            reftype="obj",
            reftarget=LINKED_NAMES[name],
            refdoc=app.env.docname,
            refwarn=True,
        )
        literal.replace_self(link)


def draw_dashes(_app: Sphinx, doctree: nodes.document) -> None:
    """Put a dash between a parameter and its description, as smart quotes would."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))  # noqa: RUF001 - a dash


def _section_of(node: nodes.Node) -> nodes.Node | None:
    """Return the section that a node's text is in; ``None`` in a heading or another link."""
    while node.parent is not None:
        node = node.parent
        if isinstance(node, nodes.title | nodes.reference | pending_xref):
            return None
        if isinstance(node, nodes.section):
            return node
    return None
