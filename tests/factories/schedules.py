"""Drive schedules of polls."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable

from musicgpt_async._rules.polling import Schedule


def schedule(polls_per_minute: float | None = 500.0, **settings: float) -> Schedule[str]:
    """A schedule whose jitter is the same on every run."""
    return Schedule(polls_per_minute=polls_per_minute, rng=random.Random(1), **settings)


def next_of(waiting: Schedule[str]) -> float:
    """Return the time of the next poll, which must exist."""
    at = waiting.next_due()
    assert at is not None
    return at


def poll(
    waiting: Schedule[str], ends: dict[str, float], *, until: float
) -> list[tuple[float, str]]:
    """Send every poll until a moment and end each job at its time; return the polls."""
    made: list[tuple[float, str]] = []
    while (at := waiting.next_due()) is not None and at <= until:
        for key in waiting.take_due(at):
            made.append((at, key))
            waiting.on_success(now=at)
            if ends.get(key, math.inf) <= at:
                waiting.on_finished(key, now=at)
            else:
                waiting.on_unfinished(key, now=at)
    return made


def taught(ratio: float, *, eta: float | None = 100.0) -> Schedule[str]:
    """A schedule that saw forty jobs take a ratio of their eta (or of 100 s)."""
    waiting = schedule(math.inf)
    for n in range(40):
        begun = n * 1000.0
        waiting.add(f"{n}", now=begun, eta=eta)
        poll(waiting, {f"{n}": begun + ratio * 100.0}, until=begun + 999.0)
    return waiting


def worst_minute(moments: Iterable[float]) -> int:
    """Return the largest number of polls in any sixty seconds."""
    window: deque[float] = deque()
    worst = 0
    for at in moments:
        window.append(at)
        while window[0] <= at - 60.0:
            window.popleft()
        worst = max(worst, len(window))
    return worst
