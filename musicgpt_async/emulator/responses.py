"""Build the JSON of the API's responses.

The public documents disagree about some shapes; `ResponseShape` selects one of them.
"""

import email.utils
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Literal

import attrs
from aiohttp import web

from musicgpt_async.emulator.vendor import Refusal, Submission

Links = Mapping[str, str]
"""Stem name → URL."""


@attrs.frozen(kw_only=True)
class ResponseShape:
    """The shape of the responses to byId and to submits, if the documents disagree.

    Args:
        links: "json" for a string of JSON with line breaks and indentation, "object" for an object
            stem → URL, "plain" for one URL (that of the first stem), "numbered" for a field with
            one URL for each stem, "flat" for fields with the names of the stems.
        fields: Name of the fields with links: "audio_url" or "conversion_path".
        numbers: "number", or "string" for "5.55" instead of 5.55.
        words: Case of status words: "upper" or "lower".
        wav: Whether byId has links to the WAV files.
        place: Place of the links: "inside" the conversion, or "beside" it at the top level.
        dates: "Z" for 2026-08-17T09:12:44.557Z, "offset" for 2026-08-17T09:12:44.557077+00:00.
        details: Whether byId has the fields `feature`, `message` and `webhook_url`.
        also: Undocumented names of further fields, with the links of the first stem.
        error: Shape of an error's body, a name in `ERROR_BODIES`; a 422 always has FastAPI's.
    """

    links: Literal["json", "object", "plain", "numbered", "flat"] = "json"
    fields: Literal["audio_url", "conversion_path"] = "audio_url"
    numbers: Literal["number", "string"] = "number"
    words: Literal["upper", "lower"] = "upper"
    wav: bool = True
    place: Literal["inside", "beside"] = "inside"
    dates: Literal["Z", "offset"] = "Z"
    details: bool = False
    also: tuple[str, ...] = ()
    error: str = "message"


SHAPES: Mapping[str, ResponseShape] = {
    "json": ResponseShape(),
    "object": ResponseShape(links="object"),
    "conversion_path": ResponseShape(fields="conversion_path"),
    "conversion_path_object": ResponseShape(fields="conversion_path", links="object"),
    "plain": ResponseShape(links="plain"),
    "strings": ResponseShape(numbers="string"),
    "lower": ResponseShape(words="lower"),
    "mp3_only": ResponseShape(wav=False),
    "beside": ResponseShape(place="beside"),
    "numbered": ResponseShape(links="numbered", fields="conversion_path"),
    "flat": ResponseShape(links="flat"),
    "second": ResponseShape(dates="offset", details=True),
}
"""The documented shapes, by name."""


def format_links(links: Links) -> str:
    """Format links as on the Extraction page: JSON in a string, with line breaks inside."""
    return json.dumps(links, indent=4)


def _links(shape: ResponseShape, links: Links) -> str | dict[str, str]:
    first = next(iter(links.values()))
    if shape.links == "plain":
        return first
    content = dict(links) | dict.fromkeys(shape.also, first)
    return format_links(content) if shape.links == "json" else content


def _number(shape: ResponseShape, value: float | None) -> Any:
    return str(value) if shape.numbers == "string" and value is not None else value


def _word(shape: ResponseShape, word: str) -> str:
    return word.lower() if shape.words == "lower" else word


def date(moment: datetime, style: Literal["Z", "offset"] = "Z") -> str:
    """Format a date as MusicGPT does."""
    if style == "offset":
        return moment.isoformat(timespec="microseconds")
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def acceptance(shape: ResponseShape, submission: Submission) -> dict[str, Any]:
    """Return the response to a submit."""
    return {
        "success": True,
        "message": "Message published to queue",
        "task_id": submission.task_id,
        "conversion_id": submission.conversion_id,
        "eta": _number(shape, submission.eta),
        "credit_estimate": _number(shape, submission.credit_estimate),
        "status": _word(shape, "IN_QUEUE"),
    }


def by_id(shape: ResponseShape, submission: Submission, mp3: Links, wav: Links) -> dict[str, Any]:
    """Return the response to a byId call."""
    content = conversion(shape, submission, mp3, wav)
    if shape.place == "inside":
        return {"success": True, "conversion": content}
    fields = (shape.fields, f"{shape.fields}_wav")
    return {
        "success": True,
        "conversion": {name: value for name, value in content.items() if name not in fields},
        **{name: content[name] for name in fields if name in content},
    }


