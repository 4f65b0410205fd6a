"""How much may still be spent."""

from __future__ import annotations

from musicgpt_async.errors import CreditLimitError


class Credit:
    """Adds the vendor's estimates up against the most that the caller wants to spend.

    What a track will cost is known only from the answer to its submit. With a limit, therefore, one
    track at a time is without an estimate, and the limit is passed by less than one track's cost.

    Args:
        most: Credits, ``None`` for no limit.
    """

    def __init__(self, most: float | None) -> None:
        if most is not None and not most > 0:
            raise ValueError(f"max_credits must be more than 0, not {most}")
        self._most = most
        self._without_estimate = 0
        self.estimated = 0.0

    def allows_another(self) -> bool:
        """Return whether a submit may begin now, as far as credit goes."""
        return self._most is None or self._without_estimate == 0

    def begin(self) -> None:
        """Count a submit whose estimate is not known yet.

        Raises:
            CreditLimitError: The limit is reached.
        """
        if self._most is not None and self.estimated >= self._most:
            raise CreditLimitError(
                f"It was not submitted: {self.estimated:g} credits of max_credits={self._most:g} "
                "are used up. Raise max_credits to go on."
            )
        self._without_estimate += 1

    def end(self, estimate: float | None) -> None:
        """Count what the vendor estimated, ``None`` where it took nothing or said nothing."""
        self._without_estimate -= 1
        self.estimated += estimate or 0.0
