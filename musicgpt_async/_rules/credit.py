"""Limit the credits that a session spends.

The cost of a track is known only from the response to its submit. If there is a limit, only one
submit at a time may therefore be without an estimate, and the limit is exceeded by less than the
cost of one track. A submit whose response was lost, or has no estimate, counts as the largest
estimate seen so far: if in doubt, nothing more is spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musicgpt_async.errors import CreditLimitError

# The largest estimate in MusicGPT's documentation (Extraction), until a response gives one.
ASSUMED_ESTIMATE = 5.55  # credits


class CreditBudget:
    """Sum of MusicGPT's estimates, compared with the caller's limit.

    Args:
        limit: Maximum of credits to spend, or ``None`` for no limit.

    Attributes:
        limit: Maximum of credits to spend, or ``None`` for no limit.
        estimated: Sum in credits of the estimates received so far.
    """

    def __init__(self, limit: float | None) -> None:
        if limit is not None and not limit > 0:
            raise ValueError(f"max_credits must be greater than 0, not {limit}")
        self.limit = limit
        self._reserved = 0
        self._unknown = 0
        self._largest: float | None = None
        self.estimated: float = 0.0

    @property
    def expected(self) -> float:
        """Credits that MusicGPT is expected to charge, extrapolated from the estimates."""
        return self.estimated + self._unknown * (self._largest or 0.0)

    @property
    def counted(self) -> float:
        """Credits that count against the limit, submits without an estimate included."""
        largest = ASSUMED_ESTIMATE if self._largest is None else self._largest
        return self.estimated + self._unknown * largest

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more may be spent."""
        return self.limit is not None and self.counted >= self.limit

    def dump(self) -> dict[str, Any]:
        """Return what was counted, to be saved for all processes of the account as JSON."""
        counted = {"unknown": self._unknown, "largest": self._largest}
        return {"estimated": self.estimated, **counted}

    def load(self, counted: Mapping[str, Any]) -> None:
        """Load what all processes of the account have counted; empty if nothing yet."""
        self.estimated = counted.get("estimated", 0.0)
        self._unknown, self._largest = counted.get("unknown", 0), counted.get("largest")

    def can_reserve(self) -> bool:
        """Return whether a submit may start now: with a limit, one at a time."""
        return self.limit is None or self._reserved == 0

    def reserve(self) -> None:
        """Reserve credit for a submit whose estimate is not known yet.

        Raises:
            CreditLimitError: The limit is reached.
        """
        if self.is_exhausted:
            raise CreditLimitError(
                f"The track was not submitted: {self.counted:g} credits of "
                f"max_credits={self.limit or 0:g} are used up. Raise max_credits to submit more."
            )
        self._reserved += 1

    def cancel(self) -> None:
        """Cancel a reservation, because MusicGPT did not accept the submit."""
        self._reserved -= 1

    def settle(self, estimate: float | None) -> None:
        """Replace a reservation by MusicGPT's estimate.

        Args:
            estimate: Credits, or ``None`` if the response was lost or has no estimate.
        """
        self._reserved -= 1
        self.count(estimate)

    def count(self, estimate: float | None) -> None:
        """Count a submit that MusicGPT has, or may have, ``None`` if its estimate is not known."""
        if estimate is None:
            self._unknown += 1
        else:
            self.estimated += estimate
            self._largest = max(estimate, self._largest or 0.0)
