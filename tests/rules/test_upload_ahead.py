"""Which uploads run ahead of their slots, by the rule and by the benchmark's simulation."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.durations import DurationModel
from musicgpt_async._rules.upload_ahead import HELD_BACK, Running, Uplink, UploadAhead

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """The uplink and the slots of the benchmark."""
    name = "upload_simulation"
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(rate: float = MEGABYTE) -> Uplink:
    """An uplink of so many bytes a second."""
    uplink = Uplink()
    uplink.started(now=0.0)
    uplink.sent(int(10 * rate), now=10.0)
    uplink.stopped(now=10.0)
    return uplink


def ahead(rate: float = MEGABYTE) -> UploadAhead:
    """The rule on a measured uplink, after forty jobs that took their eta give or take a fifth."""
    durations = DurationModel()
    for n in range(40):
        took = 80.0 + n
        durations.observe(100.0, took - 1.0, took)
    return UploadAhead(durations, measured(rate))


def may_start(rule: UploadAhead, size: int = 30 * MEGABYTE, **state: Any) -> bool:
    """Ask for an upload of half a minute, while a job of 100 s holds the only slot."""
    given = {"free": 0, "uploading": [], "held": 0, "running": [Running(100.0, 60.0)], **state}
    return rule.may_start(size, **given)


def test_a_free_slot_needs_no_rule() -> None:
    """While slots are free, uploads start at once."""
    rule = UploadAhead(DurationModel(), Uplink())
    assert may_start(rule, free=1, running=[])
    assert may_start(rule, free=2, uploading=[MEGABYTE], running=[])
    assert not may_start(rule, free=1, uploading=[MEGABYTE], running=[])


def test_the_end_of_the_body_meets_the_slot() -> None:
    """An upload of half a minute starts when a job's end may be half a minute away, not before."""
    rule = ahead()
    starts = [age for age in range(200) if may_start(rule, running=[Running(100.0, float(age))])]
    assert 5 <= starts[0] <= 50
    assert starts[:80] == list(range(starts[0], starts[0] + 80))


def test_longer_uploads_start_earlier() -> None:
    """The slower the uplink, the sooner the body has to go."""
    starts = []
    for size in (10 * MEGABYTE, 40 * MEGABYTE):
        rule = ahead()
        starts.append(
            next(
                age
                for age in range(200)
                if may_start(rule, size, running=[Running(100.0, float(age))])
            )
        )
    assert starts[1] < starts[0] - 15


def test_one_goes_ahead_at_a_time() -> None:
    """While one body runs ahead of its slot, no other one takes its bandwidth."""
    rule = ahead()
    assert may_start(rule)
    assert not may_start(rule, uploading=[MEGABYTE])


def test_no_more_is_held_than_slots_can_come_free() -> None:
    """One job that runs frees one slot: with one body held for it no other goes ahead."""
    rule = ahead()
    assert not may_start(rule, held=1)
    assert may_start(rule, held=1, running=[Running(100.0, 60.0), Running(100.0, 60.0)])


def test_what_cannot_be_used_within_the_hold_waits() -> None:
    """A job that may take half an hour more has no upload wait for it."""
    assert not may_start(ahead(), running=[Running(3600.0, 60.0)])
    assert not may_start(ahead(), running=[Running(None, 5.0, age_known=False)])


def test_short_uploads_wait_for_their_slots() -> None:
    """If an upload takes a fiftieth of a job, running ahead gains nothing."""
    assert not may_start(ahead(), size=MEGABYTE, running=[Running(100.0, 98.0)])


def test_nothing_runs_ahead_on_an_unmeasured_uplink() -> None:
    """Without a measured rate, no upload runs ahead."""
    assert not may_start(UploadAhead(DurationModel(), Uplink()))


def test_a_vendor_that_refuses_early_ends_it() -> None:
    """After a refusal before the end of the body, uploads wait for their slots."""
    rule = ahead()
    rule.refused_early()
    assert not may_start(rule)
    assert may_start(rule, free=1)


