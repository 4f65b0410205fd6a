"""The picture of a job's life: drawn from the table that the library runs on."""

from __future__ import annotations

import runpy
from xml.etree import ElementTree as ET

from factories.pages import ROOT

from musicgpt_async._rules.lifecycle import TERMINAL, TRANSITIONS
from musicgpt_async.models import JobState

PICTURE = ROOT / "docs" / "pictures" / "lifecycle.svg"


def test_the_picture_is_the_table() -> None:
    """Drawn again it is the same: `python docs/lifecycle_picture.py` writes it anew."""
    draw = runpy.run_path(str(ROOT / "docs" / "lifecycle_picture.py"))["draw"]
    assert PICTURE.read_text("utf-8") == draw()


def test_every_change_of_a_state_is_in_the_picture() -> None:
    """There is a card for each active state, and an arrow or a line for each row that leaves it."""
    svg = ET.parse(PICTURE)  # noqa: S314 - our own file
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    paths = [each.get("class") for each in svg.iter("{http://www.w3.org/2000/svg}path")]
    changes = [
        (trigger, step.state)
        for state, row in TRANSITIONS.items()
        for trigger, step in row.items()
        if step.state is not state
    ]
    to_active = [trigger for trigger, state in changes if state not in TERMINAL]
    assert sum((each or "").startswith("arrow") for each in paths) == len(to_active)
    assert len(texts) == len(changes) + len(set(JobState) - TERMINAL)
    assert {str(state) for state in JobState if state not in TERMINAL} <= set(texts)
