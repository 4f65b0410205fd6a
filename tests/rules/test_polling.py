from __future__ import annotations

import itertools
import math
import random

import pytest
from factories.schedules import next_of, poll, schedule, taught, worst_minute

from musicgpt_async._rules.polling import Schedule
from musicgpt_async._rules.receiver_reliability import ReceiverReliability


def test_the_first_poll_follows_the_eta() -> None:
    """A fresh job is left alone until its end becomes likely, and looked at often then."""
    waiting = schedule()
    waiting.add("job", now=0.0, eta=100.0)
    polls = [at for at, _ in poll(waiting, {"job": 101.0}, until=1000.0)]
    assert polls[0] > 10.0
    assert len([at for at in polls if 80.0 < at < 101.0]) > 3 * len(
        [at for at in polls if at < 21.0]
    )
    assert len(waiting) == 0
    assert waiting.next_due() is None


def test_an_idle_budget_finds_the_end_soon() -> None:
    """A single job on a pro account is seen done within seconds of its end."""
    for end in (3.0, 60.0, 101.0, 180.0, 900.0):
        waiting = schedule()
        waiting.add("job", now=0.0, eta=100.0)
        last, _ = poll(waiting, {"job": end}, until=2000.0)[-1]
        assert last - end < 45.0


def test_how_long_jobs_take_is_learned() -> None:
    """If jobs take twice their eta, the polls move there."""
    moments = []
    for ratio in (0.5, 2.0):
        waiting = taught(ratio)
        waiting.add("job", now=1e6, eta=100.0)
        polls = poll(waiting, {"job": 1e6 + 100.0 * ratio}, until=1e6 + 1000.0)
        moments.append(sum(at for at, _ in polls) / len(polls) - 1e6)
    assert moments[0] < 60.0
    assert moments[1] > 130.0


def test_jobs_without_an_eta_are_kept_apart() -> None:
    """What jobs of unknown eta take says nothing about those whose eta is known."""
    plain, other = schedule(math.inf), taught(5.0, eta=None)
    for waiting in (plain, other):
        waiting.add("job", now=1e6, eta=100.0)
    assert abs(next_of(plain) - next_of(other)) < 5.0


@pytest.mark.parametrize("eta", [-1.0, 0.0, math.nan, math.inf, None])
def test_an_eta_that_says_nothing_works_too(eta: float | None) -> None:
    """MusicGPT's -1, and worse values, mean an unknown eta, and the end is found anyway."""
    waiting = schedule()
    waiting.add("job", now=0.0, eta=eta)
    last, _ = poll(waiting, {"job": 77.0}, until=1000.0)[-1]
    assert last - 77.0 < 15.0


def test_a_handle_of_unknown_age_is_polled_at_once() -> None:
    """Who attaches to an old job need not wait for an eta that passed long ago."""
    waiting = schedule()
    waiting.add("attached", now=5.0, eta=None, age=None)
    assert next_of(waiting) == 5.0
    assert waiting.take_due(5.0) == ["attached"]


def test_many_attached_handles_do_not_hold_up_a_job_about_to_end() -> None:
    """First polls of a thousand unknown handles leave every second poll to the others."""
    waiting: Schedule[str] = schedule(60.0)
    for n in range(1000):
        waiting.add(f"attached {n}", now=0.0, eta=None, age=None)
    waiting.add("job", now=0.0, eta=20.0)
    polls = poll(waiting, {"job": 20.0}, until=60.0)
    assert "job" in {key for _, key in polls}
    assert min(at for at, key in polls if key == "job" and at >= 20.0) < 40.0


def test_fifty_concurrent_wakes_are_polled_at_once() -> None:
    """Deliveries spend the unspent budget in one burst, and wait for no tick."""
    waiting = schedule(500.0)
    for n in range(50):
        waiting.add(f"{n}", now=0.0, eta=100.0, webhook="token")
    for n in range(50):
        waiting.wake(f"{n}", now=10.0 + n * 1e-4)
    assert next_of(waiting) == 10.0
    assert len(waiting.take_due(10.0 + 50e-4)) == 50


def test_a_burst_of_wakes_keeps_to_the_budget() -> None:
    """Wakes beyond the minute's budget wait until it allows them, and none is lost."""
    waiting = schedule(20.0)
    for n in range(50):
        waiting.add(f"{n}", now=0.0, eta=100.0, webhook="token")
        waiting.wake(f"{n}", now=1.0)
    polls = poll(waiting, dict.fromkeys(map(str, range(50)), 0.0), until=500.0)
    assert {key for _, key in polls} == set(map(str, range(50)))
    assert worst_minute(at for at, _ in polls) == 20