def test_a_server_that_closes_held_bodies_is_believed() -> None:
    """The hold stays below what the server allows; one of a few seconds ends it."""
    rule = ahead()
    rule.closed(held_for=60.0)
    assert rule.max_hold == pytest.approx(48.0)
    assert HELD_BACK / rule.drip == pytest.approx(48.0)
    assert not may_start(rule, running=[Running(100.0, 10.0)])
    rule.closed(held_for=3.0)
    assert not any(may_start(rule, running=[Running(100.0, float(age))]) for age in range(200))


def test_the_uplink_is_measured_while_anything_goes_out() -> None:
    """Two bodies at once count together, idle time does not."""
    uplink = Uplink()
    for begin in (0.0, 1000.0):
        for _ in range(2):
            uplink.started(now=begin)
        for second in range(1, 11):
            for _ in range(2):
                uplink.sent(MEGABYTE, now=begin + second)
        for _ in range(2):
            uplink.stopped(now=begin + 10.0)
    assert uplink.rate == pytest.approx(2.0 * MEGABYTE, rel=0.1)


@given(
    jobs=st.lists(
        st.builds(
            Running,
            eta=st.none() | st.floats(1.0, 1e4),
            age=st.floats(0.0, 1e6),
            age_known=st.booleans(),
        ),
        max_size=12,
    ),
    count=st.integers(1, 4),
    within=st.floats(0.0, 1e4),
)
def test_chances_of_slots_are_chances(jobs: list[Running], count: int, within: float) -> None:
    """They are between 0 and 1, rise with time and fall with the number of slots."""
    rule = ahead()
    chance = rule._chance_of_slots(count, jobs, within=within)
    assert -1e-9 <= chance <= 1.0 + 1e-9
    assert rule._chance_of_slots(count, jobs, within=2.0 * within) >= chance - 1e-9
    assert rule._chance_of_slots(count + 1, jobs, within=within) <= chance + 1e-9


@pytest.mark.parametrize("parallel", [1, 2, 3])
@pytest.mark.parametrize(("sigma", "bound"), [(0.15, 1.05), (0.3, 1.05), (0.6, 1.15)])
def test_slots_hardly_idle(
    simulation: ModuleType, parallel: int, sigma: float, bound: float
) -> None:
    """If an upload takes a third of a job, a batch takes hardly longer than the ideal."""
    first, ours = [], []
    for seed in (1, 2, 3):
        draw = {"share": 1 / 3, "sigma": sigma, "seed": seed}
        rule = simulation.SlotFirst()
        batch = simulation.tracks(60, **draw)
        first.append(simulation.Batch(batch, parallel=parallel, rule=rule).run())
        batch = simulation.tracks(60, **draw)
        ours.append(simulation.Batch(batch, parallel=parallel).run())
    assert statistics.fmean(each.ratio for each in first) > 1.2
    assert statistics.fmean(each.ratio for each in ours) <= bound
    assert max(each.sent_twice for each in ours) <= 0.05
    assert sum(each.refused for each in ours) == 0
    assert max(max(each.held) for each in ours) <= 300.0


@pytest.mark.parametrize("closes_after", [20.0, 60.0])
def test_a_server_that_closes_costs_few_bytes(simulation: ModuleType, closes_after: float) -> None:
    """If held bodies are closed, a batch is no slower than slot first, and resends few bytes."""
    for seed in (1, 2):
        batch = simulation.tracks(60, share=1 / 3, sigma=0.3, seed=seed)
        first = simulation.Batch(batch, parallel=1, rule=simulation.SlotFirst()).run()
        batch = simulation.tracks(60, share=1 / 3, sigma=0.3, seed=seed)
        ours = simulation.Batch(batch, parallel=1, closes_after=closes_after).run()
        assert ours.seconds <= first.seconds
        assert ours.sent_twice <= 0.05


def test_an_unknown_account_meets_no_more_refusals(simulation: ModuleType) -> None:
    """Uploads ahead cost no refusal that slot first does not meet."""
    for parallel in (1, 2, 5):
        refused = []
        for rule in (simulation.SlotFirst(), None):
            batch = simulation.tracks(40, share=1 / 3, sigma=0.3, seed=1)
            account = simulation.Batch(batch, parallel=parallel, rule=rule, given=False).run()
            refused.append(account.refused)
        assert refused[1] <= refused[0] + 1
