"""The published price list, and what a request is expected to cost by it."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from musicgpt_async._rules.pricing import estimate_price
from musicgpt_async.models import Stem

# Dollars for a request and a minute: pro, plus, pay as you go (MusicGPT docs, August 2026).
PUBLISHED = {
    ("vocals",): (0.0115, 0.0022, 0.0155, 0.003, 0.031, 0.006),
    ("male_vocal", "female_vocal"): (0.0186, 0.003, 0.0248, 0.0045, 0.0496, 0.009),
    ("lead_vocal", "back_vocal"): (0.0242, 0.0037, 0.0322, 0.005, 0.0644, 0.01),
    ("instrumental",): (0.0576, 0.0089, 0.0768, 0.012, 0.1536, 0.024),
    ("acoustic_guitar", "electric_guitar"): (0.0576, 0.1289, 0.0768, 0.1319, 0.1536, 0.2638),
    ("rhythm_guitar", "solo_guitar"): (0.0576, 0.1289, 0.0768, 0.1319, 0.1536, 0.2638),
    ("strings",): (0.0576, 0.0989, 0.0768, 0.1019, 0.1536, 0.2038),
    ("piano", "keys"): (0.067, 0.0104, 0.089, 0.0134, 0.178, 0.0268),
    ("winds",): (0.0727, 0.0119, 0.097, 0.0149, 0.194, 0.0298),
    ("drums", "bass", "guitar"): (0.1078, 0.0179, 0.1438, 0.0238, 0.2876, 0.0476),
    ("kick_drum", "snare_drum", "toms", "hi_hat", "ride", "crash"): (
        0.1078, 0.0179, 0.1438, 0.0238, 0.2876, 0.0476,
    ),
}  # fmt: skip


@pytest.mark.parametrize("stems", PUBLISHED)
def test_the_prices_are_the_published_ones(stems: tuple[str, ...]) -> None:
    """Alone and together, each stem of a group costs one request and its minutes."""
    rates = PUBLISHED[stems]
    for asked in (stems, *((stem,) for stem in stems)):
        for number, plan in enumerate(("pro", "plus", "free")):
            request, minute = rates[2 * number : 2 * number + 2]
            expected = request + 3 * minute
            assert estimate_price(asked, 121.0, plan) == pytest.approx(expected)
            assert plan != "free" or estimate_price(asked, 180.0, None) == pytest.approx(expected)


def test_every_stem_has_a_price() -> None:
    """All 23 of them, in any plan."""
    assert {stem for group in PUBLISHED for stem in group} == {str(stem) for stem in Stem}
    assert all(estimate_price([stem], 60.0, "pro") for stem in Stem)


@pytest.mark.parametrize(
    ("seconds", "minutes"), [(0.0, 1), (0.5, 1), (60.0, 1), (60.1, 2), (179.0, 3), (600.0, 10)]
)
def test_each_minute_begun_is_paid(seconds: float, minutes: int) -> None:
    """A started minute counts fully, and at least one is charged."""
    assert estimate_price(["vocals"], seconds, "pro") == pytest.approx(0.0115 + minutes * 0.0022)


@pytest.mark.parametrize(
    ("stems", "pro"),
    [
        ([], 0.1078 + 0.0179),
        (["drums", "bass", "piano", "guitar"], 0.1078 + 0.0179),
        (["bass", "piano"], 0.1078 + 0.0179),
        (["piano"], 0.067 + 0.0104),
        (["piano", "keys"], 0.067 + 0.0104),
        (["drums", "keys"], 0.1078 + 0.0179 + 0.067 + 0.0104),
        (["vocals", "instrumental"], 0.0115 + 0.0022 + 0.0576 + 0.0089),
        (["vocals", "lead_vocal", "drums", "toms"], 0.0357 + 0.0059 + 2 * (0.1078 + 0.0179)),
    ],
)
def test_a_request_that_mixes_groups_costs_their_sum(stems: Collection[str], pro: float) -> None:
    """The natural reading; the band is one group, and the piano alone belongs to the keys."""
    assert estimate_price(stems, 60.0, "pro") == pytest.approx(pro)


@pytest.mark.parametrize("duration", [None, float("nan"), float("inf"), -1.0])
def test_an_unknown_duration_has_no_price(duration: float | None) -> None:
    """Nothing is made up for it."""
    assert estimate_price(["vocals"], duration, "pro") is None
