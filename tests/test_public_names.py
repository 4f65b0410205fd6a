"""What completion offers on the objects that users hold is what the API page shows, no more."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import musicgpt_async

REFERENCE = Path(__file__).parents[1] / "docs" / "api"
PAGE = "".join(page.read_text("utf-8") for page in REFERENCE.glob("*.rst"))
# What the parts of the library have for each other is none of this.
PUBLIC = {
    "MusicGPTSession": """
        aclose attach bind credits_estimated events extract extract_many resume retrieve slots start
        submit
    """,
    "ExtractionJob": """
        accepted add_done_callback cancel conversion_id credit_estimate deadline done download eta
        events exception id label remove_done_callback result source state stems task_id title wait
    """,
    "WebhookReceiver": "asgi public_url routes serve",
    "Journal": "records",
    "Extraction": "conversion_id cost duration raw stems task_id",
    "Outcome": "error extraction files job ok source",
    "BatchItem": "folder options source",
}
ASSIGNED = re.compile(r"^ +self\.(\w+)\b[^=\n(]* = ", re.MULTILINE)


def public_attributes(cls: type) -> set[str]:
    """Return the names that completion offers on an instance."""
    ours = [each for each in cls.__mro__ if each.__module__.startswith("musicgpt_async")]
    names = {name for each in ours for name in (*vars(each), *inspect.get_annotations(each))}
    for each in ours:
        names.update(ASSIGNED.findall(inspect.getsource(each)))
    return {name for name in names if not name.startswith("_")}


def load(name: str) -> Any:
    """Return the object of a name on the page."""
    module, _, attribute = f"musicgpt_async.{name}".rpartition(".")
    return getattr(import_module(module), attribute)


def test_the_package_lists_its_public_names_alone() -> None:
    """`dir()` and completion offer what `__all__` names, and nothing that was imported."""
    assert dir(musicgpt_async) == sorted(musicgpt_async.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_completion_offers_the_public_attributes_alone(name: str) -> None:
    """An attribute that is not meant for users begins with an underscore."""
    assert public_attributes(load(name)) == set(PUBLIC[name].split())


def test_the_api_page_leaves_no_public_attribute_out() -> None:
    """The page shows complete classes; a list of excluded members would hide public ones."""
    assert re.findall(r"^ +:(?:exclude-)?members:.*$", PAGE, re.MULTILINE) == []
