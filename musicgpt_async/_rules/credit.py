"""How much may still be spent.

What a track will cost is known only from the response to its submit. With a limit, therefore, one
track at a time is without an estimate, and the limit is passed by less than one track's cost. A
submit whose response was lost, or bore no estimate, counts as the largest estimate known: the guard
errs on the side of spending nothing more.
"""

from __future__ import annotations

from musicgpt_async.errors import CreditLimitError

# The largest estimate in MusicGPT's documentation (Extraction), until a response gives one.
ASSUMED_ESTIMATE = 5.55  # credits


class CreditBudget:
    """Adds MusicGPT's estimates up against the most that the caller wants to spend.

    Args:
        limit: Credits, ``None`` for no limit.

    Attributes:
        estimated: Credits that MusicGPT expects to charge, as far as it said so.
    """

    def __init__(self, limit: float | None) -> None:
        if limit is not None and not limit > 0:
            raise ValueError(f"max_credits must be more than 0, not {limit}")
        self._limit = limit
        self._reserved = 0
        self._unknown = 0
        self._largest: float | None = None
        self.estimated: float = 0.0

    @property
    def expected(self) -> float:
        """Credits that MusicGPT will charge, as far as estimates tell."""
        return self.estimated + self._unknown * (self._largest or 0.0)

    @property
    def counted(self) -> float:
        """Credits that count against the limit: what is estimated, and what nobody estimated."""
        largest = ASSUMED_ESTIMATE if self._largest is None else self._largest
        return self.estimated + self._unknown * largest

    def can_reserve(self) -> bool:
        """Return whether a submit may begin now, as far as credit goes."""
        return self._limit is None or self._reserved == 0

    def reserve(self) -> None:
        """Count a submit whose estimate is not known yet.

        Raises:
            CreditLimitError: The limit is reached.
        """
        if self._limit is not None and self.counted >= self._limit:
            raise CreditLimitError(
                f"It was not submitted: {self.counted:g} credits of max_credits={self._limit:g} "
                "are used up. Raise max_credits to go on."
            )
        self._reserved += 1

    def cancel(self) -> None:
        """Take a reservation back: MusicGPT did not accept the submit."""
        self._reserved -= 1

    def settle(self, estimate: float | None) -> None:
        """Turn a reservation into what MusicGPT estimated, ``None`` where that is not known."""
        self._reserved -= 1
        if estimate is None:
            self._unknown += 1
        else:
            self.estimated += estimate
            self._largest = max(estimate, self._largest or 0.0)
