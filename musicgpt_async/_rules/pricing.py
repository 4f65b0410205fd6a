"""What MusicGPT asks for an extraction, to tell a user what to expect beforehand.

The prices are those that the vendor's documentation listed in August 2026: dollars for a request
plus dollars for each minute begun, by group of stems and by plan. How a request that mixes groups
is priced is not documented; the sum of its groups is the natural reading. The vendor's own
``credit_estimate``, which a submit is answered with, is the truth.

Three things that the list leaves open are read as follows. Drums, bass, piano and guitar are the
band, which is one group however many of them are asked for; the piano alone is the cheaper group of
the keys. "Premium bass/drums" is never charged, since no field of a request asks for it.
Preprocessing costs nothing, since it has no price.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import attrs

from musicgpt_async._rules.payloads import DEFAULT_STEMS

PRICES_AS_OF = "August 2026"
PAY_AS_YOU_GO = "free"
"""The plan without a fee, whose rates hold where no plan is known."""


@attrs.frozen
class Price:
    """Dollars for a request, and for each minute begun."""

    request: float
    minute: float


_PLANS = ("pro", "plus", "free")
_TABLE: Mapping[tuple[str, ...], tuple[Price, Price, Price]] = {
    ("vocals",): (Price(0.0115, 0.0022), Price(0.0155, 0.003), Price(0.031, 0.006)),
    ("male_vocal", "female_vocal"): (
        Price(0.0186, 0.003), Price(0.0248, 0.0045), Price(0.0496, 0.009),
    ),
    ("lead_vocal", "back_vocal"): (
        Price(0.0242, 0.0037), Price(0.0322, 0.005), Price(0.0644, 0.01),
    ),
    ("instrumental",): (Price(0.0576, 0.0089), Price(0.0768, 0.012), Price(0.1536, 0.024)),
    ("acoustic_guitar", "electric_guitar"): (
        Price(0.0576, 0.1289), Price(0.0768, 0.1319), Price(0.1536, 0.2638),
    ),
    ("rhythm_guitar", "solo_guitar"): (
        Price(0.0576, 0.1289), Price(0.0768, 0.1319), Price(0.1536, 0.2638),
    ),
    ("strings",): (Price(0.0576, 0.0989), Price(0.0768, 0.1019), Price(0.1536, 0.2038)),
    ("piano", "keys"): (Price(0.067, 0.0104), Price(0.089, 0.0134), Price(0.178, 0.0268)),
    ("winds",): (Price(0.0727, 0.0119), Price(0.097, 0.0149), Price(0.194, 0.0298)),
    ("drums", "bass", "piano", "guitar"): (
        Price(0.1078, 0.0179), Price(0.1438, 0.0238), Price(0.2876, 0.0476),
    ),
    ("kick_drum", "snare_drum", "toms", "hi_hat", "ride", "crash"): (
        Price(0.1078, 0.0179), Price(0.1438, 0.0238), Price(0.2876, 0.0476),
    ),
}  # fmt: skip
_BAND = ("drums", "bass", "piano", "guitar")


def estimate_price(
    stems: Collection[str], duration: float | None, plan: str | None
) -> float | None:
    """Return the dollars that an extraction is expected to cost, ``None`` if nobody can tell.

    Args:
        stems: Names asked for; empty for the vendor's four.
        duration: Seconds of audio, ``None`` if unknown.
        plan: "free", "plus" or "pro"; ``None`` for pay as you go.
    """
    if duration is None or not math.isfinite(duration) or duration < 0:
        return None
    minutes = max(1, math.ceil(duration / 60))
    which = _PLANS.index(plan or PAY_AS_YOU_GO)
    prices = [_TABLE[group][which] for group in _groups(stems)]
    return sum(price.request + price.minute * minutes for price in prices)


def _groups(stems: Iterable[str]) -> set[tuple[str, ...]]:
    """Return the groups of the price list that a request takes from."""
    asked = {str(stem) for stem in stems} or {str(stem) for stem in DEFAULT_STEMS}
    is_band = bool(asked & set(_BAND) - {"piano"})
    found: set[tuple[str, ...]] = {_BAND} if is_band else set()
    for stem in asked:
        if not (is_band and stem in _BAND):
            found.add(next(group for group in _TABLE if stem in group and group != _BAND))
    return found
