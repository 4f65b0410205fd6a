"""How many jobs may be unfinished at the vendor, learned where nobody said.

The vendor counts conversions that are not finished, for the whole account, and answers a submit past
the limit with 429 (MusicGPT docs, rate limits). So a slot is taken before the upload and given back
when the job is terminal or let go of, never at the answer to the submit.
"""

from __future__ import annotations

FREE_PARALLEL = 2
"""What every plan allows at least."""


class Slots:
    """The account's slots: how many there are, how many are taken, when to try again."""

    def __init__(self, *, parallel: int | None = None) -> None:
        if parallel is not None and parallel < 1:
            raise ValueError(f"parallel must be at least 1, not {parallel}")
        self._given = parallel
        self._limit = parallel or FREE_PARALLEL
        self._taken = 0
        self._retry_at: float | None = None
        self._refusals = 0
        self._until_growth = 0

    @property
    def limit(self) -> int:
        """How many jobs may be unfinished at once, as far as is known."""
        return self._limit

    @property
    def taken(self) -> int:
        """How many slots are taken now."""
        return self._taken

    def take(self, *, now: float) -> bool:
        """Take a slot for a job about to be uploaded; False when none may be had now."""
        if self._taken >= self._limit or (self._retry_at is not None and now < self._retry_at):
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        """Give a slot back: the job is terminal, refused or let go of.

        Raises:
            RuntimeError: more slots are given back than were taken.
        """
        if self._taken == 0:
            raise RuntimeError("a slot was given back that nobody had taken")
        self._taken -= 1

    def accepted(self, *, waiting: bool) -> None:
        """Learn from an accepted submit; `waiting`: others stand in line for a slot."""
        self._refusals = 0
        self._retry_at = None
        at_most = self._given or self._taken + 1
        if waiting and self._taken >= self._limit and self._limit < at_most:
            self._until_growth -= 1
            if self._until_growth < 0:
                self._limit += 1

    def refused(self, *, now: float, retry_after: float | None = None) -> None:
        """Learn from a submit refused with 429 or 503; the caller still gives the slot back."""
        self._limit = max(1, min(self._limit, self._taken - 1))
        self._refusals += 1
        self._until_growth = 20 * self._refusals
        pause = min(2.0 * 2**self._refusals, 60.0)
        self._retry_at = now + (pause if retry_after is None else min(max(retry_after, 1.0), 120.0))

    def next_try(self) -> float | None:
        """The moment from which a refused submit may be tried again; None: as soon as one is free."""
        return self._retry_at