def conversion(
    shape: ResponseShape, submission: Submission, mp3: Links, wav: Links
) -> dict[str, Any]:
    """Return a conversion for byId and byUser; it has links only after its completion."""
    content: dict[str, Any] = {
        "task_id": submission.task_id,
        "conversion_id": submission.conversion_id,
        "conversion_type": "EXTRACTION",
        "status": _word(shape, submission.status),
        "status_msg": submission.status_msg,
        **_link_fields(shape, shape.fields, mp3),
        "conversion_cost": _number(shape, submission.cost),
        "conversion_duration": _number(shape, submission.duration),
        "createdAt": date(submission.created_at, shape.dates),
        "updatedAt": date(submission.updated_at, shape.dates),
    }
    if shape.wav:
        content |= _link_fields(shape, f"{shape.fields}_wav", wav)
    if shape.details:
        content["feature"] = "EXTRACTION"
        content["message"] = submission.status_msg or "Message published to queue"
        content["webhook_url"] = submission.webhook_url or ""
    return content


def _link_fields(shape: ResponseShape, field: str, links: Links) -> dict[str, Any]:
    """Return the fields with the links of one format; without links, a single empty field."""
    if not links:
        return {field: None}
    if shape.links == "numbered":
        return {f"{field}_{number}": url for number, url in enumerate(links.values(), start=1)}
    if shape.links == "flat":
        ending = "_wav" if field.endswith("_wav") else ""
        return {f"{stem}{ending}": url for stem, url in links.items()}
    return {field: _links(shape, links)}


def _html(status: int, message: str) -> bytes:
    title = f"{status} {_phrase(status)}"
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1>"
        f"</center>\r\n<hr><center>nginx</center>\r\n<!-- {message} -->\r\n</body>\r\n</html>\r\n"
    ).encode()


def _xml(status: int, message: str) -> bytes:
    code = {403: "AccessDenied", 404: "NoSuchKey", 416: "InvalidRange"}.get(status, "Error")
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{head}<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _details(message: str) -> list[dict[str, Any]]:
    return [{"loc": ["body"], "msg": message, "type": "value_error"}]


def _error(status: int, message: str) -> dict[str, Any]:
    return {"code": _phrase(status).upper().replace(" ", "_"), "message": message, "details": {}}


ERROR_BODIES: Mapping[str, Any] = {
    "message": lambda _, message: {"success": False, "message": message},
    "error": lambda _, message: {"success": False, "error": message},
    "error_object": lambda status, message: {"success": False, "error": _error(status, message)},
    "detail": lambda _, message: {"detail": message},
    "detail_list": lambda _, message: {"detail": _details(message)},
    "html": _html,
    "xml": _xml,
    "empty": lambda _status, _message: b"",
}
"""The bodies of errors, by name: functions of status and message that return JSON or bytes."""


def error(
    status: int,
    message: str,
    *,
    body: str | bytes = "message",
    retry_after: float | str | timedelta | None = None,
    location: str | None = None,
) -> web.Response:
    """Return an error response with a body of a shape in `ERROR_BODIES`, or with given bytes."""
    content = body if isinstance(body, bytes) else ERROR_BODIES[body](status, message)
    headers = {"Retry-After": _retry_after(retry_after)} if retry_after is not None else {}
    if location is not None:
        headers["Location"] = location
    if not isinstance(content, bytes):
        return web.json_response(content, status=status, headers=headers)
    kind = {"html": "text/html", "xml": "application/xml"}.get(str(body), "text/plain")
    return web.Response(status=status, body=content, headers=headers, content_type=kind)


def _retry_after(value: float | str | timedelta) -> str:
    if isinstance(value, timedelta):
        return email.utils.format_datetime(datetime.now(UTC) + value, usegmt=True)
    return str(value)


def refusal(shape: ResponseShape, refused: Refusal, *, retry_after: bool) -> web.Response:
    """Return the response to a refused request."""
    if refused.detail:
        return web.json_response({"detail": refused.detail}, status=refused.status)
    wait = refused.retry_after if retry_after else None
    return error(refused.status, refused.message, body=shape.error, retry_after=wait)
