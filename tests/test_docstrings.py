"""Every public name is on the API page, and its docstring describes all its attributes."""

from __future__ import annotations

import ast
import enum
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

import musicgpt_async
from musicgpt_async import emulator

ROOT = Path(__file__).parents[1]
PAGE = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.rst"))
# The names that the reference shows, each with its directive.
ENTRIES = re.findall(r"^\.\. auto(\w+):: musicgpt_async\.(\S+)$", PAGE, re.MULTILINE)
NAMES = [name for kind, name in ENTRIES if kind != "module"]


def _thing(name: str) -> Any:
    module, _, attribute = f"musicgpt_async.{name}".rpartition(".")
    return getattr(import_module(module), attribute)


CLASSES = {name: thing for name in NAMES if inspect.isclass(thing := _thing(name))}


def test_every_public_name_is_in_the_reference() -> None:
    """What the package and its emulator export is there once, and so is each kind of event."""
    shown = [name.rpartition(".")[2] for name in NAMES]
    exported = {name for name in musicgpt_async.__all__ if not _is_module_or_version(name)}
    events = {cls.__name__ for cls in _events()}
    assert exported | set(emulator.__all__) | events <= set(shown)
    assert len(NAMES) == len(set(NAMES))


def _is_module_or_version(name: str) -> bool:
    thing = getattr(musicgpt_async, name)
    return isinstance(thing, ModuleType) or name == "__version__"


def _events() -> Iterator[type]:
    base = musicgpt_async.events.Event
    yield base
    # attrs makes a class with slots anew, and the first one may still be there.
    yield from (cls for cls in base.__subclasses__() if attrs.has(cls))


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_sentence_as_summary(name: str) -> None:
    """Its own docstring starts with a sentence on the first line or the first two."""
    text = _own_docstring(name)
    sentence = text.partition("\n\n")[0]
    assert sentence.endswith((".", ":"))
    assert sentence.count("\n") < 2


def _own_docstring(name: str) -> str:
    thing = _thing(name)
    if inspect.isclass(thing) or inspect.isroutine(thing) or hasattr(thing, "__wrapped__"):
        return inspect.cleandoc(vars(thing).get("__doc__") or thing.__doc__ or "")
    return _comment_below(name)


def _comment_below(name: str) -> str:
    """Return the string below an assignment."""
    module, _, attribute = f"musicgpt_async.{name}".rpartition(".")
    body = ast.parse(inspect.getsource(import_module(module))).body
    for node, below in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if attribute in [ast.unparse(each) for each in targets if each is not None]:
            assert isinstance(below, ast.Expr)
            return str(ast.literal_eval(below.value))
    raise AssertionError(f"{module} does not assign {attribute}")


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_and_property_has_a_docstring(name: str) -> None:
    """Each one that the class or a class of ours above it has bears a docstring."""
    untold = [
        f"{cls.__name__}.{member}"
        for cls in _ours(CLASSES[name])
        for member, thing in vars(cls).items()
        if not member.startswith("_")
        and (inspect.isroutine(thing) or isinstance(thing, property))
        and not (thing.__doc__ or "").strip()
    ]
    assert untold == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_attribute_is_described(name: str) -> None:
    """Each public attribute is in the docstring of its class, or has one below it."""
    untold = [
        f"{cls.__name__}.{attribute}"
        for cls in _ours(CLASSES[name])
        for attribute in _attributes(cls)
        if not _is_described(cls, attribute)
    ]
    assert untold == []


def _ours(cls: type) -> list[type]:
    return [each for each in cls.__mro__ if each.__module__.startswith("musicgpt_async")]


def _attributes(cls: type) -> set[str]:
    """Return the names that a class annotates or that its methods assign to ``self``."""
    if issubclass(cls, enum.Enum):
        # A member whose value says the same needs no more words.
        return {each.name for each in cls if each.name.lower() != each.value.lower()}
    assigned = re.findall(r"^ +self\.(\w+)\b[^=\n(]*? = ", inspect.getsource(cls), re.MULTILINE)
    return {name for name in {*inspect.get_annotations(cls), *assigned} if name[0] != "_"}


def _is_described(cls: type, attribute: str) -> bool:
    section = rf"^ +{attribute}: \S"
    below = rf'^ +(?:self\.)?{attribute}\b.*\n +"""'
    return (
        re.search(section, cls.__doc__ or "", re.MULTILINE) is not None
        or re.search(below, inspect.getsource(cls), re.MULTILINE) is not None
    )
