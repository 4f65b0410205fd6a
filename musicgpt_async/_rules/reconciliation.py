"""Which conversion of the account's listing is the submit whose answer was lost.

The vendor has no idempotency key. A listing's entry is taken for a submit only where that is the
only way to read it: it bears the job's own webhook token, or there is one way alone to give the
unclaimed entries of that moment and of those stems to lost submits. Anything less would be a guess.
An entry that tells its webhook URL is another submit's, unless that URL has the job's own token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from musicgpt_async._rules.payloads import DEFAULT_STEMS, Conversion
from musicgpt_async.models import JobRecord

# Seconds that the vendor's clock may be behind ours.
MAX_CLOCK_SKEW = 60.0
# Seconds from the delivery to the vendor creating the job.
MAX_CREATION_DELAY = 600.0


def reconcile(
    lost: Sequence[JobRecord],
    listing: Iterable[Conversion],
    *,
    claimed: Collection[str],
    acknowledged: Iterable[JobRecord] = (),
) -> Mapping[str, Conversion]:
    """Return job id → conversion for the lost submits that the listing tells for certain.

    Args:
        lost: All submits that may have an entry and have no task.
        listing: The account's conversions.
        claimed: Tasks that other jobs have.
        acknowledged: Submits with a task: by them the vendor's clock is compared with ours.
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
    """Give each entry to the one submit that it fits, until no entry fits one alone."""
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
    """Return the seconds after its handing over at which an entry may be dated at the earliest.

    Each submit with a task bounds what the vendor's clock is ahead of ours: it was created after it
    was handed over and before its answer had come.
    """
    created = {each.task_id: _parse_time(each.created) for each in listing}
    least, most = -MAX_CLOCK_SKEW, MAX_CLOCK_SKEW
    for record in acknowledged:
        moment = created.get(record.task_id or "")
        if moment is not None and record.sent_at and record.accepted_at:
            least = max(least, moment - record.accepted_at)
            most = min(most, moment - record.sent_at)
    whole = all(moment is None or moment == int(moment) for moment in created.values())
    return (
        max(least - (1.0 if whole else 0.01), -MAX_CLOCK_SKEW) if least <= most else -MAX_CLOCK_SKEW
    )


def candidates(
    record: JobRecord, listing: Iterable[Conversion], *, claimed: Collection[str]
) -> list[Conversion]:
    """Return the unclaimed conversions that a lost submit could be."""
    return [
        each
        for each in _unclaimed(listing, claimed)
        if _is_candidate(record, each, -MAX_CLOCK_SKEW)
    ]


def is_of_job(record: JobRecord, conversion: Conversion) -> bool | None:
    """Return whether a conversion is a job's by its webhook token, ``None`` if nothing tells."""
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
