"""Simulate tracks on an account that is shared with another client, on a virtual clock.

MusicGPT counts a conversion when it has received the complete form, and refuses it (429) if the
account is full. The client notices the end of a job shortly after it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import attrs

from musicgpt_async._rules.slots import Slots


@attrs.frozen
class Shared:
    """The result of a client that shared its account for a while."""

    refused_meanwhile: int
    accepted_meanwhile: int
    refused_after: int
    recovery: float  # seconds from the end of the other client to the full limit


def share_account(
    *,
    parallel: int,
    others: Callable[[float], int],
    until: float,
    given: bool,
    seconds: float = 20.0,
    seed: int = 1,
) -> Shared:
    """Simulate an endless queue of tracks on an account that another client uses too.

    Args:
        parallel: Maximum number of unfinished conversions.
        others: Number of the other client's conversions by time; 0 from `until` on.
        until: Time in seconds at which the other client stops.
        given: Whether the client knows the limit.
        seconds: Duration of a job.
        seed: Seed of all random numbers.
    """
    rng = random.Random(seed)
    slots = Slots(parallel=parallel if given else None)
    events: list[tuple[float, int, str]] = []
    numbers = itertools.count()
    running, refused, accepted = 0, [0, 0], [0, 0]
    now, warm_up = 0.0, 400.0

    def at(moment: float, what: str) -> None:
        heapq.heappush(events, (moment, next(numbers), what))

    while now < until + warm_up + 3600.0:
        if now >= until + warm_up and slots.limit >= parallel:
            return Shared(refused[0], accepted[0], refused[1], now - until - warm_up)
        while slots.try_acquire(now=now):
            at(now + rng.uniform(1.0, 4.0), "arrives")
        moments = [events[0][0]] if events else []
        if (again := slots.retry_at()) is not None:
            moments.append(again)
        now = max(now, min(moments))
        if not events or events[0][0] > now:
            continue
        _, _, what = heapq.heappop(events)
        late = now >= until + warm_up
        if what == "ends":
            running -= 1
            slots.release()
            continue
        there = others(now - warm_up) if warm_up <= now and not late else 0
        if running + there >= parallel:
            refused[late] += 1
            slots.on_rejected(now=now, retry_after=None)
            slots.release()
        else:
            running += 1
            accepted[late] += 1
            slots.on_accepted(has_queue=True)
            at(now + seconds * rng.lognormvariate(0.0, 0.2) + 0.5, "ends")
    return Shared(refused[0], accepted[0], refused[1], 3600.0)
