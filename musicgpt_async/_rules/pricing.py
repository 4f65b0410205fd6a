"""Estimate the price of an extraction before it is submitted.

The prices are those of MusicGPT's documentation in August 2026: dollars per request plus dollars
per started minute, by group of stems and by plan. The price of a request that mixes groups is not
documented; this module adds its groups up. The ``credit_estimate`` in the response to a submit is
authoritative.

The price list leaves three questions open, which are answered as follows. Drums, bass, piano and
guitar form one group, "band", however many of them are requested; piano alone belongs to the
cheaper group "keys". "Premium bass/drums" is never charged, since no request field selects it.
Preprocessing is free, since it has no price.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import attrs

from musicgpt_async._rules.payloads import DEFAULT_STEMS

PRICES_AS_OF = "August 2026"
PAY_AS_YOU_GO = "free"
"""The plan without a fee, whose rates apply if the plan is unknown."""


@attrs.frozen
class Price:
    """Dollars per request, and per started minute."""

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
    """Return the expected price of an extraction in dollars, or ``None`` if it is unknown.

    Args:
        stems: Requested stems; empty for MusicGPT's default of four.
        duration: Seconds of audio, or ``None`` if unknown.
        plan: ``"free"``, ``"plus"`` or ``"pro"``; ``None`` for pay as you go.
    """
    if duration is None or not math.isfinite(duration) or duration < 0:
        return None
    minutes = max(1, math.ceil(duration / 60))
    which = _PLANS.index(plan or PAY_AS_YOU_GO)
    prices = [_TABLE[group][which] for group in _groups(stems)]
    return sum(price.request + price.minute * minutes for price in prices)


def _groups(stems: Iterable[str]) -> set[tuple[str, ...]]:
    """Return the groups of the price list that the stems belong to."""
    asked = {str(stem) for stem in stems} or {str(stem) for stem in DEFAULT_STEMS}
    is_band = bool(asked & set(_BAND) - {"piano"})
    found: set[tuple[str, ...]] = {_BAND} if is_band else set()
    for stem in asked:
        if not (is_band and stem in _BAND):
            found.add(next(group for group in _TABLE if stem in group and group != _BAND))
    return found
