from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from musicgpt_async._io import inbox as inbox_module
from musicgpt_async._io.inbox import KEPT_BYTES, KEPT_DELIVERIES, REMEMBERED_TOKENS, Inbox
from musicgpt_async.errors import ConfigurationError

TOKEN = "job1.s3cret"


def test_a_delivery_reaches_the_job_that_waits_for_it() -> None:
    """A payload goes to its own letterbox and to no other."""
    inbox, mine, others = Inbox(), [], []
    inbox.open(TOKEN, mine.append)
    inbox.open("job2.other", others.append)
    assert inbox.deliver(TOKEN, {"task_id": "t"})
    assert mine == [{"task_id": "t"}]
    assert others == []
    assert len(inbox) == 2


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "job1",
        "job1.",
        "job1.s3cre",
        "job1.s3crets",
        ".s3cret",
        "job2.s3cret",
        "job1.é\ud800",
    ],
)
def test_a_wrong_token_is_refused(token: str) -> None:
    """Neither a piece of a token nor anything around it opens a letterbox."""
    inbox, mine = Inbox(), []
    inbox.open(TOKEN, mine.append)
    assert not inbox.knows(token)
    assert not inbox.deliver(token, {})
    assert mine == []


def test_a_late_delivery_is_acknowledged_and_kept_for_the_next_to_open() -> None:
    """What comes after the letterbox was closed is taken, and handed over if the job comes back."""
    inbox, first, second = Inbox(), [], []
    inbox.open(TOKEN, first.append)
    inbox.close(TOKEN)
    assert inbox.deliver(TOKEN, {"n": 1})
    assert inbox.deliver(TOKEN, {"n": 2})
    assert not inbox.deliver("job1.wrong", {})
    inbox.open(TOKEN, second.append)
    assert first == []
    assert second == [{"n": 1}, {"n": 2}]
    inbox.close(TOKEN)
    inbox.open(TOKEN, second.append)
    assert len(second) == 2


def test_an_early_delivery_is_kept_only_for_a_genuine_token() -> None:
    """Before a letterbox is opened, its deliveries are kept where the token proves itself."""
    got: list[Any] = []
    inbox = Inbox(genuine=lambda token: token == TOKEN)
    assert not inbox.deliver("job2.forged", {})
    assert inbox.deliver(TOKEN, {"early": True})
    inbox.open(TOKEN, got.append)
    assert got == [{"early": True}]


