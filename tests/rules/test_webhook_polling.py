"""Polls of jobs whose webhooks may be lost: the schedule and the reliability of a receiver."""

from __future__ import annotations

import importlib.util
import math
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.durations import DurationDistribution
from musicgpt_async._rules.polling import Schedule
from musicgpt_async._rules.receiver_reliability import ReceiverReliability

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """The benchmark's simulated vendor that sends webhooks."""
    for name in ("waiting_simulation", "webhook_simulation"):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["webhook_simulation"]


def heard(arrivals: int = 50) -> ReceiverReliability:
    """A receiver at which this many deliveries have arrived, half a second late."""
    reliability = ReceiverReliability()
    for _ in range(arrivals):
        reliability.arrived(now=0.0, within=0.5)
    return reliability


def schedule(reliability: ReceiverReliability) -> Schedule[str]:
    """A schedule of the pro plan whose jitter is the same on every run."""
    return Schedule(polls_per_minute=500.0, rng=random.Random(1), reliability=reliability)


def polls(waiting: Schedule[str], *, until: float) -> list[float]:
    """Make every poll until a moment; none sees an end."""
    made: list[float] = []
    while (at := waiting.next_due()) is not None and at <= until:
        for key in waiting.take_due(at):
            made.append(at)
            waiting.on_unfinished(key, now=at)
    return made


def test_a_receiver_not_heard_from_is_polled_for() -> None:
    """In doubt a job with a webhook is polled nearly as one without."""
    counts = []
    for webhook in (None, "token"):
        waiting = schedule(ReceiverReliability())
        waiting.add("job", now=0.0, eta=100.0, webhook=webhook)
        counts.append(len(polls(waiting, until=200.0)))
    assert 0.5 * counts[0] < counts[1] <= counts[0]


def test_a_working_receiver_reports_the_end() -> None:
    """If deliveries arrive, nothing is polled until nearly every job has ended."""
    waiting = schedule(heard())
    waiting.add("job", now=0.0, eta=100.0, webhook="token")
    assert polls(waiting, until=130.0) == []
    assert polls(waiting, until=1000.0)


def test_what_is_learned_moves_the_polls_that_are_planned() -> None:
    """Losses move the polls of the jobs that wait already, and an arrival moves them back."""
    reliability = heard()
    waiting = schedule(reliability)
    for n in range(5):
        waiting.add(f"{n}", now=0.0, eta=100.0, webhook=f"token {n}")
    relied_on = waiting.next_due() or 0.0
    for n in range(3):
        reliability.missed(n, low=0.0, high=50.0)
    waiting.take_due(50.0)
    doubted = waiting.next_due() or 0.0
    assert doubted < relied_on - 30.0
    reliability.arrived_late(2, now=51.0)
    waiting.take_due(51.0)
    assert (waiting.next_due() or 0.0) > doubted + 20.0


def test_a_delivery_repeated_for_ever_costs_few_polls() -> None:
    """A job with ten deliveries per second is polled less and less often."""
    waiting = schedule(heard())
    waiting.add("job", now=0.0, eta=1000.0, webhook="token")
    made, now = 0, 0.0
    while now < 120.0:
        waiting.delivered("job", now=now)
        for key in waiting.take_due(now):
            made += 1
            waiting.on_unfinished(key, now=now)
        now += 0.1
    assert 5 <= made <= 12


def test_after_an_early_delivery_the_job_is_polled_for() -> None:
    """What has come does not come again: the rest is seen by polls alone."""
    early, polled = schedule(heard()), schedule(heard())
    early.add("job", now=0.0, eta=100.0, webhook="token")
    polled.add("job", now=0.0, eta=100.0)
    early.delivered("job", now=1.0)
    counts = [len(polls(waiting, until=200.0)) for waiting in (early, polled)]
    assert counts[0] >= counts[1]


def test_a_delivery_after_the_end_still_arrived() -> None:
    """A delivery after the poll does not count as lost, and its delay is learned."""
    reliability = ReceiverReliability()
    waiting = schedule(reliability)
    for n in range(20):
        begun = 1000.0 * n
        waiting.add(f"{n}", now=begun, eta=100.0, webhook=f"token {n}")
        for at in (90.0, 92.0):
            waiting.wake(f"{n}", now=begun + at)
            waiting.take_due(begun + at)
            waiting.on_unfinished(f"{n}", now=begun + at)
        waiting.on_finished(f"{n}", now=begun + 92.0)
        reliability.arrived_late(f"token {n}", now=begun + 97.0)
    assert reliability.loss < 0.01
    assert reliability.delay == pytest.approx(5.0, abs=1.0)


