from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from musicgpt_async._rules.slots import Slots

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """The account shared with another client, of the benchmark."""
    name = "slot_simulation"
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def take_all(slots: Slots, *, now: float = 0.0) -> int:
    """Take every slot that is free."""
    taken = 0
    while slots.try_acquire(now=now):
        taken += 1
    return taken


def grown_to(limit: int) -> Slots:
    """Slots of an unknown account that has accepted this many unfinished jobs."""
    slots = Slots()
    while slots.taken < limit:
        if slots.try_acquire(now=0.0):
            slots.on_accepted(has_queue=True)
    return slots


@pytest.mark.parametrize(("parallel", "limit"), [(None, 1), (1, 1), (10, 10)])
def test_it_begins_at_what_is_given_or_the_free_plan(parallel: int | None, limit: int) -> None:
    """Without a word about the account one job may run, else as many as were given."""
    slots = Slots(parallel=parallel)
    assert take_all(slots) == limit
    assert (slots.limit, slots.taken) == (limit, limit)


def test_less_than_one_slot_is_refused() -> None:
    """An account that allows nothing is a mistake of the caller's."""
    with pytest.raises(ValueError, match="at least 1"):
        Slots(parallel=0)


def test_giving_back_too_much_is_an_error() -> None:
    """Releasing a slot twice raises, since it would allow one job too many for ever."""
    slots = Slots()
    slots.try_acquire(now=0.0)
    slots.release()
    with pytest.raises(RuntimeError, match="was not acquired"):
        slots.release()


def test_it_grows_while_slots_are_the_bottleneck() -> None:
    """Each accepted submit that fills the account raises the limit by one while others wait."""
    assert grown_to(10).limit == 11


def test_it_does_not_grow_without_a_queue() -> None:
    """A refused upload is not risked for slots that no job needs."""
    slots = Slots()
    take_all(slots)
    slots.on_accepted(has_queue=False)
    assert slots.limit == 1


def test_only_one_upload_at_a_time_tries_a_larger_limit() -> None:
    """While another upload may still be refused the limit is kept, so that one 429 is enough."""
    slots = grown_to(2)
    assert slots.limit == 3
    slots.try_acquire(now=0.0)
    assert slots.limit == 3
    slots.on_accepted(has_queue=True)
    assert slots.limit == 4
    assert take_all(slots) == 1


def test_a_cancelled_upload_does_not_stop_growth_for_ever() -> None:
    """An upload that ended without a response is forgotten after a few accepted submits."""
    slots = Slots()
    take_all(slots)
    slots.release()  # cancelled during its upload
    for _ in range(6):
        slots.try_acquire(now=0.0)
        slots.on_accepted(has_queue=True)
        if slots.limit > 1:
            return
        slots.release()
    pytest.fail("the limit never grew")


def test_a_given_limit_is_never_exceeded() -> None:
    """However many submits are accepted, the user's word is kept."""
    slots = Slots(parallel=5)
    for _ in range(100):
        take_all(slots)
        slots.on_accepted(has_queue=True)
    assert slots.limit == 5


def test_a_refusal_shrinks_to_what_still_runs() -> None:
    """After a 429 the account is held to be full, and nothing is tried until a slot comes back."""
    slots = Slots(parallel=5)
    take_all(slots)
    slots.on_rejected(now=0.0, retry_after=None)
    slots.release()
    assert (slots.limit, slots.taken) == (4, 4)
    assert slots.retry_at() is None
    assert not slots.try_acquire(now=1e9)
    slots.release()
    assert slots.try_acquire(now=0.0)


def test_the_limit_never_falls_below_one() -> None:
    """When other processes hold every slot one job still asks, at a growing distance."""
    slots = Slots(parallel=3)
    now, waits = 0.0, []
    for _ in range(12):
        assert slots.try_acquire(now=now)
        slots.on_rejected(now=now, retry_after=None)
        slots.release()
        again = slots.retry_at()
        assert again is not None
        assert not slots.try_acquire(now=again - 0.01)
        waits.append(again - now)
        now = again
    assert slots.limit == 1
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (2.0, 60.0)


@pytest.mark.parametrize(
    ("told", "kept"), [(30.0, 30.0), (0.0, 1.0), (-5.0, 1.0), (99999.0, 300.0)]
)
def test_retry_after_is_kept_to_within_reason(told: float, kept: float) -> None:
    """Retry-After decides when to try again, unless it is absurd."""
    slots = Slots(parallel=2)
    take_all(slots)
    slots.on_rejected(now=100.0, retry_after=told)
    slots.release()
    slots.release()
    assert slots.retry_at() == 100.0 + kept
    assert not slots.try_acquire(now=100.0 + kept - 0.01)
    assert slots.try_acquire(now=100.0 + kept)
    assert slots.retry_at() is None


def test_a_later_refusal_does_not_shorten_a_pause() -> None:
    """Of two Retry-After times the later one holds."""
    slots = Slots(parallel=2)
    take_all(slots)
    slots.on_rejected(now=0.0, retry_after=60.0)
    slots.release()
    slots.on_rejected(now=1.0, retry_after=2.0)
    slots.release()
    assert slots.retry_at() == 60.0


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("parallel", "others"), [(2, 1), (5, 2), (5, 4), (5, 5), (10, 9), (10, 10)]
)
def test_the_full_limit_is_restored_soon_after_another_client_left(
    simulation: ModuleType, parallel: int, others: int, *, given: bool
) -> None:
    """Two minutes after the other client stopped, the full limit is used, for jobs of 20 s."""
    for seed in range(3):
        shared = simulation.share_account(
            parallel=parallel, others=lambda _: others, until=1200.0, given=given, seed=seed
        )
        assert shared.recovery <= 120.0
        assert shared.refused_after == 0
        if others < parallel:
            assert shared.refused_meanwhile <= 0.2 * shared.accepted_meanwhile + 10


