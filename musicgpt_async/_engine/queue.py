"""The submit queue: order, slots and credit in one object that announces its own changes.

A turn is a job that may be submitted now: it is the first in order, a slot is free, and credit is
left. Everything that can make another turn possible (a job enqueued, a slot freed, an estimate
known, a limit grown) is done by a method of this class, and that method wakes the runner. No caller
has to, so none can forget it.

The limits are those of :class:`~musicgpt_async._engine.account.Account`. Only this class knows
which jobs of the session hold slots: a job that has ended cannot take one, and to free a slot twice
has no effect.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

import anyio
import attrs

from musicgpt_async._engine.account import Account
from musicgpt_async._engine.job_state import Job
from musicgpt_async._io.sources import Track
from musicgpt_async._io.upload import Hold
from musicgpt_async._rules import records
from musicgpt_async._rules.lifecycle import Effect
from musicgpt_async._rules.upload_ahead import Running, Uplink, UploadAhead
from musicgpt_async.errors import CreditLimitError, MusicGPTError, TransportTimeoutError
from musicgpt_async.events import EventBus, Queued, Uploading
from musicgpt_async.models import JobState

# Queued jobs at or below which a batch submits its next track.
LOW_WATER_MARK = 2
# Seconds between two checks whether an upload may run ahead of its slot.
AHEAD_INTERVAL = 0.25
# States in which MusicGPT continues to process a job that the session has left.
_GOES_ON = frozenset({JobState.UNACKNOWLEDGED, JobState.PROCESSING})


@attrs.define(eq=False)
class Turn:
    """A job in the queue, and what its submit needs.

    Attributes:
        job: It is queued, or being submitted.
        track: What to send.
        force: Whether to submit it though the journal has the same track.
        key: The caller's own name for this piece of work.
        retry_failed: Whether to submit it though MusicGPT failed the same track before.
        is_registered: Whether it is in the journal itself.
        began: When its slot was acquired, on the loop's clock.
        has_reserved: Whether its estimate is still to come.
        granted: Set when a submit under way gets its next slot.
        in_flight: Shielded while a response is on its way.
        scope: Cancelled when the job ends here; what runs in it is the job's submit.
        is_ahead: Whether its upload started before it had a slot, and continues.
        left: Bytes of its body that are still to go out, while it is under way; an estimate while
            the track of a turn that runs ahead is being opened.
        sent: Bytes of its track that have gone out.
        held_since: When all but the end of its body was out, while it waits for its slot.
    """

    job: Job
    track: Track
    force: bool = False
    key: str | None = None
    retry_failed: bool = True
    is_registered: bool = False
    began: float = 0.0
    has_reserved: bool = False
    granted: anyio.Event | None = None
    in_flight: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    is_ahead: bool = False
    left: int | None = None
    sent: int = 0
    held_since: float | None = None


class SubmitQueue:
    """Decides whose turn it is.

    Args:
        account: What limits the account.
        event_bus: Where events go.
        ahead: Which uploads run ahead of their slots.
        uplink: How fast bodies go out.
    """

    def __init__(
        self,
        account: Account,
        event_bus: EventBus,
        *,
        ahead: UploadAhead,
        uplink: Uplink,
    ) -> None:
        self._account = account
        self._event_bus = event_bus
        self._ahead = ahead
        self._uplink = uplink
        self._uploads: dict[str, Turn] = {}  # under way or held, or about to begin ahead
        self._holders: dict[str, Job] = {}  # jobs that hold slots
        self._latest_size = 0  # of a body, in bytes
        self._heap: list[tuple[int, int, Turn]] = []  # position, number of the push, turn
        self._pushes = 0
        self._wakeup = account.wakeup
        self._shrunk = anyio.Event()

    def push(self, turn: Turn) -> None:
        """Put a job into the queue, at the place that its position gives it."""
        self._pushes += 1
        heapq.heappush(self._heap, (turn.job.position, self._pushes, turn))
        if self._event_bus:
            self._event_bus.publish(turn.job.make_event(Queued))
        self._wakeup.set()

    def on_change(self, job: Job, effects: Effect) -> None:
        """Free the slot of a job that no longer needs it."""
        if Effect.SAVE_FIRST in effects and job.record.state is JobState.UNACKNOWLEDGED:
            self._account.on_delivered(job.record.id)
        if Effect.FREE_SLOT in effects:
            has_slot = self._holders.pop(job.id, None) is not None
            if has_slot or self._account.is_shared:
                goes_on = Effect.END in effects and job.record.state in _GOES_ON
                left = records.estimate_time_left(job.record, now=time.time()) if goes_on else None
                self._account.release(job.record.id, runs_for=left)
                self._wakeup.set()
        if Effect.END in effects:
            self._wakeup.set()  # perhaps it was the first one in the queue

    async def wait_changed(self) -> None:
        """Wait until another turn may be possible."""
        now = anyio.current_time()
        retry_at = self._account.retry_at()
        if retry_at is not None and retry_at > now:
            await self._wakeup.wait(until=retry_at)
        else:  # as jobs grow older an upload may run ahead of its slot
            await self._wakeup.wait(until=now + AHEAD_INTERVAL if self._heap else None)

    def take(self) -> list[Turn | tuple[Turn, CreditLimitError]]:
        """Return the jobs whose turn it is, and those that may not be submitted at all."""
        self._grant_held()
        taken: list[Turn | tuple[Turn, CreditLimitError]] = []
        while self._heap and self._take_first(taken):
            heapq.heappop(self._heap)
        if len(self._heap) <= LOW_WATER_MARK:
            self._shrunk.set()
            self._shrunk = anyio.Event()
        if self._account.is_shared:
            self._ask_for_slots()
        return taken

    def _ask_for_slots(self) -> None:
        """Ask for the slots that the next jobs need, in order: held bodies, and the queue."""
        held = self._held()
        wanted = [turn.job for turn in held]
        if self._account.can_reserve():
            count = max(1, self._account.limit - len(self._holders))
            queued = (turn.job for turn in itertools.islice(_in_order(self._heap), count))
            wanted += [job for job in queued if not job.has_ended]
        keys = [job.record.id for job in sorted(wanted, key=lambda job: job.position)]
        self._account.ask(keys, spare=len(self._without_slot()) - len(held))

    def _take_first(self, taken: list[Turn | tuple[Turn, CreditLimitError]]) -> bool:
        turn = self._heap[0][2]
        if turn.job.has_ended:
            return True
        if not self._account.can_reserve():
            return False
        # Without credit it needs no slot: its submit is refused at once.
        is_refused = self._account.is_exhausted
        if not (is_refused or self._acquire(turn) or self._may_run_ahead(turn)):
            return False
        turn.is_ahead = not self._has_slot(turn)
        try:
            self._account.reserve()
        except CreditLimitError as error:
            taken.append((turn, error))
            return True
        turn.has_reserved = True
        if turn.is_ahead:  # from now on: until its track is open, no later job may take its slot
            self._uploads[turn.job.id] = turn
            turn.left = self._estimate_size(turn)
        if turn.granted is not None:
            turn.granted.set()
        else:
            taken.append(turn)
        return True

    def _acquire(self, turn: Turn) -> bool:
        """Give a turn a slot that no job before it needs."""
        key = turn.job.record.id
        is_free = self._account.is_granted(key) or self._free > self._count_earlier(turn)
        if not is_free or not self._account.try_acquire(key):
            return False
        self._holders[turn.job.id] = turn.job
        turn.began = anyio.current_time()
        return True

    def _has_slot(self, turn: Turn) -> bool:
        return turn.job.id in self._holders

    @property
    def _free(self) -> int:
        return max(self._account.limit - self._account.taken, 0)

    def _count_earlier(self, turn: Turn) -> int:
        """Count the jobs before a turn that need slots: sent ahead, or sent back by a 429."""
        position = turn.job.position
        earlier = sum(each.job.position < position for each in self._without_slot())
        if self._account.can_reserve():  # else the queue waits for the price of a held body
            queued = _in_order(self._heap)
            sent_back = itertools.takewhile(lambda each: each.job.position < position, queued)
            earlier += sum(not each.job.has_ended for each in sent_back)
        return earlier

    def _held(self) -> list[Turn]:
        """Return the jobs whose bodies are held for a slot, in order."""
        held = [turn for turn in self._without_slot() if turn.held_since is not None]
        return sorted(held, key=lambda turn: turn.job.position)

    def _without_slot(self) -> list[Turn]:
        """Return the jobs whose bodies are under way or held, and need slots."""
        uploads = [turn for turn in self._uploads.values() if not turn.job.has_ended]
        return [turn for turn in uploads if not self._has_slot(turn)]

    def _grant_held(self) -> None:
        """Give free slots to the bodies that are held for them, in order."""
        for turn in self._held():
            # Others may have spent the credit since it began: then it is taken back.
            if not self._account.is_exhausted and not self._acquire(turn):
                break
            if turn.granted is not None:
                turn.granted.set()

    def _may_run_ahead(self, turn: Turn) -> bool:
        """Return whether a turn's upload may start before it has a slot."""
        is_paused = self._account.retry_at() is not None
        if turn.granted is not None or turn.track.content is None or is_paused:
            return False
        if self._account.is_shared and self._free > len(self._without_slot()):
            return False  # there seems to be a slot for it: the account is being asked
        under_way = [each.left for each in self._uploads.values() if each.left is not None]
        held = sum(turn.held_since is not None for turn in self._without_slot())
        return self._ahead.may_start(
            self._estimate_size(turn),
            free=self._free,
            uploading=under_way,
            held=held,
            running=[_running(job) for job in self._holders.values() if _is_accepted(job)],
        )

    def _estimate_size(self, turn: Turn) -> int:
        content = turn.track.content
        return len(content) if isinstance(content, bytes) else self._latest_size

    def on_upload_began(self, turn: Turn, size: int | None) -> Hold | None:
        """Count a body that begins to go out; return what holds its end if it has no slot yet."""
        self._uploads[turn.job.id] = turn
        turn.left, turn.sent = size or 0, 0
        self._latest_size = size or self._latest_size
        self._uplink.started(now=anyio.current_time())
        if self._has_slot(turn):
            return None
        turn.granted = anyio.Event()
        wait, began = partial(self._wait_held, turn), partial(self._on_held, turn)
        return Hold(wait, drip=self._ahead.drip, began=began)

    def on_upload_progress(self, turn: Turn, sent: int) -> None:
        """Count bytes of a track that have gone out."""
        if turn.left is not None:
            self._uplink.sent(sent - turn.sent, now=anyio.current_time())
            turn.left -= sent - turn.sent
            turn.sent = sent

    def on_upload_ended(self, turn: Turn, *, delivered: bool, refused: bool) -> None:
        """Count a body that is out, or was broken off; learn from one that was held."""
        now = anyio.current_time()
        if self._uploads.pop(turn.job.id, None) is None:
            return
        if turn.left is not None:
            self._uplink.stopped(now=now)
        if not delivered and not self._has_slot(turn):
            self._cancel_reservation(turn)
            held_for = math.inf if turn.held_since is None else now - turn.held_since
            if refused:
                self._ahead.refused_early()
            elif held_for < self._ahead.max_hold and not turn.scope.cancel_called:
                self._ahead.closed(held_for=held_for)
        turn.is_ahead, turn.left, turn.held_since, turn.granted = False, None, None, None
        self._wakeup.set()

    def _on_held(self, turn: Turn) -> None:
        """Count a body that is out but for its end, and show that it waits."""
        now = anyio.current_time()
        if self._event_bus:
            total = turn.sent + (turn.left or 0)
            waiting = turn.job.make_event(
                Uploading, sent=turn.sent, total=total, is_waiting_for_slot=True
            )
            self._event_bus.publish(waiting)
        self._uplink.stopped(now=now)
        turn.left, turn.held_since = None, now
        self._wakeup.set()

    async def _wait_held(self, turn: Turn, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            if turn.granted is not None:
                await turn.granted.wait()
        if self._has_slot(turn):
            return True
        if self._account.is_exhausted:
            raise TransportTimeoutError(f"{turn.job.title} was held when the credit ran out.")
        if anyio.current_time() - (turn.held_since or 0.0) > self._ahead.max_hold:
            raise TransportTimeoutError(f"{turn.job.title} was held for a slot for too long.")
        return False

    async def wait_for_slot(self, turn: Turn) -> None:
        """Wait until a submit under way has a slot; at once if it has one, or runs ahead of it."""
        if not turn.is_ahead and not self._has_slot(turn):
            turn.granted = anyio.Event()
            self.push(turn)
            await turn.granted.wait()

    async def wait_for_space(self) -> None:
        """Wait until the queue is short enough for one more track."""
        while len(self._heap) > LOW_WATER_MARK:
            await self._shrunk.wait()

    def force_acquire(self, job: Job) -> None:
        """Count a job that is known to run, even past the limit."""
        if not job.has_ended and job.id not in self._holders:
            self._account.force_acquire(job.record.id)
            self._holders[job.id] = job

    def acquire_if_free(self, job: Job) -> None:
        """Count a job that may be running, unless all slots are taken by jobs that are."""
        if self._account.taken < self._account.limit:
            self.force_acquire(job)

    def on_accepted(self, turn: Turn, estimate: float | None) -> None:
        """Learn from an accepted submit."""
        self._settle(turn, estimate)
        self._account.on_accepted(turn.job.record.id, has_queue=bool(self._heap))

    def on_not_accepted(self, turn: Turn, error: MusicGPTError) -> None:
        """Learn from a submit that MusicGPT did not accept, before its slot is freed."""
        self._cancel_reservation(turn)
        if self._has_slot(turn):
            self._account.on_rejected(
                turn.job.record.id,
                retry_after=error.retry_after,
                full=error.status == 429,
                began=turn.began,
            )
        elif error.retry_after is not None:  # refused ahead of a slot: no new limit
            self._account.pause(error.retry_after)
        self._wakeup.set()

    def on_unknown(self, turn: Turn) -> None:
        """Count a submit whose response was lost: it may be paid for."""
        self._settle(turn, None)

    def on_ended(self, turn: Turn) -> None:
        """Take back what a submit reserved that came to nothing."""
        self._cancel_reservation(turn)
        if self._uploads.get(turn.job.id) is turn:  # its upload never began
            del self._uploads[turn.job.id]
            turn.is_ahead, turn.left = False, None
            self._wakeup.set()

    def queued(self) -> list[Turn]:
        """Return what has no slot, in order: what is in the queue and what runs ahead."""
        queued = [turn for _, _, turn in self._heap if not turn.job.has_ended]
        queued += self._without_slot()
        return sorted(queued, key=lambda turn: turn.job.position)

    def _settle(self, turn: Turn, estimate: float | None) -> None:
        if turn.has_reserved:
            turn.has_reserved = False
            self._account.settle(turn.job.record.id, estimate)
            self._wakeup.set()

    def _cancel_reservation(self, turn: Turn) -> None:
        if turn.has_reserved:
            turn.has_reserved = False
            self._account.cancel()
            self._wakeup.set()


def _in_order(heap: Sequence[tuple[int, int, Turn]]) -> Iterator[Turn]:
    """Yield the turns of a heap in order, without sorting all of it."""
    frontier = [(heap[0], 0)] if heap else []
    while frontier:
        (_, _, turn), index = heapq.heappop(frontier)
        yield turn
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heapq.heappush(frontier, (heap[child], child))


def _is_accepted(job: Job) -> bool:
    return job.record.state is JobState.PROCESSING


def _running(job: Job) -> Running:
    accepted_at = job.record.accepted_at
    age = 0.0 if accepted_at is None else max(time.time() - accepted_at, 0.0)
    eta = job.record.eta
    known = eta if eta is not None and eta >= 0.0 else None
    return Running(None if known is None else max(known, 1.0), age, accepted_at is not None)
