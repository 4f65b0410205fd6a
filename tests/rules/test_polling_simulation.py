"""How late ends are seen, by the benchmark's simulation."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from factories.schedules import schedule

from musicgpt_async._rules.polling import Schedule

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """The simulated vendor and clients of the benchmark."""
    name = "waiting_simulation"
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("sigma", "of_fixed", "of_exponential", "of_optimum"),
    [(0.15, 0.35, 0.3, 1.25), (0.3, 0.6, 0.35, 1.15), (0.6, 0.9, 0.5, 1.05)],
)
def test_delay_at_equal_polls(
    simulation: ModuleType,
    sigma: float,
    of_fixed: float,
    of_exponential: float,
    of_optimum: float,
) -> None:
    """Without a budget it beats other spacings at equal polls, and is near the optimum."""
    family, count = simulation.lognormal(sigma), 1200
    trade, sparse = (simulation.Trade.of(family, price, count) for price in (0.2, 0.4))
    assert trade.result.mean <= of_fixed * trade.fixed
    jobs = simulation.draw(family, count, seed=1)
    ratio = simulation.over_own_polls((trade, sparse), jobs, simulation.exponential)
    assert ratio <= of_exponential
    assert trade.late_mean <= of_optimum * simulation.optimum(sigma).delay_at(trade.late_polls)


@pytest.mark.parametrize("sigma", [0.15, 0.3, 0.6])
@pytest.mark.parametrize("given_budget", [20.0, None])
def test_delay_on_the_free_plan(
    simulation: ModuleType, sigma: float, given_budget: float | None
) -> None:
    """Two jobs with twenty polls per minute wait at most three seconds, and get no 429."""
    jobs = simulation.draw(simulation.lognormal(sigma), 300, seed=3)
    policy = simulation.Learned(schedule(given_budget))
    ours = simulation.simulate(policy, jobs, at_once=2, polls_per_minute=20.0)
    assert ours.mean <= 3.0
    assert ours.refused == 0


@pytest.mark.parametrize(("sigma", "bound"), [(0.15, 0.15), (0.3, 0.25), (0.6, 0.4)])
def test_delay_of_two_hundred_handles(simulation: ModuleType, sigma: float, bound: float) -> None:
    """With far more jobs than polls, the polls are sent when they are worth most."""
    jobs = simulation.draw(simulation.lognormal(sigma), 1000, seed=3)
    ours, sdk = (
        simulation.simulate(policy, jobs, at_once=200, polls_per_minute=500.0)
        for policy in (
            simulation.Learned(schedule(500.0)),
            simulation.Timers(simulation.every(3.0)),
        )
    )
    assert ours.mean <= bound * sdk.mean
    assert ours.refused == 0
    assert ours.worst_minute <= 500


STEM_GROUPS = (
    "eta half of the truth",
    "eta twice the truth",
    "5 % fail early",
    "10 % take three times",
    "two modes",
    "heavy tail",
    "drift",
    "eta says nothing",
    "eta says nothing, flat",
)


@pytest.mark.parametrize("family", STEM_GROUPS)
def test_durations_it_was_not_made_for(simulation: ModuleType, family: str) -> None:
    """On other distributions of durations it is never worse than a fixed interval, nor late."""
    assert set(STEM_GROUPS) == set(simulation.STEM_GROUPS)
    trade = simulation.Trade.of(simulation.STEM_GROUPS[family], 0.1, 1000)
    assert trade.result.mean <= trade.fixed
    assert trade.result.quantile(0.99) <= 30.0


def test_a_batch_on_an_account_of_which_nothing_was_said(simulation: ModuleType) -> None:
    """A hundred tracks on the free plan: no 429 on byId, few on submit, the slots busy."""
    account = simulation.Batch(parallel=2, polls_per_minute=20.0, tracks=100).run()
    assert account.polls_refused == 0
    assert account.submits_refused <= 5
    assert account.busy > 0.9


def test_a_poll_costs_no_more_with_more_handles(simulation: ModuleType) -> None:
    """The work of a poll is counted, not timed: comparisons grow with the logarithm of the jobs."""
    counts = []
    for handles in (100, 10_000):
        waiting: Schedule[int] = Schedule(polls_per_minute=500.0, rng=random.Random(3))
        for n, job in enumerate(simulation.draw(simulation.lognormal(0.3), handles, seed=4)):
            waiting.add(n, now=0.0, eta=job.eta)
        calls = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        made = 0
        sys.setprofile(count)
        try:
            while made < 500:
                at = waiting.next_due() or 0.0
                for key in waiting.take_due(at):
                    waiting.on_unfinished(key, now=at)
                    made += 1
        finally:
            sys.setprofile(None)
        counts.append(calls)
    assert counts[1] < 2 * counts[0]
