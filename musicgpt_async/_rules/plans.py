"""The account's plan by name: what the environment and the command call it."""

from __future__ import annotations

from collections.abc import Mapping

from musicgpt_async.errors import ConfigurationError
from musicgpt_async.models import Limits

PLAN_VARIABLE = "MUSICGPT_PLAN"
PLANS: Mapping[str, Limits] = {"free": Limits.FREE, "plus": Limits.PLUS, "pro": Limits.PRO}


def check_plan(name: str | None) -> str | None:
    """Return a plan as the environment names it, ``None`` if it names none.

    Raises:
        ConfigurationError: There is no such plan.
    """
    plan = (name or "").strip().lower()
    if not plan:
        return None
    if plan not in PLANS:
        raise ConfigurationError(
            f"{PLAN_VARIABLE} is {name!r}, which is not a plan; set it to one of "
            f"{', '.join(PLANS)}, or unset it to have the limits learned."
        )
    return plan


def make_limits(plan: str | None) -> Limits | None:
    """Return what a plan allows, ``None`` to learn it."""
    return None if plan is None else PLANS[plan]
