"""Build request queries, and convert responses (status, headers, body) to values or errors.

The only map from statuses to errors is here (MusicGPT docs, errors and rate limits). The shapes of
the bodies are parsed in ``payloads``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import attrs

from musicgpt_async._rules import payloads
from musicgpt_async._rules.endpoints import base_url_of
from musicgpt_async._rules.payloads import Conversion
from musicgpt_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    EndpointNotFoundError,
    ForbiddenError,
    InsufficientCreditsError,
    InvalidOptionError,
    MusicGPTError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from musicgpt_async.models import Acceptance

T = TypeVar("T")

MAX_RETRY_AFTER = 120.0  # seconds; a longer delay is taken for a mistake of the server

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
class Response:
    """A response of the API, as the transport read it.

    Attributes:
        status: HTTP status.
        headers: Headers, with names in lower case.
        body: The first MiB of the content.
        url: URL of the request.
        secret: The API key, which a server may echo. It is replaced in messages but not in data,
            since a short key such as "task" would corrupt the data.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    url: str = ""
    secret: str = attrs.field(default="", repr=False)

    def redact(self, text: str) -> str:
        """Return a message with the API key replaced."""
        return text.replace(self.secret, "***") if self.secret else text


def status_query(task_id: str) -> dict[str, str]:
    """Return the query of a poll: one of the two ids, never both."""
    return {"conversionType": payloads.CONVERSION_TYPE, "task_id": task_id}


def listing_query(start: float, end: float, *, after: str | None = None) -> dict[str, str]:
    """Return the query of a page of the listing.

    The call is not documented; the query has the form that MusicGPT's own n8n node uses.

    Args:
        start: Earliest creation, in seconds since the epoch.
        end: Latest creation, in seconds since the epoch.
        after: Key of the previous page, or ``None`` for the first one.
    """
    query = {
        "conversionType": payloads.CONVERSION_TYPE,
        "startDate": _date(start),
        "endDate": _date(end),
        "sortOrder": "ASC",
        "limit": "50",
    }
    return query if after is None else {**query, "LastEvaluatedKey": after}


def parse_response(response: Response, *, now: float, subject: str) -> dict[str, Any]:
    """Return the JSON object of a successful response.

    Args:
        response: The response.
        now: Seconds since the epoch, for a Retry-After that is a date.
        subject: Name of the call for messages: "The submit", "The poll of job …".

    Raises:
        APIError: The response reports an error.
        EndpointNotFoundError: The API has no such route.
        ProtocolError: The response is not one of this API.
    """
    return _read(response, lambda data: data, now=now, subject=subject)


def parse_acceptance(response: Response, *, now: float, subject: str) -> Acceptance:
    """Return the acceptance in the response to a submit; raises as :func:`parse_response`."""
    return _read(response, payloads.parse_acceptance, now=now, subject=subject)


def parse_conversion(
    response: Response, *, now: float, subject: str, requested: Sequence[str] = ()
) -> Conversion:
    """Return the conversion in a byId response; raises as :func:`parse_response`.

    Args:
        response: The response.
        now: Seconds since the epoch.
        subject: Name of the call for messages.
        requested: The requested stems.
    """
    parse = partial(payloads.parse_conversion, requested=requested)
    conversion = _read(response, parse, now=now, subject=subject, failure=payloads.parse_failure)
    if conversion.message is None:
        return conversion
    return attrs.evolve(conversion, message=response.redact(conversion.message))


def parse_listing(
    response: Response, *, now: float, subject: str
) -> tuple[list[Conversion], str | None]:
    """Return a page of the listing and the next page's key; raises as :func:`parse_response`."""

    def parse(data: dict[str, Any]) -> tuple[list[Conversion], str | None]:
        return payloads.parse_listing(data), payloads.listing_continues_after(data)

    return _read(response, parse, now=now, subject=subject)


def _read(
    response: Response,
    parse: Callable[[dict[str, Any]], T],
    *,
    now: float,
    subject: str,
    failure: Callable[[Mapping[str, Any]], T | None] = lambda _: None,
) -> T:
    # Raise here, in a frame without a local variable that holds the key: crash reporters upload
    # local variables.
    outcome = _outcome(response, parse, failure, now=now, subject=subject)
    if isinstance(outcome, MusicGPTError):
        raise outcome
    return outcome


