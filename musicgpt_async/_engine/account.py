"""Account: the slots and the credit of an account, as one session counts them.

Without a journal a session knows of no other: only its own jobs count. With one, see
:class:`~musicgpt_async._engine.shared_account.SharedAccount`.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from musicgpt_async._engine.wakeup import Wakeup
from musicgpt_async._rules.credit import CreditBudget
from musicgpt_async._rules.slots import Slots


class Account:
    """Slots and credit of an account that this process alone uses.

    Args:
        slots: How many jobs may be unfinished at MusicGPT.
        credit: How much may be spent.

    Attributes:
        wakeup: Set when another job may be submitted.
        is_shared: Whether slots come from other processes, and have to be asked for.
    """

    is_shared = False

    def __init__(self, slots: Slots, credit: CreditBudget) -> None:
        self._slots = slots
        self._credit = credit
        self.wakeup: Wakeup = Wakeup()

    @property
    def taken(self) -> int:
        """How many slots are taken now."""
        return self._slots.taken

    @property
    def limit(self) -> int:
        """How many slots there are, as far as is known."""
        return self._slots.limit

    @property
    def credits_expected(self) -> float:
        """Credits that MusicGPT will charge, by its estimates."""
        return self._credit.expected

    def retry_at(self) -> float | None:
        """Return the moment of the loop's clock before which no slot is to be had."""
        return self._slots.retry_at()

    def ask(self, keys: Sequence[str], *, spare: int) -> None:
        """Ask for slots for the jobs that are next, leaving some for jobs that need them soon."""

    def is_granted(self, key: str) -> bool:  # noqa: ARG002 - see SharedAccount
        """Return whether a job that was asked for may have its slot now."""
        return False

    def try_acquire(self, key: str) -> bool:  # noqa: ARG002 - see SharedAccount
        """Take a slot for a job that is about to be uploaded; return whether there was one."""
        return self._slots.try_acquire(now=anyio.current_time())

    def force_acquire(self, key: str) -> None:  # noqa: ARG002 - see SharedAccount
        """Count a job that is known to run, even past the limit."""
        self._slots.force_acquire()

    def release(self, key: str, *, runs_for: float | None) -> None:  # noqa: ARG002 - see SharedAccount
        """Free the slot of a job, which may run on at MusicGPT for that many seconds."""
        self._slots.release()

    def on_delivered(self, key: str) -> None:
        """Record, with the job's next save, that MusicGPT may have its track."""

    def on_accepted(self, key: str, *, has_queue: bool) -> None:  # noqa: ARG002 - see SharedAccount
        """Learn from an accepted submit."""
        self._slots.on_accepted(has_queue=has_queue)

    def on_rejected(
        self,
        key: str,  # noqa: ARG002 - see SharedAccount
        *,
        retry_after: float | None,
        full: bool,
        began: float,
    ) -> None:
        """Learn from a submit that was not accepted, before its slot is freed."""
        self._slots.on_rejected(
            now=anyio.current_time(), retry_after=retry_after, full=full, began=began
        )

    def pause(self, retry_after: float) -> None:
        """Submit nothing for as many seconds as MusicGPT asked for."""
        self._slots.pause(now=anyio.current_time(), retry_after=retry_after)

    def stop_asking(self) -> None:
        """Ask for no slot any more: the session is left."""

    async def run(self) -> None:
        """Wait for slots that other processes hold; there are none."""
        await anyio.sleep_forever()

    async def close(self) -> None:
        """Close what it has open."""

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more may be submitted."""
        return self._credit.is_exhausted

    def can_reserve(self) -> bool:
        """Return whether a submit may begin now, as far as credit goes."""
        return self._credit.can_reserve()

    def reserve(self) -> None:
        """Count a submit whose estimate is not known yet.

        Raises:
            CreditLimitError: The limit is reached.
        """
        self._credit.reserve()

    def settle(self, key: str, estimate: float | None) -> None:  # noqa: ARG002 - see SharedAccount
        """Replace a reservation by MusicGPT's estimate, ``None`` if that is not known."""
        self._credit.settle(estimate)

    def cancel(self) -> None:
        """Take a reservation back: MusicGPT did not accept the submit."""
        self._credit.cancel()