def test_an_unwell_vendor_costs_no_slot() -> None:
    """A 503 says nothing about how many may run, only that now is a bad moment."""
    slots = Slots(parallel=5)
    take_all(slots)
    slots.on_rejected(now=0.0, retry_after=None, full=False)
    slots.release()
    assert slots.limit == 5
    assert slots.retry_at() == 2.0


def test_success_grows_it_again_up_to_what_was_given() -> None:
    """After the other process has stopped, the full limit is used again."""
    slots = Slots(parallel=5)
    take_all(slots)
    for _ in range(3):
        slots.on_rejected(now=0.0, retry_after=None)
        slots.release()
    assert slots.limit == 2
    for _ in range(40):
        slots.release()
        while slots.try_acquire(now=0.0):
            slots.on_accepted(has_queue=True)
    assert slots.limit == 5


def test_an_account_that_was_found_is_seldom_asked_for_again() -> None:
    """On the free plan a hundred tracks meet three refusals, at distances that double to 257."""
    slots = Slots()
    refused_after: list[int] = []
    accepted = running = 0
    while accepted < 1200:
        while slots.try_acquire(now=0.0):
            if running == 2:
                slots.on_rejected(now=0.0, retry_after=None)
                slots.release()
                refused_after.append(accepted)
            else:
                running += 1
                accepted += 1
                slots.on_accepted(has_queue=True)
        slots.release()
        running -= 1
    assert refused_after[0] == 2
    assert [b - a for a, b in itertools.pairwise(refused_after)] == [17, 33, 65, 129, 257, 257, 257]


@pytest.mark.parametrize("told", [None, 2])
def test_an_account_smaller_than_was_said_is_seldom_asked_for_more(told: int | None) -> None:
    """If one job may run, sixty of them over two hours get at most six refusals."""
    slots, refused, now = Slots(parallel=told), 0, 0.0
    for _ in range(60):
        while not slots.try_acquire(now=now):
            now = slots.retry_at() or now
        slots.on_accepted(has_queue=True)
        if slots.try_acquire(now=now):
            slots.on_rejected(now=now, retry_after=None)
            slots.release()
            refused += 1
        now += 120.0
        slots.release()
    assert 1 <= refused <= 6


class Line(RuleBasedStateMachine):
    """A queue of jobs on an account whose limit another process may use too."""

    @initialize(parallel=st.none() | st.integers(1, 4), room=st.sampled_from([0, 1, 2, 5]))
    def begin(self, parallel: int | None, room: int) -> None:
        """Open an account."""
        self.parallel, self.room, self.now = parallel, room, 0.0
        self.slots = Slots(parallel=parallel)
        self.uploading = self.running = 0

    @rule()
    def take(self) -> None:
        """Let the next job in the queue acquire a slot."""
        before, limit = self.slots.retry_at(), self.slots.limit
        got = self.slots.try_acquire(now=self.now)
        barred = before is not None and self.now < before
        assert got == (not barred and self.uploading + self.running < limit)
        self.uploading += got

    @precondition(lambda self: self.uploading > 0)
    @rule(
        has_queue=st.booleans(),
        retry_after=st.none() | st.floats(allow_nan=True, allow_infinity=True),
        full=st.sampled_from([True, True, False]),
    )
    def answer(self, *, has_queue: bool, retry_after: float | None, full: bool) -> None:
        """Respond to a submit."""
        self.uploading -= 1
        if self.running < self.room:
            self.running += 1
            self.slots.on_accepted(has_queue=has_queue)
        else:
            self.slots.on_rejected(now=self.now, retry_after=retry_after, full=full)
            self.slots.release()

    @precondition(lambda self: self.uploading > 0)
    @rule()
    def cancel_an_upload(self) -> None:
        """End an upload without a response."""
        self.uploading -= 1
        self.slots.release()

    @precondition(lambda self: self.running > 0)
    @rule()
    def finish(self) -> None:
        """Finish or detach a job."""
        self.running -= 1
        self.slots.release()

    @rule(room=st.sampled_from([0, 1, 2, 5]))
    def another_process_comes_or_goes(self, room: int) -> None:
        """Change the capacity that other processes leave."""
        self.room = room

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @invariant()
    def no_slot_leaks(self) -> None:
        """As many are taken as are in use, and the limit stays within its bounds."""
        if hasattr(self, "slots"):
            assert self.slots.taken == self.uploading + self.running
            assert self.slots.limit >= 1
            assert self.parallel is None or self.slots.limit <= self.parallel

    def teardown(self) -> None:
        """After any history, once all slots are released one is available within minutes."""
        if hasattr(self, "slots"):
            for _ in range(self.slots.taken):
                self.slots.release()
            assert self.slots.try_acquire(now=self.now + 300.0)


TestLine = Line.TestCase


def test_slots_that_another_client_releases_are_found_at_once() -> None:
    """Refused three times with nothing running, the limit grows by the first accepted submit."""
    slots = Slots(parallel=5)
    for moment in range(0, 300, 100):
        assert slots.try_acquire(now=moment)
        slots.on_rejected(now=moment, retry_after=None)
        slots.release()
    assert slots.limit == 1
    assert slots.try_acquire(now=300)
    slots.on_accepted(has_queue=True)
    assert slots.limit == 2
