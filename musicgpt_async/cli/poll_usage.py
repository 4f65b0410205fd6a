"""Whether the account's limit on polls made a batch slow, and what to do about it."""

from __future__ import annotations

import attrs

from musicgpt_async._rules import plans
from musicgpt_async._rules.rate_budget import FREE_POLLS_PER_MINUTE
from musicgpt_async.events import Event, Polled, Throttled

MIN_SECONDS = 60.0  # a shorter batch is not slow
# Of the polls that are allowed; more were made only because no more were allowed.
FULL_SHARE = 0.7


@attrs.define
class PollUsage:
    """Counts a batch's polls.

    Attributes:
        polls: Polls that were made.
        refused: Polls that MusicGPT refused with 429.
    """

    polls: int = 0
    refused: int = 0

    def handle(self, event: Event) -> None:
        """Count an event."""
        self.polls += isinstance(event, Polled)
        self.refused += isinstance(event, Throttled) and event.call == "poll"

    def advice(self, plan: str | None, seconds: float) -> str | None:
        """Return what would have made the batch faster, if polls were its limit.

        Args:
            plan: The account's plan, ``None`` if it is not known.
            seconds: How long the batch took.
        """
        limits = plans.make_limits(plan)
        allowed = (limits and limits.polls_per_minute) or FREE_POLLS_PER_MINUTE
        is_full = self.polls >= FULL_SHARE * allowed * seconds / 60
        if seconds < MIN_SECONDS or not (is_full or self.refused):
            return None
        if plan is None:
            return (
                "Polls were limited, so tracks were noticed late. If the account has the plan plus "
                f"or pro, set {plans.PLAN_VARIABLE}=plus or pro (or --plan): it allows more polls."
            )
        return (
            f"The plan {plan} allows {allowed:g} polls a minute, so tracks were noticed late. "
            "Webhooks (--webhook URL) report each track at once."
        )