def test_a_job_that_ended_during_an_outage_teaches_nothing() -> None:
    """A resumed job that was finished already says nothing about the receiver."""
    reliability = heard()
    waiting = schedule(reliability)
    before = reliability.loss
    for age in (500.0, None):
        waiting.add("job", now=1000.0, eta=100.0, age=age, webhook="token")
        waiting.take_due(1000.0)
        waiting.on_finished("job", now=1000.0)
    assert reliability.loss == before


def test_silence_is_found_within_a_few_jobs_and_said_once() -> None:
    """A few losses in a row are enough, an arrival ends the silence, the next is said again."""
    reliability = heard()
    for begin in (100.0, 200.0):
        said = []
        for n in range(10):
            now = begin + 10.0 * n
            reliability.missed(f"{begin} {n}", low=now - 10.0, high=now)
            said.append(reliability.has_fallen_silent(now=now + 6.0))
        assert said.index(True) <= 3
        assert sum(said) == 1
        reliability.arrived(now=begin + 95.0, within=1.0)


def test_a_few_losses_are_no_silence() -> None:
    """A network that loses a third of the deliveries is not called silent."""
    rng, reliability = random.Random(1), ReceiverReliability()
    for n in range(300):
        if rng.random() < 0.33:
            reliability.missed(n, low=10.0 * n - 5.0, high=10.0 * n)
        else:
            reliability.arrived(now=10.0 * n, within=1.0)
        assert not reliability.has_fallen_silent(now=10.0 * n + 6.0)
    assert reliability.loss == pytest.approx(0.33, abs=0.1)


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["arrived", "missed", "late"]), st.integers(0, 5), st.floats(0.0, 1e6)
        ),
        max_size=50,
    )
)
def test_whatever_comes_a_chance_stays_a_chance(events: list[tuple[str, int, float]]) -> None:
    """After any deliveries and losses the loss is a probability and the delay is bounded."""
    reliability, now = ReceiverReliability(), 0.0
    for what, key, seconds in events:
        now += seconds
        if what == "arrived":
            reliability.arrived(now=now, within=seconds)
        elif what == "missed":
            reliability.missed(key, low=now - seconds, high=now)
        else:
            reliability.arrived_late(key, now=now)
        reliability.has_fallen_silent(now=now)
        assert 0.0 < reliability.loss < 1.0
        assert 0.0 <= reliability.delay <= 60.0


@given(
    last=st.floats(0.0, 10.0),
    loss=st.floats(1e-4, 1.0),
    delay=st.floats(0.0, 5.0),
    worth=st.floats(1e-4, 10.0),
)
def test_the_more_is_lost_the_sooner_a_poll_is_worth_its_price(
    last: float, loss: float, delay: float, worth: float
) -> None:
    """With a webhook expected the next poll comes after the last, and not before polling's."""
    distribution = DurationDistribution(0.0, 0.35)
    then = distribution.next_poll(last, worth, 1e-3, loss, delay)
    assert last < then < math.inf
    assert then >= distribution.next_poll(last, worth, 1e-3) * (1.0 - 1e-9)


@pytest.mark.parametrize(("at_once", "plan"), [(2, 20.0), (5, 200.0), (10, 500.0)])
def test_what_lost_deliveries_cost(simulation: ModuleType, at_once: int, plan: float) -> None:
    """All delivered: about one poll a job; none: as polling; a tenth lost: two seconds at most."""
    jobs = simulation.draw(simulation.lognormal(0.3), 300, seed=3)

    def waited(is_lost: object) -> object:
        return simulation.wait_for(jobs, at_once=at_once, polls_per_minute=plan, is_lost=is_lost)

    polling = waited(None)
    assert waited(simulation.at_random(0.0)).since(50).polls_per_job <= 1.1
    assert waited(simulation.at_random(0.1)).mean <= 2.0
    silent = waited(simulation.at_random(1.0))
    assert silent.mean <= 1.3 * polling.mean
    assert silent.polls_per_job <= 1.05 * polling.polls_per_job
    died = waited(simulation.after(150))
    assert 150 < died.silence_reported_at <= 150 + at_once + 3
    assert died.since(150).mean <= 1.3 * polling.since(150).mean + 2.0