def test_wakes_make_an_unknown_budget_grow() -> None:
    """If the budget is unknown, deliveries beyond the free plan wait a moment."""
    waiting: Schedule[int] = Schedule(rng=random.Random(1))
    for key in range(40):
        waiting.add(key, now=0.0, eta=100.0, webhook="token")
    for key in range(40):
        waiting.wake(key, now=50.0)
    seen, now = 0, 50.0
    while seen < 40 and now < 55.0:
        for key in waiting.take_due(now):
            waiting.on_success(now=now)
            waiting.on_finished(key, now=now)
            seen += 1
        now += 0.1
    assert seen == 40


def test_a_wake_goes_ahead_of_all_others() -> None:
    """A woken job is polled before jobs that have been due for long."""
    waiting = schedule(60.0)
    for n in range(100):
        waiting.add(f"{n}", now=0.0, eta=10.0)
    poll(waiting, {}, until=30.0)
    waiting.wake("77", now=30.0)
    assert waiting.take_due(30.0)[0] == "77"


def test_a_wake_during_a_poll_is_polled_right_after() -> None:
    """A delivery that comes while the job is being asked after is not forgotten."""
    waiting = schedule()
    waiting.add("job", now=0.0, eta=None, age=None)
    assert waiting.take_due(0.0) == ["job"]
    waiting.wake("job", now=0.1)
    assert waiting.next_due() is None
    waiting.on_unfinished("job", now=0.2)
    assert next_of(waiting) == 0.1
    assert waiting.take_due(0.2) == ["job"]


def test_a_delayed_wake_asks_again_shortly() -> None:
    """The API that lags behind its own delivery is asked again after the delay."""
    waiting = schedule()
    waiting.add("job", now=0.0, eta=100.0, webhook="token")
    waiting.wake("job", now=10.0, delay=0.5)
    assert next_of(waiting) == 10.5
    assert waiting.take_due(10.4) == []
    assert waiting.take_due(10.5) == ["job"]


def test_a_forged_delivery_teaches_nothing() -> None:
    """A delivery that the API did not confirm does not count as the job's end."""
    plain, forged = schedule(math.inf), schedule(math.inf)
    for waiting in (plain, forged):
        for n in range(30):
            waiting.add(f"{n}", now=0.0, eta=100.0)
            if waiting is forged:
                waiting.delivered(f"{n}", now=1.0)
        poll(waiting, dict.fromkeys(map(str, range(30)), 100.0), until=1000.0)
        waiting.add("job", now=2000.0, eta=100.0)
    assert abs(next_of(plain) - next_of(forged)) < 10.0


def test_ordinary_polls_come_without_bursts() -> None:
    """After any idle time of the budget, ordinary polls keep their interval."""
    waiting = schedule(60.0)
    for n in range(30):
        waiting.add(f"{n}", now=0.0, eta=100.0)
    polls = [at for at, _ in poll(waiting, {}, until=200.0)]
    assert min(b - a for a, b in itertools.pairwise(polls)) > 0.9
    assert len([at for at in polls if 80.0 <= at < 140.0]) >= 58


def test_webhooks_are_kept_a_reserve() -> None:
    """If deliveries arrive, ordinary polls leave a tenth of the budget for them, else none."""
    polls = []
    for arrivals in (0, 3):
        reliability = ReceiverReliability()
        for _ in range(arrivals):
            reliability.arrived(now=0.0, within=1.0)
        waiting: Schedule[str] = Schedule(
            polls_per_minute=60.0, rng=random.Random(1), reliability=reliability
        )
        for n in range(30):
            waiting.add(f"{n}", now=0.0, eta=10.0)
        waiting.add("hooked", now=0.0, eta=100.0, webhook="token")
        polls.append([at for at, _ in poll(waiting, {}, until=60.0)])
    waiting.delivered("hooked", now=60.0)
    assert len(polls[1]) <= 54 < len(polls[0])
    assert next_of(waiting) == 60.0


@pytest.mark.parametrize("age", [math.nan, math.inf])
def test_an_age_that_says_nothing_is_unknown(age: float) -> None:
    """A job whose recorded age is invalid is polled at once, and no heap entry is lost."""
    waiting = schedule()
    waiting.add("job", now=5.0, eta=100.0)
    waiting.add("resumed", now=5.0, eta=100.0, age=age)
    assert waiting.take_due(5.0) == ["resumed"]


def test_the_first_poll_of_an_attached_job_waits_for_no_other() -> None:
    """However many questions and attached jobs were before it, it is polled next."""
    waiting = schedule(60.0)
    for n in range(200):
        waiting.add(f"{n}", now=0.0, eta=None, age=None)
        waiting.remove(f"{n}")
    waiting.add("job", now=10.0, eta=100.0)
    waiting.add("attached", now=10.0, eta=None, age=None)
    assert next_of(waiting) == 10.0
    assert waiting.take_due(10.0) == ["attached"]


