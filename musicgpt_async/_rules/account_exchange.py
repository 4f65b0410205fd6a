"""What the processes of one account may do next, decided from the rows that they share.

MusicGPT counts the unfinished conversions of an account, and these outlive the process that asked
for them. So a slot belongs to its job: of the slots of a process that died, those are free whose
tracks were never sent, and the others once their jobs are seen to be over, or past their deadlines.

Slots go round: a process that waits for one is served before a process that asked later, or that
got one since. Its place expires unless it asks again.

`decide` is called while the account's row is locked. It gets what the rows say and what one process
asks for, and returns what they are to say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from musicgpt_async._rules.credit import CreditBudget
from musicgpt_async._rules.slots import Slots

WAITING_TIMEOUT = 8.0  # seconds after which a process that waits for a slot has to ask again


@attrs.frozen(kw_only=True)
class SlotRow:
    """A slot that a job holds.

    Attributes:
        key: The job.
        owner: The process that works on it, or did.
        is_live: Whether that process is alive.
        is_sent: Whether MusicGPT may have its track.
        is_priced: Whether it was counted against the credit.
        until: When its job is past its deadline, in seconds of the account's clock.
    """

    key: str
    owner: str
    is_live: bool = True
    is_sent: bool = False
    is_priced: bool = False
    until: float


@attrs.frozen(kw_only=True)
class AccountState:
    """What the rows of an account say.

    Attributes:
        now: Seconds of the account's clock.
        learned: What :class:`Slots` has learned, and which processes wait.
        credit: What :class:`CreditBudget` has counted.
        rows: The slots: job → row.
    """

    now: float
    learned: Mapping[str, Any]
    credit: Mapping[str, Any]
    rows: Mapping[str, SlotRow]


@attrs.frozen
class AcceptedLesson:
    """A submit was accepted.

    Attributes:
        has_queue: Whether more jobs of its process wait for slots.
    """

    has_queue: bool


@attrs.frozen
class RejectedLesson:
    """A submit was not accepted.

    Attributes:
        retry_after: Seconds, from MusicGPT's response.
        is_full: Whether the account is full; if not, MusicGPT is unwell.
        began: When its slot was acquired, in seconds of the account's clock.
    """

    retry_after: float | None
    is_full: bool
    began: float


@attrs.frozen
class PauseLesson:
    """A submit was refused before it had a slot, which says nothing about slots.

    Attributes:
        retry_after: Seconds, from MusicGPT's response.
    """

    retry_after: float


Lesson: TypeAlias = AcceptedLesson | RejectedLesson | PauseLesson


@attrs.frozen(kw_only=True)
class AccountRequest:
    """What one process reports, and asks for.

    Attributes:
        owner: The process.
        hold_time: Seconds that a slot is held at most if its owner dies.
        lessons: What its submits have taught, in order.
        prices: Jobs whose submits were answered or lost → MusicGPT's estimate, if there is one.
        freed: Jobs that need no slot any more.
        running: Jobs that are known to run, whatever the limit.
        wanted: Jobs that wait for slots, in order.
        spare: Slots to leave for jobs that will want them soon.
        has_joined: Whether this is the first request of its session.
    """

    owner: str
    hold_time: float
    lessons: Sequence[Lesson] = ()
    prices: Mapping[str, float | None] = attrs.field(factory=dict)
    freed: Collection[str] = ()
    running: Collection[str] = ()
    wanted: Sequence[str] = ()
    spare: int = 0
    has_joined: bool = False


@attrs.frozen(kw_only=True)
class AccountDecision:
    """What the rows are to say, and what the process may do.

    Attributes:
        state: What the rows are to say.
        slots: The rule, with what all processes have learned.
        credit: The credit that the account has used.
        granted: Jobs that were asked for and have slots now.
    """

    state: AccountState
    slots: Slots
    credit: CreditBudget
    granted: Sequence[str]


def decide(
    request: AccountRequest,
    state: AccountState,
    *,
    parallel: int | None,
    max_credits: float | None,
) -> AccountDecision:
    """Decide on what a process asks for.

    Args:
        request: What it reports and asks for.
        state: What the rows say; no other process can change them meanwhile.
        parallel: The account's limit in this process's options, ``None`` to learn it.
        max_credits: What this process lets the account spend, ``None`` for no limit.
    """
    exchange = _Exchange(request, state, parallel, max_credits)
    exchange.count_prices()
    exchange.remove_rows()
    exchange.count_running()
    exchange.learn()
    granted = exchange.grant()
    learned = {**exchange.slots.dump(), "waiting": exchange.waiting, "parallel": exchange.parallel}
    changed = attrs.evolve(
        state, learned=learned, credit=exchange.credit.dump(), rows=exchange.rows
    )
    return AccountDecision(
        state=changed, slots=exchange.slots, credit=exchange.credit, granted=granted
    )


class _Exchange:
    """A decision in the making: the rows change step by step, in the order of `decide`."""

    def __init__(
        self,
        request: AccountRequest,
        state: AccountState,
        parallel: int | None,
        max_credits: float | None,
    ) -> None:
        self.request = request
        self.now = state.now
        self.rows = dict(state.rows)
        self.slots = Slots(parallel=parallel)
        self.credit = CreditBudget(max_credits)
        self.credit.load(state.credit)
        self.learned = state.learned
        self.waiting: dict[str, list[float]] = {
            owner: place
            for owner, place in state.learned.get("waiting", {}).items()
            if place[1] > state.now
        }
        self.parallel = state.learned.get("parallel")
        if request.has_joined and parallel is not None and parallel != self.parallel:
            self.learned, self.parallel = {}, parallel  # of another plan

    def count_prices(self) -> None:
        """Count what submits cost, each once."""
        for key, estimate in self.request.prices.items():
            row = self.rows.get(key)
            if row is None or not row.is_priced:
                self.credit.count(estimate)
            if row is not None:
                self.rows[key] = attrs.evolve(row, is_priced=True)

    def remove_rows(self) -> None:
        """Remove the slots that nothing holds; count what the dead have sent."""
        for key, row in tuple(self.rows.items()):
            is_own = row.owner == self.request.owner or not row.is_live
            is_freed = key in self.request.freed and is_own
            if not row.is_live and row.is_sent and not row.is_priced:
                self.credit.count(None)
                self.rows[key] = attrs.evolve(row, is_priced=True)
            if is_freed or row.until <= self.now or not (row.is_live or row.is_sent):
                del self.rows[key]

    def count_running(self) -> None:
        """Give slots to jobs that run anyway, and those of their earlier owners."""
        for key in self.request.running:
            row = self.rows.get(key) or self._new_row(key, is_sent=True, is_priced=True)
            self.rows[key] = attrs.evolve(row, owner=self.request.owner, is_live=True)

    def learn(self) -> None:
        """Apply what submits have taught to the rule."""
        unanswered = sum(not row.is_priced for row in self.rows.values())
        accepted = sum(isinstance(lesson, AcceptedLesson) for lesson in self.request.lessons)
        self.slots.load(
            self.learned,
            now=self.now,
            taken=len(self.rows),
            uploading=unanswered + accepted,
        )
        for lesson in self.request.lessons:
            self._apply(lesson)

    def _apply(self, lesson: Lesson) -> None:
        match lesson:
            case AcceptedLesson(has_queue=has_queue):
                self.slots.on_accepted(has_queue=has_queue)
            case PauseLesson(retry_after=retry_after):
                self.slots.pause(now=self.now, retry_after=retry_after)
            case RejectedLesson():
                self.slots.force_acquire()  # the one that was rejected: its row is gone
                self.slots.on_rejected(
                    now=self.now,
                    retry_after=lesson.retry_after,
                    full=lesson.is_full,
                    began=lesson.began,
                )
                self.slots.release()

    def grant(self) -> list[str]:
        """Give slots to the jobs that were asked for, as far as it is this process's turn."""
        granted = [key for key in self.request.wanted if self._holds(key)]
        missing = [key for key in self.request.wanted if key not in granted]
        is_asking = bool(missing)
        left = self._free_for_request()
        while missing and left > 0 and self._may_spend() and self.slots.try_acquire(now=self.now):
            self.rows[missing[0]] = self._new_row(missing[0])
            granted.append(missing.pop(0))
            left -= 1
        self._keep_place(is_asking=is_asking, is_served=bool(granted), is_waiting=bool(missing))
        return granted

    def _holds(self, key: str) -> bool:
        return key in self.rows and self.rows[key].owner == self.request.owner

    def _free_for_request(self) -> int:
        """Return how many free slots are not those of processes that have waited longer."""
        own = self.request.owner
        place = (self.waiting.get(own, [math.inf])[0], own)  # of equals one has to be the first
        ahead = sum((each[0], owner) < place for owner, each in self.waiting.items())
        return self.slots.limit - self.slots.taken - ahead - self.request.spare

    def _may_spend(self) -> bool:
        """Return whether credit is left; with a limit, one submit at a time is without a price."""
        if self.credit.limit is None:
            return True
        is_unpriced = any(not row.is_priced for row in self.rows.values())
        return not (is_unpriced or self.credit.is_exhausted)

    def _keep_place(self, *, is_asking: bool, is_served: bool, is_waiting: bool) -> None:
        place = self.waiting.pop(self.request.owner, None)
        if is_asking and is_waiting:
            since = self.now if place is None or is_served else place[0]
            self.waiting[self.request.owner] = [since, self.now + WAITING_TIMEOUT]

    def _new_row(self, key: str, *, is_sent: bool = False, is_priced: bool = False) -> SlotRow:
        until = self.now + self.request.hold_time
        owner = self.request.owner
        return SlotRow(key=key, owner=owner, is_sent=is_sent, is_priced=is_priced, until=until)
