"""SharedAccount: slots and credit of an account that several processes use, in their journal.

What this session reports and asks for is gathered and goes into the journal's next transaction, the
one that saves its jobs. The answer says which jobs have slots; the queue takes them from here. So
only one request of a session is under way, for all of its jobs.

When there is no slot for the first job, the session waits: it is woken when a slot is freed, and
asks again after a few seconds in any case. Without the database nothing is granted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import attrs

from musicgpt_async._engine.account import Account
from musicgpt_async._engine.poll_grants import PollGrants
from musicgpt_async._engine.store import JobStore
from musicgpt_async._engine.wakeup import Wakeup
from musicgpt_async._io.account_connection import AccountConnection
from musicgpt_async._io.account_table import AccountTable
from musicgpt_async._io.notifications import Notifications
from musicgpt_async._rules.account_exchange import (
    AcceptedLesson,
    AccountDecision,
    AccountRequest,
    AccountState,
    Lesson,
    PauseLesson,
    RejectedLesson,
    decide,
)
from musicgpt_async._rules.credit import CreditBudget
from musicgpt_async._rules.rate_budget import Budget
from musicgpt_async._rules.slots import Slots
from musicgpt_async.errors import JournalError

_log = logging.getLogger(__name__)

ASK_INTERVAL = 5.0  # seconds after which a session that waits for a slot asks again
MIN_ASK_INTERVAL = 0.1  # seconds between two requests of a session that waits
RETRY_INTERVAL = 1.0  # seconds between tries to reach the database


def make_account(
    store: JobStore,
    slots: Slots,
    credit: CreditBudget,
    budget: Budget,
    *,
    hold_time: float,
) -> tuple[Account, PollGrants | None]:
    """Return what limits a session's account, and what grants its polls if others use it too.

    Args:
        store: With a journal the account is shared, else it is the session's alone.
        slots: How many jobs may be unfinished at MusicGPT.
        credit: How much may be spent.
        budget: How many polls may be made.
        hold_time: Seconds that a slot is held at most if its owner dies.
    """
    if store.journal is None:
        return Account(slots, credit), None
    table = store.journal._account_table(store.account, hold_time)
    connection = store.journal._account_connection()
    account = SharedAccount(
        slots,
        credit,
        table=table,
        connection=connection,
        notifications=store.journal._notifications,
        store=store,
    )
    return account, PollGrants(table, connection, budget)


class SharedAccount(Account):
    """Slots and credit of an account, shared by all sessions on a journal.

    Args:
        slots: How many jobs may be unfinished at MusicGPT; from its own session's options.
        credit: How much the account may spend; from its own session's options.
        table: The account's rows.
        connection: Reads the rows.
        notifications: Wake this session when others have freed a slot.
        store: Writes beside the jobs.
    """

    is_shared = True

    def __init__(
        self,
        slots: Slots,
        credit: CreditBudget,
        *,
        table: AccountTable,
        connection: AccountConnection,
        notifications: Notifications,
        store: JobStore,
    ) -> None:
        super().__init__(slots, credit)
        self._parallel = slots.configured
        self._table = table
        self._connection = connection
        self._notifications = notifications
        self._store = store
        self._pending = AccountRequest(
            owner=table.owner_id, hold_time=table.hold_time, has_joined=True
        )
        self._is_used: dict[str, bool] = {}  # jobs of this session that have slots
        self._unpriced: set[str] = set()  # jobs whose prices are not counted in the account yet
        self._others = 0
        self._offset = 0.0  # of the loop's clock to the account's
        self._is_requested = self._is_waiting = False
        self._waiting = Wakeup()

    @property
    def taken(self) -> int:
        """How many slots are taken now, by all processes, as far as is known."""
        return len(self._is_used) + self._others

    def retry_at(self) -> float | None:
        """Return the moment of the loop's clock before which no slot is to be had."""
        at = (self._slots.retry_at() or -math.inf) + self._offset
        return at if at > anyio.current_time() else None

    def ask(self, keys: Sequence[str], *, spare: int) -> None:
        """Ask for slots for the jobs that are next, leaving some for jobs that need them soon."""
        for key, is_used in tuple(self._is_used.items()):
            if not is_used and key not in keys:  # it ended before it could use its slot
                self.release(key, runs_for=None)
        wanted = [key for key in keys if key not in self._is_used]
        is_new = bool(wanted) and wanted != self._pending.wanted
        self._pending = attrs.evolve(self._pending, wanted=wanted, spare=spare)
        if is_new and not self._is_waiting and not self._has_all:
            self._request()

    def is_granted(self, key: str) -> bool:
        """Return whether a job that was asked for may have its slot now."""
        return self._is_used.get(key) is False

    def try_acquire(self, key: str) -> bool:
        """Take the slot that a job was granted; return whether there was one."""
        if self._is_used.get(key) is False:
            self._is_used[key] = True
            return True
        return False

    def force_acquire(self, key: str) -> None:
        """Count a job that is known to run, even past the limit."""
        self._is_used[key] = True
        self._store.forget_beside(key)
        self._report(running=[*self._pending.running, key])

    def release(self, key: str, *, runs_for: float | None) -> None:
        """Free the slot of a job, or let it expire if the job continues at MusicGPT.

        A job that another process has left may have a slot of which this session does not know.

        Args:
            key: The job.
            runs_for: Seconds after which MusicGPT is taken to have finished a job that nothing
                follows any more; ``None`` for a job that needs no slot.
        """
        is_known = self._is_used.pop(key, None) is not None
        if runs_for is not None:
            self._others += is_known
            self._store.write_beside(key, partial(self._table.leave, job=key, seconds=runs_for))
            return
        if key not in self._unpriced:  # else its slot would be another's before its price counts
            self._store.write_beside(key, partial(self._table.free, job=key))
        self._is_waiting = False
        self._report(freed=[*self._pending.freed, key])

    def on_delivered(self, key: str) -> None:
        """Record, with the job's next save, that MusicGPT may have its track."""
        self._store.write_beside(key, partial(self._table.mark_sent, job=key))

    def on_accepted(self, key: str, *, has_queue: bool) -> None:  # noqa: ARG002 - see Account
        """Learn from an accepted submit."""
        self._teach(AcceptedLesson(has_queue))

    def on_rejected(
        self,
        key: str,  # noqa: ARG002 - see Account
        *,
        retry_after: float | None,
        full: bool,
        began: float,
    ) -> None:
        """Learn from a submit that was not accepted, before its slot is freed."""
        self._teach(RejectedLesson(retry_after, full, began - self._offset))

    def pause(self, retry_after: float) -> None:
        """Submit nothing for as many seconds as MusicGPT asked for."""
        self._teach(PauseLesson(retry_after))

    def settle(self, key: str, estimate: float | None) -> None:
        """Replace a reservation by MusicGPT's estimate, ``None`` if that is not known."""
        super().settle(key, estimate)
        self._unpriced.add(key)
        self._report(prices={**self._pending.prices, key: estimate})

    async def close(self) -> None:
        """Close the connection that waits."""
        await self._connection.close()

    async def run(self) -> None:
        """Request a slot again while the first job has none."""
        self._request()
        while True:
            await self._waiting.wait()
            await anyio.sleep(MIN_ASK_INTERVAL)
            await self._wait_for_slot(anyio.current_time() + ASK_INTERVAL)
            if self._is_waiting:
                self._is_waiting = False
                self._request()

    async def _wait_for_slot(self, until: float) -> None:
        """Wait until a slot may be free, within a limit in time."""
        changed = Wakeup()
        with self._notifications.listen(lambda _: changed.set()):
            while self._is_waiting and (now := anyio.current_time()) < until:
                retry_at = self.retry_at()
                if retry_at is not None and retry_at <= until:
                    await anyio.sleep(retry_at - now)
                    return
                await changed.wait(until=min(now + self._notifications.wait_limit, until))
                try:
                    if await self._table.has_free_slot(self._connection.execute):
                        return
                except JournalError as error:
                    _log.debug("The account's slots could not be read: %s", error)
                    await anyio.sleep(RETRY_INTERVAL)

    def stop_asking(self) -> None:
        """Ask for no slot any more: the session is left."""
        if self._pending.wanted:
            self._is_waiting = False
            self._report(wanted=(), spare=0)

    @property
    def _has_all(self) -> bool:
        """Whether all slots are this session's own, so that it will free the next one itself."""
        return self._others == 0 and self.taken >= self.limit

    def _teach(self, lesson: Lesson) -> None:
        self._report(lessons=[*self._pending.lessons, lesson])

    def _report(self, **changes: Any) -> None:
        self._pending = attrs.evolve(self._pending, **changes)
        self._request()

    def _request(self) -> None:
        """Exchange what is new in the journal's next transaction."""
        if not self._is_requested:
            self._is_requested = True
            self._store.write_later(self._exchange)

    async def _exchange(self) -> None:
        self._is_requested = False
        request = self._pending
        self._pending = AccountRequest(
            owner=request.owner,
            hold_time=request.hold_time,
            wanted=request.wanted,
            spare=request.spare,
        )
        try:
            decision = await self._store.write(
                partial(self._table.exchange, decide=partial(self._decide, request))
            )
        except BaseException:
            self._take_back(request)
            raise
        self._apply(request, decision)

    def _decide(self, request: AccountRequest, state: AccountState) -> AccountDecision:
        return decide(request, state, parallel=self._parallel, max_credits=self._credit.limit)

    def _take_back(self, request: AccountRequest) -> None:
        """Put what was not written before what is new since."""
        new = self._pending
        self._pending = attrs.evolve(
            new,
            lessons=[*request.lessons, *new.lessons],
            prices={**request.prices, **new.prices},
            freed=[*request.freed, *new.freed],
            running=[*request.running, *new.running],
            has_joined=request.has_joined,
        )
        self._is_requested = True  # the store tries again

    def _apply(self, request: AccountRequest, decision: AccountDecision) -> None:
        rows, state = decision.state.rows, decision.state
        self._unpriced.difference_update(request.prices)
        self._offset = anyio.current_time() - state.now
        self._slots = decision.slots
        self._credit.load(state.credit)
        for estimate in self._pending.prices.values():
            self._credit.count(estimate)
        for key in decision.granted:
            self._is_used.setdefault(key, False)
        freed = self._pending.freed
        self._others = sum(key not in self._is_used and key not in freed for key in rows)
        for key in request.freed:
            if key not in self._is_used:
                self._store.forget_beside(key)
        is_missing = any(key not in self._is_used for key in request.wanted)
        self._is_waiting = is_missing and not self._has_all
        if self._is_waiting:
            self._waiting.set()
        self.wakeup.set()
