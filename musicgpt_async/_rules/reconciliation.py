"""Find the conversions of submits whose response was lost in the account's listing.

MusicGPT has no idempotency key. An entry of the listing is assigned to a submit only if no other
reading is possible: the entry has the job's own webhook token, or there is exactly one way to
assign the unclaimed entries of that time and those stems to lost submits. Anything less would be a
guess. An entry with a webhook URL that does not have the job's token belongs to another submit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from musicgpt_async._rules.payloads import DEFAULT_STEMS, Conversion
from musicgpt_async.models import JobRecord

MAX_CLOCK_SKEW = 60.0  # seconds that MusicGPT's clock may be behind this machine's
MAX_CREATION_DELAY = 600.0  # seconds from the delivery of a track to the creation of its task


def reconcile(
    lost: Sequence[JobRecord],
    listing: Iterable[Conversion],
    *,
    claimed: Collection[str],
    acknowledged: Iterable[JobRecord] = (),
) -> Mapping[str, Conversion]:
    """Return the conversions that certainly belong to lost submits, by job id.

    Args:
        lost: All submits without a task that may have an entry.
        listing: The account's conversions.
        claimed: Task ids that belong to other jobs.
        acknowledged: Submits with a task, to estimate the offset between MusicGPT's clock and this
            machine's.
    """
    listing = list(listing)
    free = _unclaimed(listing, claimed)
    certain = {record.id: each for record in lost for each in free if is_of_job(record, each)}
    taken = {each.task_id for each in certain.values()}
    others = [record for record in lost if record.id not in certain]
    left = [each for each in free if each.task_id not in taken]
    return {**certain, **_unique_matches(others, left, _earliest_offset(listing, acknowledged))}


def _unique_matches(
    lost: Sequence[JobRecord], listing: Sequence[Conversion], earliest_offset: float
) -> dict[str, Conversion]:
    """Assign entries that fit a single submit, repeatedly, until none does.

    An assignment is forced only if the entry fits no other submit *and* no other entry fits that
    submit alone: two entries for one submit prove nothing, so that submit is left out altogether.
    """
    found: dict[str, Conversion] = {}
    while True:
        fitting = [
            (each, [record.id for record in lost if _is_candidate(record, each, earliest_offset)])
            for each in listing
        ]
        sole = [(ids[0], each) for each, ids in fitting if len(ids) == 1]
        wanted = Counter(job_id for job_id, _ in sole)
        forced = {job_id: each for job_id, each in sole if wanted[job_id] == 1}
        if not forced:
            return found
        found |= forced
        lost = [record for record in lost if record.id not in wanted]
        listing = [each for each in listing if each not in forced.values()]


def _earliest_offset(listing: Sequence[Conversion], acknowledged: Iterable[JobRecord]) -> float:
    """Return the lowest possible offset in seconds from a delivery to its entry's creation date.

    Each submit with a task bounds the offset between the clocks: MusicGPT created the task after
    the delivery and before the response arrived.
    """
    created = {each.task_id: _parse_time(each.created) for each in listing}
    least, most = -MAX_CLOCK_SKEW, MAX_CLOCK_SKEW
    for record in acknowledged:
        moment = created.get(record.task_id or "")
        if moment is not None and record.sent_at and record.accepted_at:
            least = max(least, moment - record.accepted_at)
            most = min(most, moment - record.sent_at)
    if least > most:  # one of the clocks was set in between
        return -MAX_CLOCK_SKEW
    # Dates without fractions may have been rounded down by up to a second.
    has_fractions = any(moment is not None and moment % 1 for moment in created.values())
    return max(least - (0.01 if has_fractions else 1.0), -MAX_CLOCK_SKEW)


def candidates(
    record: JobRecord, listing: Iterable[Conversion], *, claimed: Collection[str]
) -> list[Conversion]:
    """Return the unclaimed conversions that may belong to a lost submit."""
    return [
        each
        for each in _unclaimed(listing, claimed)
        if _is_candidate(record, each, -MAX_CLOCK_SKEW)
    ]


def is_of_job(record: JobRecord, conversion: Conversion) -> bool | None:
    """Return whether a conversion has a job's webhook token, or ``None`` if it has no webhook."""
    if record.token and record.token in repr(conversion.raw):
        return True
    return None if conversion.webhook_url is None else False


def _unclaimed(listing: Iterable[Conversion], claimed: Collection[str]) -> list[Conversion]:
    return [each for each in listing if each.task_id and each.task_id not in claimed]


def _is_candidate(record: JobRecord, conversion: Conversion, earliest_offset: float) -> bool:
    created = _parse_time(conversion.created)
    if created is None or record.sent_at is None or is_of_job(record, conversion) is False:
        return False
    if not earliest_offset <= created - record.sent_at <= MAX_CREATION_DELAY:
        return False
    wanted = set(record.stems) or set(DEFAULT_STEMS)
    return not conversion.links or set(conversion.links) == wanted


def _parse_time(text: str | None) -> float | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
