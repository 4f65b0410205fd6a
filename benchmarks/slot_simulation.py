"""Tracks through an account's slots on a virtual clock, beside another client that comes and goes.

The vendor counts a conversion when its whole form has come in, and refuses it (429) when the
account is full. The end of a job is seen a moment after it.
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
    """What happened to a client that shared its account for a while."""

    refused_meanwhile: int
    accepted_meanwhile: int
    refused_after: int
    recovery: float  # seconds from the other's leaving to the whole limit


def share_account(
    *,
    parallel: int,
    others: Callable[[float], int],
    until: float,
    given: bool,
    seconds: float = 20.0,
    seed: int = 1,
) -> Shared:
    """Run an endless line of tracks on an account of which another client has a part.

    Args:
        parallel: Conversions that the vendor allows.
        others: How many the other client runs, by time; none from `until` on.
        until: When it leaves.
        given: Whether the client was told how many the vendor allows.
        seconds: How long a job takes.
        seed: Of everything drawn.
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
