from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

import musicgpt_async
from musicgpt_async import models
from musicgpt_async.models import (
    Acceptance,
    Extraction,
    JobRecord,
    JobState,
    Limits,
    Preprocessing,
    Stem,
    StemFile,
    StemLinks,
)

STEMS = [
    "vocals", "male_vocal", "female_vocal", "lead_vocal", "back_vocal", "guitar",
    "acoustic_guitar", "electric_guitar", "rhythm_guitar", "solo_guitar", "drums", "kick_drum",
    "snare_drum", "toms", "hi_hat", "ride", "crash", "piano", "keys", "strings", "winds", "bass",
    "instrumental",
]  # fmt: skip
VALUES = [
    Limits.FREE,
    StemLinks(mp3="a"),
    Acceptance(task_id="t"),
    Extraction(task_id="t"),
    StemFile(stem="vocals", format="wav", path="a", size=1, sha256="0"),
    JobRecord(id="a", fingerprint="f", source="s"),
]


def test_the_stems_are_those_of_the_extraction_page() -> None:
    """All 23, in its order and spelling."""
    assert [str(stem) for stem in Stem] == STEMS
    assert len(STEMS) == 23


def test_the_options_are_those_of_the_extraction_page() -> None:
    """Three, with their capitals."""
    assert [str(option) for option in Preprocessing] == ["Denoise", "Deecho", "Dereverb"]


def test_a_member_is_its_string() -> None:
    """Members and plain strings are used alike."""
    assert Stem.DRUMS == "drums"
    assert f"{Stem.HI_HAT}" == "hi_hat"
    assert {Stem.BASS: 1}["bass"] == 1
    assert f"{JobState.PROCESSING}" == "processing"


def test_the_plans_are_those_of_the_rate_limit_page() -> None:
    """Unfinished conversions, and byId calls a minute."""
    plans = [Limits.FREE, Limits.PLUS, Limits.PRO]
    assert [(p.parallel, p.polls_per_minute) for p in plans] == [(1, 20), (3, 200), (10, 500)]


@pytest.mark.parametrize("parallel", [0, -1])
def test_nothing_at_a_time_is_no_limit(parallel: int) -> None:
    """A limit that lets nothing through is a mistake."""
    with pytest.raises(ValueError, match="parallel"):
        Limits(parallel=parallel, polls_per_minute=1)


@pytest.mark.parametrize("polls", [0, -0.5, math.nan])
def test_no_polls_at_all_is_no_limit(polls: float) -> None:
    """Nor is a budget of nothing."""
    with pytest.raises(ValueError, match="polls_per_minute"):
        Limits(parallel=1, polls_per_minute=polls)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen_and_named(value: Any) -> None:
    """Values cannot be changed, and arguments are named."""
    field = attrs.fields(type(value))[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, field, None)
    with pytest.raises(TypeError):
        type(value)("positional")
    assert value == attrs.evolve(value)
    assert type(value).__name__ in repr(value)


def test_the_vendors_own_json_is_kept_and_not_shown() -> None:
    """``raw`` is for what has no name yet; it makes neither reprs long nor equals unequal."""
    one = Extraction(task_id="t", raw={"secret": 1})
    assert one == Extraction(task_id="t")
    assert "secret" not in repr(one)


@pytest.mark.parametrize("kind", [type(value) for value in VALUES])
def test_every_field_is_explained(kind: type) -> None:
    """The docstring names each."""
    assert kind.__doc__
    if kind is not StemLinks:
        for field in attrs.fields(kind):
            assert f"        {field.name}: " in kind.__doc__.replace("    ", "    ", 1) or (
                f"    {field.name}: " in kind.__doc__
            )


def test_every_state_is_explained() -> None:
    """So is each state of a job."""
    assert JobState.__doc__
    for state in JobState:
        assert f"{state.name}: " in JobState.__doc__


def test_what_users_see_is_at_the_front() -> None:
    """Stems, options, states, limits, extractions and links come from the package."""
    for kind in (Stem, Preprocessing, JobState, Limits, Extraction, StemLinks):
        assert getattr(musicgpt_async, kind.__name__) is kind
    assert models.AudioFormat


def test_reprs_have_no_signed_links() -> None:
    """A reader of a log could download the files with a link's signature."""
    links = StemLinks(mp3="https://host/a.mp3?X-Amz-Signature=secret", wav="https://host/a.wav")
    shown = repr(Extraction(task_id="task", stems={"bass": links}))
    assert "secret" not in shown
    assert "https://host/a.mp3?…" in shown
    assert "'https://host/a.wav'" in shown
