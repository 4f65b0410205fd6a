"""How many jobs may be unfinished at the vendor, learned where nobody said.

The vendor counts conversions that are not finished, for the whole account, and answers a submit
past the limit with 429 (MusicGPT docs, rate limits of August 2026: 1, 3 or 10 by plan). So a slot
is taken before the upload and given back when the job is terminal or let go of, never at the answer
to the submit.

The limit moves by three rules:

- It **grows** by one when every slot is taken, every upload is accepted and others stand in line:
  only then is a larger limit worth a refused upload to find, and the next submit alone finds it.
  Until the first refusal it grows along the plans: from 1 to 3, and from 4 by two up to 10.
- It **shrinks** on a 429 to what is still taken, at least 1: the vendor holds no more, be it for
  the plan or because another process with the same key eats from the same account.
- After a refusal it grows again only after some accepted submits, twice as many for each growth
  that failed in a row. Up to a limit that once proved true this begins at one submit, beyond it
  at 16, so that an account's plan is found by one 429 and seldom asked for again. What once proved
  true is another client's to give back, so that 75 s and three submits are enough there, and none
  once a growth has succeeded, or the account that was full has room again: the limit is whole
  within two minutes of the other client's leaving where jobs take 20 s.

After a 429 one waits until something finishes. While jobs of our own run that is a slot given back,
and no clock is needed; where none runs the next try comes after a growing pause. A `Retry-After`
is kept to whatever else happens.
"""

from __future__ import annotations

import math

FREE_PARALLEL = 1
"""What every plan allows at least (MusicGPT docs, rate limits)."""

# What a limit grows to before anything was refused. In a simulation of 60 batches of 10 to 100
# tracks each, an account of 10 was 1 to 8 % faster than when learning began at 2 and went by ones,
# one of 3 at most 1.3 % slower, and the uploads refused were the same within one.
_FIRST_GROWTHS = {1: 3, 4: 6, 6: 8, 8: 10}

_MIN_PAUSE, _MAX_PAUSE = 2.0, 60.0  # seconds
_MAX_RETRY_AFTER = 300.0  # seconds
_THRESHOLD_WITHIN, _THRESHOLD_BEYOND = (1, 32), (16, 256)  # accepted submits, at first and at most
_PATIENT_SECONDS, _PATIENT_SUBMITS = 75.0, 3  # enough together up to a limit that proved true
_LONG_FULL = 3  # refusals in a row with nothing of our own running