@pytest.mark.parametrize(
    ("told", "kept"),
    [(7.0, 7.0), (0.0, 1.0), (-3.0, 1.0), (99999.0, 60.0), (None, 10.0), (math.nan, 10.0)],
)
def test_a_429_pauses_everything(told: float | None, kept: float) -> None:
    """After a 429 not even a wake is looked at before the pause ends, which is never absurd."""
    waiting = schedule()
    waiting.add("slow", now=0.0, eta=None, age=None)
    waiting.add("woken", now=0.0, eta=100.0)
    waiting.take_due(0.0)
    waiting.on_throttled(now=0.0, retry_after=told)
    waiting.on_unfinished("slow", now=0.0)
    waiting.wake("woken", now=0.1)
    assert waiting.take_due(kept - 0.01) == []
    assert next_of(waiting) == kept
    assert waiting.take_due(kept)[0] == "woken"
    assert waiting.polls_per_minute < 500.0


def test_many_429s_of_one_burst_count_once() -> None:
    """Polls that were in flight together count as one refusal, not ten."""
    once, often = schedule(), schedule()
    once.on_throttled(now=0.0, retry_after=5.0)
    for _ in range(10):
        often.on_throttled(now=0.0, retry_after=5.0)
    assert once.polls_per_minute == often.polls_per_minute


def test_success_restores_a_configured_budget() -> None:
    """After another client has stopped, the configured budget is used again, and no more."""
    waiting = schedule(100.0)
    for n in range(100):
        waiting.add(f"{n}", now=0.0, eta=30.0)
    waiting.on_throttled(now=0.0, retry_after=1.0)
    lowered = waiting.polls_per_minute
    poll(waiting, {}, until=3600.0)
    assert lowered < 100.0 == waiting.polls_per_minute


def test_an_unknown_budget_begins_at_the_free_plan_and_stays_there_for_two_jobs() -> None:
    """Two jobs can belong to any plan, so no refusal is risked for them."""
    waiting = schedule(None)
    for n in range(2):
        waiting.add(f"{n}", now=0.0, eta=100.0)
    polls = poll(waiting, {}, until=3600.0)
    assert waiting.polls_per_minute == 20.0
    assert worst_minute(at for at, _ in polls) <= 20


def test_an_unknown_budget_is_found_by_one_refusal() -> None:
    """With many jobs the estimate rises to the actual limit, and settles below it."""
    waiting = schedule(None)
    for n in range(200):
        waiting.add(f"{n}", now=0.0, eta=100.0)
    made: list[float] = []
    refusals = []
    while (at := next_of(waiting)) < 3600.0:
        for key in waiting.take_due(at):
            if sum(then > at - 60.0 for then in made[-300:]) >= 200:
                refusals.append(at)
                waiting.on_throttled(now=at, retry_after=None)
            else:
                made.append(at)
                waiting.on_success(now=at)
            waiting.on_unfinished(key, now=at)
    assert refusals[0] < 600.0
    assert len(refusals) < 20
    assert 150.0 < waiting.polls_per_minute <= 210.0


def test_no_budget_at_all_is_possible() -> None:
    """An unlimited budget polls whenever a poll is worth its price."""
    waiting = schedule(math.inf)
    for n in range(100):
        waiting.add(f"{n}", now=0.0, eta=None, age=None)
    assert len(waiting.take_due(0.0)) == 100


def test_wake_ups_are_gathered_into_ticks() -> None:
    """A thousand jobs and no budget wake the caller once a tick at most."""
    waiting = schedule(math.inf, tick=0.1)
    for n in range(1000):
        waiting.add(f"{n}", now=0.0, eta=60.0)
    polls = [at for at, _ in poll(waiting, {}, until=60.0)]
    assert len(set(polls)) <= 601
    assert len(polls) > 5 * len(set(polls))


def test_a_short_eta_is_not_taken_at_its_word() -> None:
    """A job of one second is polled throughout it, and less often when it is overdue."""
    waiting = schedule(math.inf)
    waiting.add("job", now=0.0, eta=1.0)
    polls = [at for at, _ in poll(waiting, {}, until=1000.0)]
    early = [at for at in polls if at < 1.0]
    assert early[0] < 0.25
    assert max(b - a for a, b in itertools.pairwise(early)) < 0.25
    assert polls[-1] - polls[-2] > 5.0


def test_a_small_budget_waits_for_no_tick() -> None:
    """If polls are rare enough, each is sent at its own time."""
    waiting = schedule(20.0, tick=1.0)
    waiting.add("job", now=0.0, eta=100.0)
    assert next_of(waiting) != round(next_of(waiting))


def test_a_budget_below_one_is_refused() -> None:
    """An account that may never poll is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least 1"):
        schedule(0.5)


def test_removed_jobs_are_not_kept_in_memory() -> None:
    """Ten thousand removed jobs leave nothing in memory, however late their polls were."""
    waiting = schedule()
    waiting.add("first", now=0.0, eta=1.0)
    for n in range(10_000):
        waiting.add(f"{n}", now=0.0, eta=1e6, webhook="token")
        waiting.wake(f"{n}", now=0.0, delay=1e6)
        waiting.remove(f"{n}")
    assert len(waiting) == 1
    assert len(waiting._polls) + len(waiting._wakes) < 200
