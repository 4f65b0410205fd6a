"""Requests, and the verdict on (status, headers, body): the one status map.

Error pages: MusicGPT docs, errors and rate limits. The bodies' shapes are payloads.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

import attrs

from musicgpt_async._rules import payloads
from musicgpt_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ForbiddenError,
    InsufficientCreditsError,
    InvalidOptionError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    ServerError,
    ValidationError,
)

DEFAULT_BASE_URL = "https://api.musicgpt.com/api/public/v1"
# A vendor's Retry-After beyond this is an accident, not a wish.
LONGEST_RETRY_AFTER = 120.0

STATUS_ERRORS: Mapping[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientCreditsError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    422: ValidationError,
    429: RateLimitError,
}


@attrs.frozen
class Answer:
    """What came back: the transport's side of every call.

    Attributes:
        status: HTTP status.
        headers: Names in lower case.
        body: The first MiB of the content.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def submit_url(base_url: str) -> str:
    """Return where a track is submitted (MusicGPT docs, Extraction)."""
    return f"{base_url}/Extraction"


def look_url(base_url: str) -> str:
    """Return where a job is asked after (MusicGPT docs, status check)."""
    return f"{base_url}/byId"


def look_query(task_id: str) -> dict[str, str]:
    """Return the query of a look: one of the two ids, never both."""
    return {"conversionType": payloads.CONVERSION_TYPE, "task_id": task_id}


def listing_url(base_url: str) -> str:
    """Return where the account's conversions are listed (the vendor's n8n node)."""
    return f"{base_url}/byUser"


def listing_query(start: float, end: float, *, after: str | None = None) -> dict[str, str]:
    """Return the query of a listing between two moments, in seconds since the epoch."""
    query = {
        "conversionType": payloads.CONVERSION_TYPE,
        "startDate": datetime.fromtimestamp(start, UTC).isoformat(),
        "endDate": datetime.fromtimestamp(end, UTC).isoformat(),
        "sortOrder": "asc",
        "limit": "100",
    }
    return query if after is None else {**query, "LastEvaluatedKey": after}


def read(answer: Answer, *, now: float, what: str) -> dict[str, Any]:
    """Return the JSON object of an answer that says yes.

    Args:
        answer: What came back.
        now: Seconds since the epoch, for a Retry-After that is a date.
        what: What was asked, for the message: "The submit", "The look at job …".

    Raises:
        APIError: The answer says no.
        ProtocolError: The answer is none of the API's.
    """
    if 200 <= answer.status < 300:
        data = payloads.read_object(answer.body)
        if payloads.refuses(data):
            raise _refusal(answer, payloads.words_of(data), now=now, what=what)
        return data
    if answer.status >= 400:
        raise _refusal(answer, payloads.read_words(answer.body), now=now, what=what)
    raise ProtocolError(
        f"{what} was answered with status {answer.status}"
        f"{_redirect(answer)}; check MUSICGPT_BASE_URL. {payloads.snippet(answer.body)}".rstrip(),
        status=answer.status,
    )


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, in either of its forms.

    RFC 9110, section 10.2.3: seconds, or an HTTP date. Clamped to 0 … ``LONGEST_RETRY_AFTER``.
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def checked_names(given: Iterable[str], kind: type[StrEnum], what: str) -> tuple[str, ...]:
    """Return the names as the API spells them, each once.

    Raises:
        InvalidOptionError: One of them does not exist; the message names the closest right one.
    """
    if isinstance(given, str) and not isinstance(given, kind):
        raise InvalidOptionError(f"The {what}s are a list of names: [{str(given)!r}].")
    names = [given] if isinstance(given, str) else list(given)
    known = [str(member) for member in kind]
    for name in names:
        if name not in known:
            raise InvalidOptionError(_closest(name, known, what))
    return tuple(dict.fromkeys(map(str, names)))


def _closest(name: Any, known: Sequence[str], what: str) -> str:
    import difflib  # noqa: PLC0415 - only a wrong name needs it

    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(str(name).strip().lower(), by_lower, n=1, cutoff=0.0)
    return (
        f"There is no {what} named {str(name)[:50]!r}; the closest is {by_lower[close[0]]!r}. "
        f"All of them: {', '.join(known)}."
    )


def _refusal(answer: Answer, words: str | None, *, now: float, what: str) -> APIError:
    kind = STATUS_ERRORS.get(answer.status, ServerError if answer.status >= 500 else APIError)
    said = f' The vendor says: "{words}".' if words else ""
    return kind(
        f"{what} was refused with status {answer.status}.{said} {kind.hint}",
        status=answer.status,
        retry_after=retry_after(answer.headers, now=now),
        vendor_message=words,
    )


def _redirect(answer: Answer) -> str:
    location = answer.headers.get("location")
    return (
        f" (a redirect to {payloads.snippet(location.encode('utf-8', 'replace'))})"
        if location
        else ""
    )


def _seconds_until(date: str, now: float) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
    # A date without a zone is GMT by definition (RFC 9110, section 5.6.7).
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return zoned.timestamp() - now
