"""What it costs to learn the account's limit, in time and in refused uploads."""

from __future__ import annotations

import heapq
from collections import deque

import pytest

from musicgpt_async._rules.slots import Slots
from musicgpt_async.models import Limits

UPLOAD, WORK = 4.0, 60.0  # seconds


def run_batch(*, parallel: int, tracks: int) -> tuple[float, int]:
    """Submit tracks to an account of which nothing was said: seconds taken, uploads refused."""
    slots, queue = Slots(), deque(range(tracks))
    uploads: list[tuple[float, int]] = []
    ends: list[float] = []
    now, refused = 0.0, 0
    while queue or uploads or ends:
        while queue and slots.try_acquire(now=now):
            heapq.heappush(uploads, (now + UPLOAD, queue.popleft()))
        retry = slots.retry_at() if queue else None
        moments = [at for at, _ in uploads[:1]] + ends[:1] + ([] if retry is None else [retry])
        now = max(now, min(moments))
        while ends and ends[0] <= now:
            heapq.heappop(ends)
            slots.release()
        while uploads and uploads[0][0] <= now:
            _, track = heapq.heappop(uploads)
            if len(ends) < parallel:
                slots.on_accepted(has_queue=bool(queue))
                heapq.heappush(ends, now + WORK)
            else:
                refused += 1
                slots.on_rejected(now=now, retry_after=None)
                slots.release()
                queue.appendleft(track)
    return now, refused


# (seconds, refused uploads) of the rule that began at 2 and grew by one, measured with this
# simulation.
BEFORE = {
    (3, 5): (128.0, 1),
    (3, 10): (256.0, 1),
    (3, 20): (448.0, 1),
    (3, 40): (896.0, 2),
    (3, 100): (2176.0, 3),
    (10, 5): (76.0, 0),
    (10, 10): (96.0, 0),
    (10, 20): (160.0, 1),
    (10, 40): (288.0, 2),
    (10, 100): (672.0, 3),
}


@pytest.mark.parametrize(("parallel", "tracks"), BEFORE)
def test_learning_from_one_costs_a_larger_account_no_more(parallel: int, tracks: int) -> None:
    """Neither more time than it takes to upload one track, nor more refused uploads."""
    seconds, refused = run_batch(parallel=parallel, tracks=tracks)
    before, refused_before = BEFORE[parallel, tracks]
    assert seconds <= before + (UPLOAD if parallel < 10 else 0.0)
    assert refused <= refused_before


def test_the_free_account_is_learned_by_few_refusals() -> None:
    """Who may run one job at a time has fewer uploads refused than by the rule before."""
    assert run_batch(parallel=1, tracks=40)[1] < 7


def test_the_presets_are_those_of_august_2026() -> None:
    """1, 3 and 10 in parallel; 20, 200 and 500 polls a minute."""
    plans = [Limits.FREE, Limits.PLUS, Limits.PRO]
    assert [each.parallel for each in plans] == [1, 3, 10]
    assert [each.polls_per_minute for each in plans] == [20, 200, 500]
