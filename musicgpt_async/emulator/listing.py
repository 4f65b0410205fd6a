"""The pages of byUser, which lists the account's conversions."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from musicgpt_async.emulator.vendor import Submission, invalid

MAX_PAGE_SIZE, DEFAULT_PAGE_SIZE = 100, 50
"""The maximum number of conversions per page, and the default."""

_NODE_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def page(
    submissions: Sequence[Submission], query: Mapping[str, str], *, strict: bool = False
) -> tuple[list[Submission], bool]:
    """Return the conversions that a query selects, and whether there are more.

    Args:
        submissions: All submissions of the account.
        query: Query of the request.
        strict: Refuse queries that MusicGPT's own n8n node would not send.
    """
    if strict:
        _check_strictly(query)
    if query.get("conversionType", "EXTRACTION").upper() != "EXTRACTION":
        return [], False
    start, end = _date(query, "startDate"), _date(query, "endDate")
    found = [
        each
        for each in submissions
        if (start is None or each.created_at >= start) and (end is None or each.created_at <= end)
    ]
    if query.get("sortOrder", "desc").lower() != "asc":
        found.reverse()
    found = found[_position(found, query.get("LastEvaluatedKey")) :]
    limit = _limit(query)
    return found[:limit], len(found) > limit


def _check_strictly(query: Mapping[str, str]) -> None:
    if query.get("sortOrder", "ASC") not in {"ASC", "DESC"}:
        raise invalid(["query", "sortOrder"], "Input should be 'ASC' or 'DESC'", "enum")
    for name in ("startDate", "endDate"):
        if name in query and not _NODE_DATE.fullmatch(query[name]):
            raise invalid(["query", name], "Input should be like 2026-02-01T00:00:00.000Z")


def _position(found: Sequence[Submission], last: str | None) -> int:
    """Return the index of the page's first conversion, after the last one of the page before."""
    if not last:
        return 0
    ids = [each.task_id for each in found]
    if last not in ids:
        raise invalid(["query", "LastEvaluatedKey"], "Unknown key")
    return ids.index(last) + 1


def _limit(query: Mapping[str, str]) -> int:
    try:
        limit = int(query.get("limit") or DEFAULT_PAGE_SIZE)
    except ValueError:
        limit = 0
    if not 1 <= limit <= MAX_PAGE_SIZE:
        raise invalid(
            ["query", "limit"], f"Input should be an integer from 1 to {MAX_PAGE_SIZE}", "int"
        )
    return limit


def _date(query: Mapping[str, str], name: str) -> datetime | None:
    text = query.get(name)
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(["query", name], "Input should be a valid date", "datetime") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