def test_what_is_kept_is_bounded_in_number_and_size() -> None:
    """The oldest kept deliveries give way, by count and by bytes."""
    inbox = Inbox(genuine=bool)
    for number in range(KEPT_DELIVERIES + 1):
        inbox.deliver(f"job{number}.x", {})
    assert handed_over(inbox, "job0.x") == []
    assert handed_over(inbox, "job1.x") == [{}]
    for name in ("big1.x", "big2.x", "big3.x"):
        inbox.deliver(name, {}, size=KEPT_BYTES // 2)
    assert handed_over(inbox, "big1.x") == []
    assert handed_over(inbox, "big3.x") == [{}]
    inbox.deliver("first.x", {})
    for _ in range(3):
        inbox.deliver("big.x", {}, size=KEPT_BYTES // 2)
        assert handed_over(inbox, "big.x") == [{}]
    assert handed_over(inbox, "first.x") == [{}]
    inbox.deliver("huge.x", {}, size=KEPT_BYTES + 1)
    assert handed_over(inbox, "huge.x") == []


def handed_over(inbox: Inbox, token: str) -> list[Any]:
    """Return what an inbox had kept for a token."""
    got: list[Any] = []
    inbox.open(token, got.append)
    inbox.close(token)
    return got


def test_the_memory_of_closed_letterboxes_is_bounded() -> None:
    """Of letterboxes that were closed, the latest few thousand are remembered."""
    inbox = Inbox()
    for number in range(REMEMBERED_TOKENS + 1):
        inbox.open(f"job{number}.x", print)
        inbox.close(f"job{number}.x")
    assert not inbox.knows("job0.x")
    assert inbox.knows("job1.x")
    for name in ("job1.x", "new.x"):
        inbox.open(name, print)
        inbox.close(name)
    assert inbox.knows("job1.x")
    assert not inbox.knows("job2.x")
    assert len(inbox) == 0


def test_closing_twice_is_harmless_and_opening_twice_is_told() -> None:
    """Close is idempotent; two followers of one job are a mistake that is named."""
    inbox, got = Inbox(), []
    inbox.close(TOKEN)
    inbox.open(TOKEN, got.append)
    with pytest.raises(ConfigurationError, match="followed in this process already") as caught:
        inbox.open(TOKEN, print)
    assert TOKEN not in str(caught.value)
    assert inbox.deliver(TOKEN, {})
    assert got == [{}]
    inbox.close(TOKEN)
    inbox.close(TOKEN)


def test_what_a_job_raises_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    """An exception out of wake is logged by kind and place, never with what was delivered."""

    def wake(payload: object) -> None:
        raise ValueError(payload)

    inbox = Inbox()
    inbox.open(TOKEN, wake)
    with caplog.at_level(logging.DEBUG):
        assert inbox.deliver(TOKEN, {"task_id": "private"})
    assert "ValueError in test_what_a_job_raises_goes_no_further.<locals>.wake" in caplog.text
    assert "private" not in caplog.text
    assert "s3cret" not in caplog.text
    assert {record.name for record in caplog.records} == {inbox_module.__name__}


def test_a_door_in_another_thread_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A delivery from another thread is not handed to a job that could not bear it, and says so."""
    inbox, got = Inbox(), []
    inbox.open(TOKEN, got.append)
    door = threading.Thread(target=inbox.deliver, args=(TOKEN, {}))
    door.start()
    door.join()
    assert got == []
    assert "in another thread" in caplog.text


def test_nothing_shows_a_token() -> None:
    """The repr of an inbox and of what lies in it holds no token."""
    inbox = Inbox(genuine=bool)
    inbox.open(TOKEN, print)
    inbox.deliver("job2.s3cret", {"task_id": "private"})
    shown = f"{inbox!r} {inbox._letterboxes.values()!r} {inbox._kept!r}"
    assert "s3cret" not in shown
    assert "private" not in shown


@given(st.text(), st.text())
def test_any_text_may_come_as_a_token(ours: str, theirs: str) -> None:
    """Whatever text arrives as a token, only the very same one is taken."""
    inbox, got = Inbox(), []
    inbox.open(ours, got.append)
    assert inbox.deliver(theirs, {}) is (ours == theirs)
    assert bool(got) is (ours == theirs)


class InboxLife(RuleBasedStateMachine):
    """Letterboxes opened, closed and delivered to in any order, beside a plain model of them."""

    names = st.sampled_from([f"job{n}.x" for n in range(4)])

    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox()
        self.got: dict[str, list[Any]] = {}
        self.model: dict[str, list[Any]] = {}
        self.open_names: set[str] = set()

    @rule(name=names)
    def open(self, name: str) -> None:
        """Open it, unless it is open."""
        if name not in self.open_names:
            self.model.setdefault(name, [])
            self.inbox.open(name, self.got.setdefault(name, []).append)
            self.open_names.add(name)

    @rule(name=names)
    def close(self, name: str) -> None:
        """Close it, open or not."""
        self.inbox.close(name)
        self.open_names.discard(name)

    @rule(name=names, number=st.integers())
    def deliver(self, name: str, number: int) -> None:
        """Deliver a number, which is taken by whatever was ever open."""
        known = name in self.model
        assert self.inbox.deliver(name, {"number": number}) is known
        if known:
            self.model[name].append({"number": number})

    @invariant()
    def open_letterboxes_have_all(self) -> None:
        """No delivery is lost, doubled or out of order at an open letterbox."""
        assert len(self.inbox) == len(self.open_names)
        for name in self.open_names:
            assert self.got[name] == self.model[name]


TestInboxLife = InboxLife.TestCase
