"""Tracks through a slow uplink and a few slots on a virtual clock: who waits for whom.

The uplink is shared evenly by the bodies under way. The vendor counts a conversion when its whole
form has come in, and the client sees an end a moment after it. A body whose end is held back may be
closed by the server after a while; it is sent again then.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from typing import Protocol

import attrs

from musicgpt_async._rules.durations import DurationModel
from musicgpt_async._rules.slots import Slots
from musicgpt_async._rules.upload_ahead import Running, Uplink, UploadAhead

RATE = 1_000_000.0  # bytes a second of the uplink
_CHECK = 1.0  # seconds between two questions whether the next upload may start
NEVER = math.inf


@attrs.define(eq=False)
class Track:
    """One track: what it takes, and how far it is."""

    number: int
    size: int
    eta: float
    actual: float
    left: float = 0.0
    held_since: float = NEVER
    began: float = NEVER


class Rule(Protocol):
    """Decides which upload starts."""

    def may_start(
        self, size: int, *, free: int, uploading: Sequence[int], held: int, running: list[Running]
    ) -> bool:
        """Whether the next upload in the queue may start now."""


class SlotFirst:
    """A slot is taken before the upload, as clients do."""

    def may_start(
        self, size: int, *, free: int, uploading: Sequence[int], held: int, running: list[Running]
    ) -> bool:
        """Whether a slot is free."""
        del size, running
        return len(uploading) + held < free


class Fixed:
    """So many uploads ahead, whatever is known."""

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead

    def may_start(
        self, size: int, *, free: int, uploading: Sequence[int], held: int, running: list[Running]
    ) -> bool:
        """Whether so many are not ahead yet."""
        del size, running
        return len(uploading) + held < free + self._ahead


@attrs.frozen
class Outcome:
    """A whole batch."""

    seconds: float
    ideal: float
    sent_twice: float  # bytes sent again, of those needed
    refused: int
    held: list[float]

    @property
    def ratio(self) -> float:
        """The batch's time over the ideal."""
        return self.seconds / self.ideal


def tracks(count: int, *, share: float, sigma: float, seed: int) -> list[Track]:
    """Draw tracks whose upload takes this share of the processing time, on average."""
    rng = random.Random(seed)
    drawn = []
    for number in range(count):
        eta = rng.uniform(60.0, 150.0)
        size = int(105.0 * share * RATE * rng.uniform(0.7, 1.3))
        drawn.append(Track(number, size, eta, eta * rng.lognormvariate(0.0, sigma)))
    return drawn


def ideal(batch: Sequence[Track], parallel: int) -> float:
    """The time in which each body is there when its slot is, in the order of the queue."""
    slots, there = [0.0] * parallel, 0.0
    for track in batch:
        there += track.size / RATE
        heapq.heappush(slots, max(heapq.heappop(slots), there) + track.actual)
    return max(slots)


class Batch:
    """One batch through the uplink, the slots and a rule."""

    def __init__(
        self,
        batch: Sequence[Track],
        *,
        parallel: int,
        rule: Rule | None = None,
        closes_after: float = NEVER,
        late: float = 0.3,
        given: bool = True,
        seed: int = 1,
    ) -> None:
        self._durations = DurationModel()
        self._uplink = Uplink()
        self._learned = UploadAhead(self._durations, self._uplink)
        self._rule: Rule = rule or self._learned
        self._batch, self._parallel = batch, parallel
        self._closes_after, self._late = closes_after, late
        self._rng = random.Random(seed)
        self._slots = Slots(parallel=parallel if given else None)
        self._refused = 0
        self._queue = [(track.number, track) for track in batch]
        self._uploading: list[Track] = []
        self._held: list[Track] = []
        self._running: list[Track] = []
        self._ends: list[tuple[float, int, Track]] = []
        self._now = self._again = 0.0
        self._holds: list[float] = []

    def run(self) -> Outcome:
        """Run until every track is seen done."""
        while self._queue or self._uploading or self._held or self._ends:
            self._start()
            self._advance(self._next())
            self._finish_uploads()
            self._end_jobs()
            self._commit()
            self._give_up()
        needed = sum(track.size for track in self._batch)
        goal = ideal(self._batch, self._parallel)
        return Outcome(self._now, goal, self._again / needed, self._refused, self._holds)

    def _start(self) -> None:
        while self._queue and self._rule.may_start(
            self._queue[0][1].size,
            free=max(self._slots.limit - self._slots.taken, 0),
            uploading=[int(each.left) for each in self._uploading],
            held=len(self._held),
            running=[Running(each.eta, self._now - each.began) for each in self._running],
        ):
            track = heapq.heappop(self._queue)[1]
            track.left = track.size
            self._uplink.started(now=self._now)
            self._uploading.append(track)

    def _next(self) -> float:
        moments = [self._ends[0][0]] if self._ends else []
        if self._uploading:
            least = min(each.left for each in self._uploading)
            moments.append(self._now + least * len(self._uploading) / RATE)
        if self._queue:
            moments.append(self._now + _CHECK)
        moments += [each.held_since + self._longest for each in self._held]
        return max(min(moments), self._now)

    @property
    def _longest(self) -> float:
        return min(self._learned.max_hold, self._closes_after)

    def _advance(self, moment: float) -> None:
        if self._uploading:
            passed = moment - self._now
            self._uplink.sent(int(passed * RATE), now=moment)
            for each in self._uploading:
                each.left -= passed * RATE / len(self._uploading)
        self._now = moment

    def _finish_uploads(self) -> None:
        for track in [each for each in self._uploading if each.left < 1.0]:
            self._uploading.remove(track)
            track.held_since = self._now
            self._held.append(track)
            self._uplink.stopped(now=self._now)

    def _end_jobs(self) -> None:
        while self._ends and self._ends[0][0] <= self._now:
            track = heapq.heappop(self._ends)[2]
            self._running.remove(track)
            self._slots.release()
            age = self._now - track.began
            self._durations.observe(track.eta, 0.98 * age, age)

    def _commit(self) -> None:
        self._held.sort(key=lambda each: each.number)
        while self._held and self._slots.try_acquire(now=self._now):
            track = self._held.pop(0)
            self._holds.append(self._now - track.held_since)
            if len(self._running) < self._parallel:
                self._accept(track)
            else:
                self._refuse(track)

    def _accept(self, track: Track) -> None:
        track.began = self._now
        self._running.append(track)
        self._slots.on_accepted(has_queue=bool(self._queue or self._held))
        seen = self._now + track.actual + self._rng.expovariate(1.0 / self._late)
        heapq.heappush(self._ends, (seen, track.number, track))

    def _refuse(self, track: Track) -> None:
        self._refused += 1
        self._slots.on_rejected(now=self._now, retry_after=None)
        self._slots.release()
        self._again += track.size
        heapq.heappush(self._queue, (track.number, track))

    def _give_up(self) -> None:
        for track in [e for e in self._held if self._now - e.held_since >= self._longest - 1e-6]:
            self._held.remove(track)
            self._again += track.size
            heapq.heappush(self._queue, (track.number, track))
            if self._closes_after <= self._learned.max_hold:
                self._learned.closed(held_for=self._closes_after)
