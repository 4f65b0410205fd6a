"""The names of the account plans, as the environment variable and the command use them."""

from __future__ import annotations

from collections.abc import Mapping

from musicgpt_async.errors import ConfigurationError
from musicgpt_async.models import Limits

PLAN_VARIABLE = "MUSICGPT_PLAN"
PLANS: Mapping[str, Limits] = {"free": Limits.FREE, "plus": Limits.PLUS, "pro": Limits.PRO}


def check_plan(name: str | None) -> str | None:
    """Return the normalized name of a plan, or ``None`` if no plan is set.

    Args:
        name: The value of the environment variable; case and spaces are ignored.

    Raises:
        ConfigurationError: No plan has this name.
    """
    plan = (name or "").strip().lower()
    if not plan:
        return None
    if plan not in PLANS:
        raise ConfigurationError(
            f"{PLAN_VARIABLE} is {name!r}, which is not a plan; set it to one of "
            f"{', '.join(PLANS)}, or unset it to let the session learn the limits."
        )
    return plan


def make_limits(plan: str | None) -> Limits | None:
    """Return the limits of a plan, or ``None`` to let the session learn them."""
    return None if plan is None else PLANS[plan]