class Slots:
    """The account's slots: how many there are, how many are taken, when to try again.

    Args:
        parallel: how many unfinished jobs the account allows; None: learn it, beginning at the free
            plan's.
    """

    def __init__(self, *, parallel: int | None = None) -> None:
        if parallel is not None and parallel < 1:
            raise ValueError(f"parallel must be at least 1, not {parallel}")
        self._configured = parallel
        self._limit = parallel or FREE_PARALLEL
        self._proven = 1  # so many were unfinished at once, each accepted
        self._taken = 0
        self._uploading = 0  # at most; one that was cancelled may still be counted
        self._growth_threshold = 0
        self._probing = False  # the limit has grown and has not proved true yet
        self._since_growth = 0
        self._failed_growths = 0
        self._refusals = 0
        self._was_full = False
        self._retry_at: float | None = None
        self._now = self._refused_at = -math.inf

    @property
    def limit(self) -> int:
        """How many jobs may be unfinished at once, as far as is known."""
        return self._limit

    @property
    def taken(self) -> int:
        """How many slots are taken now."""
        return self._taken

    def try_acquire(self, *, now: float) -> bool:
        """Take a slot for a job about to be uploaded; False when none may be had now."""
        self._now = now
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
        if self._retry_at is not None or self._taken >= self._limit:
            return False
        self._taken += 1
        self._uploading += 1
        return True

    def force_acquire(self) -> None:
        """Count a job that runs already, attached or resumed, even past the limit."""
        self._taken += 1

    def release(self) -> None:
        """Give a slot back: its job is terminal, was refused or is let go of.

        Raises:
            RuntimeError: more slots are given back than were taken.
        """
        if self._taken == 0:
            raise RuntimeError("a slot was given back that nobody had taken")
        self._taken -= 1
        self._uploading = min(self._uploading, self._taken)

    def on_accepted(self, *, has_queue: bool) -> None:
        """Learn from an accepted submit; `has_queue`: others stand in line for a slot."""
        self._uploading = max(0, self._uploading - 1)
        self._since_growth += 1
        if self._refusals >= _LONG_FULL and self._taken <= 1:
            self._growth_threshold = 0  # whoever held every slot has given one back
        self._refusals = 0
        self._proven = max(self._proven, min(self._taken - self._uploading, self._limit))
        if has_queue and self._is_held_full():
            self._grow()

    def _is_held_full(self) -> bool:
        """Whether the vendor is known to hold as many jobs as the limit says."""
        settled = self._uploading == 0 or self._since_growth > self._limit
        return settled and self._taken >= self._limit

    def _grow(self) -> None:
        if self._probing:
            self._failed_growths, self._probing = 0, False
            if self._limit < max(self._proven, self._configured or 0):
                self._growth_threshold = 0
        if not self._has_been_patient():
            return
        if self._configured is None or self._limit < self._configured:
            first = self._configured is None and not self._was_full
            self._limit = (_FIRST_GROWTHS if first else {}).get(self._limit, self._limit + 1)
            self._probing = True
            self._since_growth = self._uploading = 0

    def _has_been_patient(self) -> bool:
        """Whether enough was accepted since the last refusal to try a larger limit."""
        if self._since_growth > self._growth_threshold:
            return True
        return (
            self._limit < self._proven
            and self._since_growth >= _PATIENT_SUBMITS
            and self._now - self._refused_at >= _PATIENT_SECONDS
        )

    def on_rejected(
        self,
        *,
        now: float,
        retry_after: float | None,
        full: bool = True,
        began: float | None = None,
    ) -> None:
        """Learn from a refused submit, before its slot is given back.

        Args:
            now: monotonic seconds.
            retry_after: seconds, as the vendor told; None: it told nothing.
            full: the vendor said that the account is full (429); False: it is unwell (503), which
                says nothing about the limit.
            began: monotonic seconds at which its slot was taken: those that were on their way at
                the last refusal and are refused too do not lengthen the pause. None: it counts.
        """
        left = max(0, self._taken - 1)
        self._uploading = max(0, self._uploading - 1)
        if began is None or began >= self._refused_at:
            self._refusals += 1
        self._now = self._refused_at = now
        self._was_full = self._was_full or full
        if full and left < self._limit:
            self._shrink(max(1, left))
        if retry_after is not None:
            self.pause(now=now, retry_after=retry_after)
        elif left == 0 or not full:
            doublings = min(self._refusals - 1, 10)
            self._pause(now + min(_MIN_PAUSE * 2.0**doublings, _MAX_PAUSE))

    def pause(self, *, now: float, retry_after: float) -> None:
        """Try nothing for as many seconds as the vendor asked for."""
        self._pause(now + min(max(1.0, retry_after), _MAX_RETRY_AFTER))

    def _pause(self, until: float) -> None:
        """Try no sooner than this, nor than an earlier refusal asked for."""
        self._retry_at = until if self._retry_at is None else max(until, self._retry_at)

    def _shrink(self, limit: int) -> None:
        if limit == self._limit:
            return
        within = self._limit <= max(self._proven, self._configured or 0)
        first, largest = _THRESHOLD_WITHIN if within else _THRESHOLD_BEYOND
        self._growth_threshold = min(first * 2**self._failed_growths, largest)
        self._since_growth = 0
        self._failed_growths += 1
        self._limit = limit
        self._probing = False

    def retry_at(self) -> float | None:
        """The moment before which a refusal lets no slot be had; None: as soon as one is free."""
        return self._retry_at
