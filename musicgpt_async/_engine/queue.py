"""The submit queue: order, slots and credit in one object that tells its own changes.

A turn is a job that may be submitted now: it is the first in order, a slot is free, and credit is
left. Whatever could make another turn possible (a job enqueued, a slot freed, an estimate known, a
limit grown) is done by a method of this class, which wakes whoever waits for turns. Nothing else
does, so nothing can forget to.

A slot is held by a permit of its job, which frees it once, however often it is asked to.
"""

from __future__ import annotations

import heapq

import anyio
import attrs

from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.wakeup import Wakeup
from musicgpt_async._io.sources import Track
from musicgpt_async._rules.credit import CreditBudget
from musicgpt_async._rules.lifecycle import Effect
from musicgpt_async._rules.slots import Slots
from musicgpt_async.errors import CreditLimitError, MusicGPTError
from musicgpt_async.events import EventBus, Queued

# Queued jobs at or below which a batch brings its next track.
LOW_WATER_MARK = 2


@attrs.define(eq=False)
class SlotPermit:
    """A slot of the account, held by a job."""

    _queue: SubmitQueue
    _is_held: bool = True

    def release(self) -> None:
        """Free the slot; harmless if it is free already."""
        if self._is_held:
            self._is_held = False
            self._queue.free_slot()


@attrs.define(eq=False)
class Turn:
    """A job in the queue, and what its submit needs.

    Attributes:
        job: It is queued, or being submitted.
        track: What to send.
        force: Whether to submit it though the journal has the same track.
        is_registered: Whether it is in the journal itself.
        began: When its slot was acquired, on the loop's clock.
        has_reserved: Whether its estimate is still to come.
        granted: Set when a submit under way gets its next slot.
        in_flight: Shielded while a response is on its way.
        scope: Cancelled when the job ends here; what runs in it is the job's submit.
    """

    job: Job
    track: Track
    force: bool = False
    is_registered: bool = False
    began: float = 0.0
    has_reserved: bool = False
    granted: anyio.Event | None = None
    in_flight: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)


class SubmitQueue:
    """Decides whose turn it is.

    Args:
        slots: How many jobs may be unfinished at MusicGPT.
        credit: How much may be spent.
        event_bus: Where events go.
    """

    def __init__(self, slots: Slots, credit: CreditBudget, event_bus: EventBus) -> None:
        self._slots = slots
        self._credit = credit
        self._event_bus = event_bus
        self._heap: list[tuple[int, int, Turn]] = []  # position, number of the push, turn
        self._pushes = 0
        self._wakeup = Wakeup()
        self._shrunk = anyio.Event()

    def push(self, turn: Turn) -> None:
        """Put a job into the queue, at the place that its position gives it."""
        self._pushes += 1
        heapq.heappush(self._heap, (turn.job.position, self._pushes, turn))
        if self._event_bus:
            self._event_bus.publish(turn.job.make_event(Queued))
        self._wakeup.set()

    def on_change(self, job: Job, effects: Effect) -> None:
        """Free the slot of a job that needs it no more."""
        if Effect.FREE_SLOT in effects and job.permit is not None:
            job.permit.release()
            job.permit = None
        if Effect.END in effects:
            self._wakeup.set()  # perhaps it was the first one in the queue

    async def wait_changed(self) -> None:
        """Wait until another turn may be possible."""
        now = anyio.current_time()
        retry_at = self._slots.retry_at()
        await self._wakeup.wait(until=retry_at if retry_at and retry_at > now else None)

    def take(self) -> list[Turn | tuple[Turn, CreditLimitError]]:
        """Return the jobs whose turn it is, and those that may not be submitted at all."""
        taken: list[Turn | tuple[Turn, CreditLimitError]] = []
        while self._heap and self._take_first(taken):
            heapq.heappop(self._heap)
        if len(self._heap) <= LOW_WATER_MARK:
            self._shrunk.set()
            self._shrunk = anyio.Event()
        return taken

    def _take_first(self, taken: list[Turn | tuple[Turn, CreditLimitError]]) -> bool:
        turn = self._heap[0][2]
        if turn.job.has_ended:
            return True
        if not self._credit.can_reserve():
            return False
        now = anyio.current_time()
        if not self._slots.try_acquire(now=now):
            return False
        turn.job.permit = SlotPermit(self)
        try:
            self._credit.reserve()
        except CreditLimitError as error:
            taken.append((turn, error))
            return True
        turn.began, turn.has_reserved = now, True
        if turn.granted is not None:
            turn.granted.set()
        else:
            taken.append(turn)
        return True

    async def wait_for_slot(self, turn: Turn) -> None:
        """Wait until a submit under way has a slot; at once if it has one."""
        if turn.job.permit is None:
            turn.granted = anyio.Event()
            self.push(turn)
            await turn.granted.wait()

    async def wait_for_space(self) -> None:
        """Wait until the queue is short enough for one more track."""
        while len(self._heap) > LOW_WATER_MARK:
            await self._shrunk.wait()

    def force_acquire(self, job: Job) -> None:
        """Count a job that is known to run, even past the limit."""
        if job.permit is None:
            self._slots.force_acquire()
            job.permit = SlotPermit(self)

    def acquire_if_free(self, job: Job) -> None:
        """Count a job that may be running, unless all slots are taken by jobs that are."""
        if job.permit is None and self._slots.taken < self._slots.limit:
            self.force_acquire(job)

    def free_slot(self) -> None:
        """Count one job less; for its permit alone."""
        self._slots.release()
        self._wakeup.set()

    def on_accepted(self, turn: Turn, estimate: float | None) -> None:
        """Learn from an accepted submit."""
        self._settle(turn, estimate)
        self._slots.on_accepted(has_queue=bool(self._heap))

    def on_not_accepted(self, turn: Turn, error: MusicGPTError) -> None:
        """Learn from a submit that MusicGPT had no room for, before its slot is freed."""
        self._cancel_reservation(turn)
        self._slots.on_rejected(
            now=anyio.current_time(),
            retry_after=error.retry_after,
            full=error.status == 429,
            began=turn.began,
        )
        self._wakeup.set()

    def on_unknown(self, turn: Turn) -> None:
        """Count a submit whose response was lost: it may be paid for."""
        self._settle(turn, None)

    def on_ended(self, turn: Turn) -> None:
        """Take back what a submit reserved that came to nothing."""
        self._cancel_reservation(turn)

    def queued(self) -> list[Turn]:
        """Return what is in the queue, in order."""
        return [turn for _, _, turn in sorted(self._heap, key=lambda entry: entry[:2])]

    def _settle(self, turn: Turn, estimate: float | None) -> None:
        if turn.has_reserved:
            turn.has_reserved = False
            self._credit.settle(estimate)
            self._wakeup.set()

    def _cancel_reservation(self, turn: Turn) -> None:
        if turn.has_reserved:
            turn.has_reserved = False
            self._credit.cancel()
            self._wakeup.set()
