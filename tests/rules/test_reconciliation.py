from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.payloads import Conversion, parse_listing
from musicgpt_async._rules.reconciliation import MAX_CLOCK_SKEW, MAX_CREATION_DELAY, reconcile
from musicgpt_async.models import JobRecord

SENT = datetime(2025, 6, 1, 12, 0, tzinfo=UTC).timestamp()


def lost(id_: str = "job", **facts: Any) -> JobRecord:
    """Return a submit whose response was lost."""
    return JobRecord(**{"id": id_, "fingerprint": "f", "source": "a", "sent_at": SENT, **facts})


def entry(task_id: str = "task", *, after: float = 1.0, **fields: Any) -> Conversion:
    """One entry of the account's listing."""
    created = datetime.fromtimestamp(SENT + after, UTC).isoformat()
    (one,) = parse_listing({"conversions": [{"task_id": task_id, "createdAt": created, **fields}]})
    return one


def found(
    records: list[JobRecord], listing: list[Conversion], claimed: set[str] | None = None
) -> dict[str, str]:
    """What is certain: job and task."""
    certain = reconcile(records, listing, claimed=claimed or set())
    return {job: conversion.task_id for job, conversion in certain.items()}


def test_the_one_entry_of_that_moment_is_it() -> None:
    """One lost submit, one unclaimed entry that fits: nothing else it could be."""
    assert found([lost()], [entry()]) == {"job": "task"}


@pytest.mark.parametrize("after", [-MAX_CLOCK_SKEW - 1, MAX_CREATION_DELAY + 1, -86400, 86400])
def test_an_entry_of_another_moment_is_not(after: float) -> None:
    """Clocks may differ by a minute, not by a day."""
    assert found([lost()], [entry(after=after)]) == {}


@pytest.mark.parametrize(
    "created", [None, "", "yesterday", 17, "9999-99-99", "2025-06-01T12:00:01"]
)
def test_a_moment_that_cannot_be_read_is_no_moment(created: Any) -> None:
    """Without a time an entry fits nothing; one without a zone is in UTC."""
    expected = {"job": "task"} if created == "2025-06-01T12:00:01" else {}
    assert found([lost()], [entry(createdAt=created)]) == expected


@pytest.mark.parametrize("written", ["{}.557077+00:00", "{}.557Z", "{}Z", "{}+00:00"])
def test_every_documented_form_of_a_time_is_read(written: str) -> None:
    """With an offset and microseconds (August 2026), or with a Z and milliseconds or none."""
    for moment, expected in (("2025-06-01T12:00:01", {"job": "task"}), ("2025-06-02T12:00:01", {})):
        assert found([lost()], [entry(createdAt=written.format(moment))]) == expected


def test_a_submit_without_times_or_entry_tells_nothing_about_the_clocks() -> None:
    """A task that the user bound was sent at no known time, and an old one is not listed."""
    known = [lost("bound", task_id="x", sent_at=None), lost("old", task_id="y", accepted_at=SENT)]
    listing = [entry(), entry("x", after=-3000.0)]
    certain = reconcile([lost()], listing, claimed={"x", "y"}, acknowledged=known)
    assert {job: conversion.task_id for job, conversion in certain.items()} == {"job": "task"}


def test_two_entries_of_that_moment_are_a_guess() -> None:
    """If an entry could be either of two, neither is assigned."""
    assert found([lost()], [entry("a"), entry("b")]) == {}


def test_two_lost_submits_and_one_entry_are_a_guess() -> None:
    """An entry that fits two submits is assigned to neither."""
    assert found([lost("a"), lost("b")], [entry()]) == {}


def test_an_entry_that_fits_one_alone_settles_the_other() -> None:
    """What is settled is taken from both sides, until nothing more follows."""
    records = [lost("early"), lost("late", sent_at=SENT + 300)]
    assert found(records, [entry("x"), entry("y", after=301)]) == {"early": "x", "late": "y"}


def test_the_jobs_own_token_decides() -> None:
    """A webhook token in an entry identifies its job, even if others would match."""
    records = [lost("a", token="pub.secret-a"), lost("b", token="pub.secret-b")]
    listing = [
        entry("x", webhook_url="https://h/pub.secret-b"),
        entry("y", webhook_url="https://h/pub.secret-a"),
    ]
    assert found(records, listing) == {"a": "y", "b": "x"}


def test_an_entry_matched_by_its_token_is_taken() -> None:
    """After one is settled by its token, the only one left settles the other."""
    records = [lost("a", token="tok-a"), lost("b")]
    listing = [entry("x"), entry("y", webhook_url="https://h/tok-a")]
    assert found(records, listing) == {"a": "y", "b": "x"}


def test_claimed_entries_are_passed_over() -> None:
    """A task that another job has already is not this one."""
    assert found([lost()], [entry("mine"), entry("other")], {"other"}) == {"job": "mine"}
    assert found([lost(token="t0ken")], [entry("x", note="t0ken")], {"x"}) == {}


def test_an_entry_without_a_name_is_passed_over() -> None:
    """There is nothing to follow it by."""
    assert found([lost()], [entry("")]) == {}


@pytest.mark.parametrize(
    ("stems", "there", "fits"),
    [
        (("vocals",), ["vocals"], True),
        (("vocals",), ["drums"], False),
        (("vocals",), ["vocals", "drums"], False),
        (("vocals", "bass"), ["bass", "vocals"], True),
        ((), ["drums", "bass", "piano", "guitar"], True),
        ((), ["vocals"], False),
        (("vocals",), [], True),
    ],
)
def test_the_stems_of_an_entry_have_to_be_the_ones_asked_for(
    stems: tuple[str, ...], there: list[str], fits: bool
) -> None:
    """Those named, or the four that are made when none is; an unfinished entry shows none."""
    links = {stem: f"https://h/{stem}.mp3" for stem in there}
    assert bool(found([lost(stems=stems)], [entry(audio_url=links)])) == fits


def test_a_submit_that_was_never_handed_over_matches_nothing() -> None:
    """Without a moment of sending nothing fits."""
    assert found([lost(sent_at=None)], [entry()]) == {}


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([None, "t1", "t2"])), max_size=5),
    st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([None, "t1", "t2"])), max_size=5),
)
def test_no_entry_is_ever_given_to_two(
    sent: list[tuple[int, str | None]], listed: list[tuple[int, str | None]]
) -> None:
    """For any times, each job gets at most one entry and each entry at most one job."""
    records = [
        lost(str(number), sent_at=SENT + 300 * when, token=token)
        for number, (when, token) in enumerate(sent)
        if token is None or token not in [t for _, t in sent[:number]]
    ]
    listing = [
        entry(f"task{number}", after=300 * when, note=token)
        for number, (when, token) in enumerate(listed)
    ]
    tasks = list(found(records, listing).values())
    assert len(tasks) == len(set(tasks))
