"""Which conversion of the account's listing is the submit whose answer was lost.

The vendor has no idempotency key. A listing's entry is taken for a submit only where that is the
only way to read it: it bears the job's own webhook token, or it is the one unclaimed entry of that
moment and of those stems, and fits no other lost submit. Anything less would be a guess.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from musicgpt_async._rules.payloads import Conversion
from musicgpt_async.models import JobRecord, Stem

# Seconds between our handing over and the vendor's clock saying that it created the job.
EARLIEST, LATEST = -60.0, 600.0
# What the vendor makes when no stems are named (MusicGPT docs, Extraction).
DEFAULT_STEMS = frozenset({Stem.DRUMS, Stem.BASS, Stem.PIANO, Stem.GUITAR})


def matches(
    lost: Sequence[JobRecord], listing: Iterable[Conversion], *, claimed: Collection[str]
) -> Mapping[str, Conversion]:
    """Return job id → conversion for the lost submits that the listing tells for certain."""
    free = _free(listing, claimed)
    certain = {
        record.id: each
        for record in lost
        for each in free
        if record.token and record.token in repr(each.raw)
    }
    taken = {each.task_id for each in certain.values()}
    others = [record for record in lost if record.id not in certain]
    left = [each for each in free if each.task_id not in taken]
    for record in others:
        fitting = [each for each in left if _fits(record, each)]
        if len(fitting) == 1 and sum(_fits(other, fitting[0]) for other in others) == 1:
            certain[record.id] = fitting[0]
    return certain


def candidates(
    record: JobRecord, listing: Iterable[Conversion], *, claimed: Collection[str]
) -> list[Conversion]:
    """Return the unclaimed conversions that a lost submit could be."""
    return [each for each in _free(listing, claimed) if _fits(record, each)]


def _free(listing: Iterable[Conversion], claimed: Collection[str]) -> list[Conversion]:
    return [each for each in listing if each.task_id and each.task_id not in claimed]


def _fits(record: JobRecord, conversion: Conversion) -> bool:
    created = _moment(conversion.created)
    if created is None or record.sent_at is None:
        return False
    if not EARLIEST <= created - record.sent_at <= LATEST:
        return False
    wanted = set(record.stems) or set(DEFAULT_STEMS)
    return not conversion.links or set(conversion.links) == wanted


def _moment(text: str | None) -> float | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