def _outcome(
    response: Response,
    parse: Callable[[dict[str, Any]], T],
    failure: Callable[[Mapping[str, Any]], T | None],
    *,
    now: float,
    subject: str,
) -> T | MusicGPTError:
    try:
        if not 200 <= response.status < 300:
            return _refusal_of_status(response, now=now, subject=subject)
        data = payloads.parse_object(response.body)
        if not payloads.is_error(data):
            return parse(data)
        failed = failure(data)
        if failed is not None:
            return failed
        return _refusal(response, payloads.error_message(data), now=now, subject=subject)
    except ProtocolError as error:
        return ProtocolError(response.redact(error.message), status=error.status)


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the seconds of a Retry-After header, clamped to 0 … ``MAX_RETRY_AFTER``.

    The value is a number of seconds or an HTTP date (RFC 9110, section 10.2.3).

    Args:
        headers: Headers, with names in lower case.
        now: Seconds since the epoch.
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def validate_names(chosen: Iterable[str], kind: type[StrEnum], subject: str) -> tuple[str, ...]:
    """Return the names as the API spells them, without duplicates.

    Raises:
        InvalidOptionError: A name does not exist; the message names the closest valid one.
    """
    if isinstance(chosen, str) and not isinstance(chosen, kind):
        raise InvalidOptionError(f"The {subject}s must be a list of names: use [{str(chosen)!r}].")
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    valid_names = [str(member) for member in kind]
    for name in names:
        if name not in valid_names:
            raise InvalidOptionError(_closest(name, valid_names, subject))
    return tuple(dict.fromkeys(map(str, names)))


def check_flag(value: Any, name: str) -> bool:
    """Return a boolean option unchanged.

    Raises:
        InvalidOptionError: The value is not a bool, for example the string "false".
    """
    if not isinstance(value, bool):
        raise InvalidOptionError(f"{name} must be True or False, not {str(value)[:50]!r}.")
    return value


def _closest(name: Any, valid_names: Sequence[str], subject: str) -> str:
    import difflib  # noqa: PLC0415 - only a wrong name needs it

    by_lower = {each.lower(): each for each in valid_names}
    close = difflib.get_close_matches(str(name).strip().lower(), by_lower, n=1, cutoff=0.0)
    return (
        f"There is no {subject} named {str(name)[:50]!r}; the closest is {by_lower[close[0]]!r}. "
        f"All of them: {', '.join(valid_names)}."
    )


def _refusal_of_status(response: Response, *, now: float, subject: str) -> MusicGPTError:
    if response.status == 404 and payloads.is_missing_route(response.body):
        place = response.url.partition("?")[0] or "that address"
        return EndpointNotFoundError(
            response.redact(
                f"{subject} was refused with status 404: there is no API at {place}. "
                f"{EndpointNotFoundError.advice}"
            ),
            status=404,
        )
    if response.status >= 400:
        return _refusal(
            response, payloads.parse_error_message(response.body), now=now, subject=subject
        )
    said = payloads.excerpt(response.body)
    words = f"{subject} was answered with status {response.status}{_redirect(response)}. {said}"
    return ProtocolError(response.redact(words.rstrip()), status=response.status)


def _refusal(response: Response, words: str | None, *, now: float, subject: str) -> APIError:
    kind = STATUS_ERRORS.get(response.status, ServerError if response.status >= 500 else APIError)
    words = None if words is None else response.redact(words)
    said = f' MusicGPT says: "{words}".' if words else ""
    return kind(
        f"{response.redact(subject)} was refused with status {response.status}.{said} "
        f"{kind.advice}",
        status=response.status,
        retry_after=retry_after(response.headers, now=now),
        vendor_message=words,
    )


def _redirect(response: Response) -> str:
    """Describe a redirect. It is not followed, since the API key would be sent there."""
    location = response.headers.get("location")
    if not location:
        return "; check MUSICGPT_BASE_URL"
    base = base_url_of(location)
    place = payloads.excerpt(location.encode("utf-8", "replace"))
    if base is None:
        return f" (a redirect to {place}); check MUSICGPT_BASE_URL"
    moved = payloads.excerpt(base.encode("utf-8", "replace"))
    return (
        f" (a redirect to {place}, which was not followed); if the API has moved there, "
        f"set MUSICGPT_BASE_URL={moved}"
    )


def _date(moment: float) -> str:
    """Format seconds since the epoch as the n8n node does: ``2026-02-01T00:00:00.000Z``."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _seconds_until(date: str, now: float) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
    # A date without a zone is GMT by definition (RFC 9110, section 5.6.7).
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return zoned.timestamp() - now
