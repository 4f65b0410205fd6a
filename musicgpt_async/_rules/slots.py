"""Limit the number of unfinished jobs at MusicGPT, and learn the limit unless it is configured.

MusicGPT counts unfinished conversions per account and answers a submit beyond the limit with 429
(MusicGPT docs, rate limits of August 2026: 1, 3 or 10 by plan). A slot is therefore acquired before
the upload and released when the job is terminal or detached, not at the response to the submit.

The limit moves by three rules:

- It **grows** by one when every slot is taken, every upload was accepted and other jobs are queued.
  Only then is it worth risking a refused upload to find a larger limit, and only the next submit
  risks it. Until the first refusal it grows along the plans: from 1 to 3, and from 4 by two to 10.
- It **shrinks** on a 429 to the number of slots still taken, at least 1. MusicGPT holds no more,
  either because of the plan or because another process uses the same account.
- After a refusal it grows again only after a number of accepted submits, which doubles with each
  growth that fails in a row. The number starts at one up to a limit that was proven before, and at
  16 beyond it, so that one 429 finds the plan's limit and few more follow. Below a proven limit
  another client holds the missing slots and may release them: 75 seconds and three submits are
  enough there, and no wait is needed after a growth has succeeded or a full account has capacity
  again. With jobs of 20 s, the limit is restored within two minutes after the other client stops.

After a 429 the next try waits until a job finishes. While this session's jobs run, that is a
released slot, and no timer is needed. If none runs, the next try follows after a growing pause. A
`Retry-After` is always respected.

Sessions that share an account load what all of them have learned, together with the number of slots
that all of them hold, in the transaction that changes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FREE_PARALLEL = 1
"""The limit of the smallest plan (MusicGPT docs, rate limits)."""

# Next limit before the first refusal. In a simulation of 60 batches of 10 to 100 tracks each, an
# account with 10 slots was 1 to 8 % faster than with growth from 2 in steps of one, an account with
# 3 slots at most 1.3 % slower, and the number of refused uploads differed by at most one.
_FIRST_GROWTHS = {1: 3, 4: 6, 6: 8, 8: 10}

_MIN_PAUSE, _MAX_PAUSE = 2.0, 60.0  # seconds
_MAX_RETRY_AFTER = 300.0  # seconds
# Accepted submits before the next growth, at first and at most: up to a proven limit, beyond it.
_THRESHOLD_WITHIN, _THRESHOLD_BEYOND = (1, 32), (16, 256)
_PATIENT_SECONDS, _PATIENT_SUBMITS = 75.0, 3  # both together replace the threshold within
_LONG_FULL = 3  # consecutive refusals while no job of this session is running


# What is learned from responses, and shared.
_LEARNED = frozenset(
    {
        "limit",
        "proven",
        "growth_threshold",
        "probing",
        "since_growth",
        "failed_growths",
        "refusals",
        "was_full",
        "retry_at",
    }
)


class Slots:
    """The account's slots: the limit, the number taken, and the time of the next try.

    Args:
        parallel: Number of unfinished jobs that the account allows, or ``None`` to learn it,
            starting at the free plan's.
    """

    def __init__(self, *, parallel: int | None = None) -> None:
        if parallel is not None and parallel < 1:
            raise ValueError(f"parallel must be at least 1, not {parallel}")
        self._configured = parallel
        self._limit = parallel or FREE_PARALLEL
        self._proven = 1  # largest number of accepted jobs that were unfinished at once
        self._taken = 0
        self._uploading = 0  # upper bound: a cancelled upload may still be counted
        self._growth_threshold = 0  # accepted submits
        self._probing = False  # the limit has grown and is not proven yet
        self._since_growth = 0
        self._failed_growths = 0
        self._refusals = 0
        self._was_full = False
        self._retry_at: float | None = None
        self._now = self._refused_at = -math.inf

    def dump(self) -> dict[str, Any]:
        """Return what was learned as JSON, to be saved for all sessions of the account."""
        learned = {name: getattr(self, f"_{name}") for name in _LEARNED}
        refused_at = None if self._refused_at == -math.inf else self._refused_at
        return {**learned, "refused_at": refused_at}

    def load(self, learned: Mapping[str, Any], *, now: float, taken: int, uploading: int) -> None:
        """Continue from what the account's sessions have learned.

        Args:
            learned: What `dump` returned; empty if nothing was learned yet.
            now: Seconds of the account's clock, which all sessions share.
            taken: Slots that all sessions hold.
            uploading: Those of them whose submits have no response yet.
        """
        for name in _LEARNED & learned.keys():
            setattr(self, f"_{name}", learned[name])
        if self._configured is not None:
            self._limit = min(self._limit, self._configured)
        refused_at = learned.get("refused_at")
        self._refused_at = -math.inf if refused_at is None else refused_at
        self._now, self._taken, self._uploading = now, taken, uploading

    @property
    def configured(self) -> int | None:
        """The configured limit, or ``None`` if it is learned."""
        return self._configured

    @property
    def limit(self) -> int:
        """Number of jobs that may be unfinished at once, as far as is known."""
        return self._limit

    @property
    def taken(self) -> int:
        """Number of slots that are taken now."""
        return self._taken

    def try_acquire(self, *, now: float) -> bool:
        """Acquire a slot for an upload that is about to start.

        Args:
            now: Monotonic seconds.

        Returns:
            Whether a slot was acquired; false if all are taken or a pause is in effect.
        """
        self._now = now
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
        if self._retry_at is not None or self._taken >= self._limit:
            return False
        self._taken += 1
        self._uploading += 1
        return True

    def force_acquire(self) -> None:
        """Acquire a slot for a job that is already running, even beyond the limit."""
        self._taken += 1

    def release(self) -> None:
        """Release a slot: its job is terminal, was refused or was detached.

        Raises:
            RuntimeError: No slot is taken.
        """
        if self._taken == 0:
            raise RuntimeError("a slot was released that was not acquired")
        self._taken -= 1
        self._uploading = min(self._uploading, self._taken)

    def on_accepted(self, *, has_queue: bool) -> None:
        """Learn from an accepted submit.

        Args:
            has_queue: Whether other jobs wait for a slot.
        """
        self._uploading = max(0, self._uploading - 1)
        self._since_growth += 1
        if self._refusals >= _LONG_FULL and self._taken <= 1:
            self._growth_threshold = 0  # the client that held every slot has released one
        self._refusals = 0
        self._proven = max(self._proven, min(self._taken - self._uploading, self._limit))
        if has_queue and self._is_held_full():
            self._grow()

    def _is_held_full(self) -> bool:
        """Return whether MusicGPT certainly holds as many jobs as the limit allows.

        An upload in progress is not counted there yet. If uploads never pause, more submits than
        the limit since the last growth prove it too.
        """
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
        """Return whether enough submits were accepted since the last refusal to try to grow."""
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
        """Learn from a refused submit, before its slot is released.

        Args:
            now: Monotonic seconds.
            retry_after: Seconds from the ``Retry-After`` header, or ``None``.
            full: Whether the account is full (429); a 503 says nothing about the limit.
            began: Monotonic seconds at which the slot was acquired. Submits that were in flight at
                the last refusal do not lengthen the pause if they are refused too. ``None``: it
                does.
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
        """Pause for the seconds of a ``Retry-After`` header."""
        self._pause(now + min(max(1.0, retry_after), _MAX_RETRY_AFTER))

    def _pause(self, until: float) -> None:
        """Pause until a moment; a pause that ends later stays in effect."""
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
        """Return the end of the pause in monotonic seconds, or ``None`` if there is none."""
        return self._retry_at
