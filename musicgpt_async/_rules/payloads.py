"""Convert MusicGPT's JSON to values: the only module that knows its key names.

The sources disagree on shapes (MusicGPT docs: Extraction, status check, webhooks; MusicGPT's npm
package and n8n node). Each parser therefore accepts every known shape, and raises a
:class:`ProtocolError` with an excerpt for anything else.

Known places of the links to the stems:

- in ``audio_url``, ``audio_url_wav``, ``conversion_path``, ``conversion_path_wav``, each of them
  also with a number at its end; or, from an older worker, in fields with the names of stems;
- in the conversion, or beside it at the top level of the response;
- as a map of stem to URL, as a string that holds such a map as JSON, or as one plain URL.

If a file's extension contradicts the name of its field, the extension counts: the pages of the
second generation show ``audio_url`` links that end in ``.wav``. A value that is not an absolute
http(s) URL is ignored: the bucket of a bare S3 key is not documented.

Every stored value of a response (ids, names of stems, links, amounts) is validated here, for
submits, polls, the listing and webhooks alike. An id that a journal cannot store is dropped. A
negative estimate is dropped too, since it would raise the caller's credit limit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

import attrs

from musicgpt_async._rules.records import is_task_id
from musicgpt_async.errors import ProtocolError
from musicgpt_async.models import Acceptance, Extraction, Stem, StemLinks

CONVERSION_TYPE = "EXTRACTION"
EXCERPT_LENGTH = 200
# The stem of a plain link, unless exactly one stem was requested.
UNNAMED_STEM = "audio"

# The stems of a submit that names none (MusicGPT docs, Extraction).
DEFAULT_STEMS = frozenset({Stem.DRUMS, Stem.BASS, Stem.PIANO, Stem.GUITAR})

_NO_LINKS = StemLinks()
_LINK_FIELD = re.compile(
    r"(?:audio_url|audio_path|conversion_path)(?P<wav>_wav)?(?:_mp3)?(?:_(?P<number>\d{1,3}))?"
)
_STEM_FIELD = re.compile(rf"(?P<stem>{'|'.join(Stem)})(?:_url|_path)?(?P<wav>_wav)?")


class Progress(Enum):
    """The meaning of a status word for a waiter."""

    UNFINISHED = "unfinished"
    COMPLETED = "completed"
    FAILED = "failed"


_PROGRESS = {
    "IN_QUEUE": Progress.UNFINISHED,
    "PENDING": Progress.UNFINISHED,
    "PROCESSING": Progress.UNFINISHED,
    "IN_PROGRESS": Progress.UNFINISHED,
    "COMPLETED": Progress.COMPLETED,
    "ERROR": Progress.FAILED,
    "FAILED": Progress.FAILED,
    "CANCELLED": Progress.FAILED,
}


@attrs.frozen(kw_only=True)
class Conversion:
    """A conversion as a byId response, an entry of the listing or a delivery describes it.

    Attributes:
        task_id: Empty if it is missing or cannot be stored.
        conversion_id: MusicGPT's second id of the task.
        progress: The meaning of the status.
        status: MusicGPT's status word in upper case, empty if it is missing.
        is_known_status: Whether this library knows the word.
        message: ``status_msg``, or the message of another field if it is missing.
        links: Links by stem.
        cost: Credits charged.
        duration: Seconds of audio.
        created: ISO date of creation.
        webhook_url: The webhook URL of the submit.
        raw: The JSON object.
    """

    task_id: str
    conversion_id: str | None
    progress: Progress
    status: str
    is_known_status: bool
    message: str | None
    links: Mapping[str, StemLinks]
    cost: float | None
    duration: float | None
    created: str | None
    webhook_url: str | None
    raw: Mapping[str, Any] = attrs.field(repr=False)

    def extraction(self, task_id: str) -> Extraction:
        """Return the result of the finished job that this conversion describes.

        Args:
            task_id: The id to use if the conversion has none.
        """
        return Extraction(
            task_id=self.task_id or task_id,
            conversion_id=self.conversion_id,
            stems=self.links,
            cost=self.cost,
            duration=self.duration,
            raw=self.raw,
        )


def submit_fields(
    *,
    stems: Sequence[str],
    preprocessing: Sequence[str],
    eco_mode: bool = False,
    audio_url: str = "",
    webhook_url: str | None = None,
) -> dict[str, str]:
    """Return the text fields of a submit, in the order of MusicGPT's samples.

    ``eco_mode`` is omitted if it is false, which is its default: the first generation of the API
    does not know the field.
    """
    fields = {
        "audio_url": audio_url,
        "stems": json.dumps(list(stems)),
        "preprocessing_options": json.dumps(list(preprocessing)),
    }
    if eco_mode:
        fields["eco_mode"] = "true"
    return fields if webhook_url is None else {**fields, "webhook_url": webhook_url}


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Raises:
        ProtocolError: The body is not a JSON object.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProtocolError(f"The response is not a JSON object: {excerpt(body)}")
    return value


def parse_acceptance(data: Mapping[str, Any]) -> Acceptance:
    """Return the acceptance in the response to a submit.

    Raises:
        ProtocolError: The response has no task_id.
    """
    task_id = _id(data.get("task_id"))
    if task_id is None:
        raise ProtocolError(f"The response to the submit has no task_id: {excerpt(data)}")
    return Acceptance(
        task_id=task_id,
        conversion_id=_id(data.get("conversion_id")),
        eta=_amount(data.get("eta")),
        credit_estimate=_amount(data.get("credit_estimate")),
    )


def parse_conversion(data: Mapping[str, Any], *, requested: Sequence[str] = ()) -> Conversion:
    """Return the conversion in a byId response.

    Args:
        data: The JSON object of the response.
        requested: The requested stems: a single one names a plain link.

    Raises:
        ProtocolError: The response contains no conversion.
    """
    conversion = data.get("conversion", data)
    if not isinstance(conversion, dict) or not {"status", "task_id"} & conversion.keys():
        raise ProtocolError(f"The response contains no conversion: {excerpt(data)}")
    return _conversion(conversion, requested, beside=data)


def parse_failure(data: Mapping[str, Any]) -> Conversion | None:
    """Return the failed conversion in a byId response with ``success: false``, if it has one."""
    conversion = data.get("conversion")
    if not isinstance(conversion, dict):
        return None
    read = _conversion(conversion, ())
    return read if read.progress is Progress.FAILED else None


def parse_listing(data: Mapping[str, Any]) -> list[Conversion]:
    """Return the conversions of a byUser listing, without malformed entries.

    Raises:
        ProtocolError: The response contains no list.
    """
    conversions = data.get("conversions")
    if not isinstance(conversions, list):
        raise ProtocolError(f"The response contains no list of conversions: {excerpt(data)}")
    return [_conversion(each, ()) for each in conversions if isinstance(each, dict)]


def listing_continues_after(data: Mapping[str, Any]) -> str | None:
    """Return the key of the next page of a listing, or ``None`` at its end."""
    key = data.get("LastEvaluatedKey")
    return json.dumps(key) if isinstance(key, dict) else _text(key)


def parse_delivery(data: Mapping[str, Any], *, requested: Sequence[str] = ()) -> Conversion:
    """Return the conversion in a webhook delivery.

    It is only a hint, since it may be forged. The sample on the Extraction page is flat and has
    ``success`` instead of a status.
    """
    inner = data.get("conversion")
    flat = inner if isinstance(inner, dict) else data
    conversion = _conversion(flat, requested, beside=data)
    if conversion.status:
        return conversion
    progress = Progress.FAILED if is_error(data) else Progress.COMPLETED
    return attrs.evolve(conversion, progress=progress)


def merge_links(
    polled: Mapping[str, StemLinks], hinted: Mapping[str, StemLinks]
) -> dict[str, StemLinks]:
    """Return the links of a byId response, completed by those of a delivery."""
    return {
        stem: StemLinks(
            mp3=polled.get(stem, _NO_LINKS).mp3 or hinted.get(stem, _NO_LINKS).mp3,
            wav=polled.get(stem, _NO_LINKS).wav or hinted.get(stem, _NO_LINKS).wav,
        )
        for stem in dict.fromkeys([*polled, *hinted])
    }


def is_error(data: Mapping[str, Any]) -> bool:
    """Return whether a response has ``success: false``, as a boolean or as a string."""
    success = data.get("success", True)
    return success is False or (isinstance(success, str) and success.strip().lower() == "false")


def is_object(body: bytes) -> bool:
    """Return whether a body is a JSON object, as every response of the API is; never raises."""
    try:
        parse_object(body)
    except ProtocolError:
        return False
    return True


def is_missing_route(body: bytes) -> bool:
    """Return whether a 404 means a missing route (FastAPI's body), not an unknown task."""
    if not is_object(body):
        return False
    data = parse_object(body)
    return len(data) == 1 and _message(data.get("detail")) == "Not Found"


def parse_error_message(body: bytes) -> str | None:
    """Return MusicGPT's message in the body of an error of any shape; never raises."""
    try:
        return error_message(parse_object(body))
    except ProtocolError:
        return excerpt(body) or None


def error_message(data: Mapping[str, Any]) -> str | None:
    """Return MusicGPT's message in the JSON object of an error."""
    found = (_message(data.get(key)) for key in ("message", "error", "detail", "status_msg"))
    return next((words for words in found if words), None)


def excerpt(value: bytes | Mapping[str, Any]) -> str:
    """Return the start of a response on one line, short enough for a message."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:4096]).split())
    return line if len(line) <= EXCERPT_LENGTH else line[: EXCERPT_LENGTH - 1] + "…"


def _conversion(
    data: Mapping[str, Any], requested: Sequence[str], beside: Mapping[str, Any] | None = None
) -> Conversion:
    status = (_text(data.get("status")) or "").upper()
    links = _links(data, requested)
    if not links and beside is not None:
        links = _links(beside, requested)
    return Conversion(
        task_id=_id(data.get("task_id")) or "",
        conversion_id=_id(data.get("conversion_id")),
        progress=_PROGRESS.get(status) or _progress_by_links(status, links, requested),
        status=status,
        is_known_status=status in _PROGRESS,
        message=_message(data.get("status_msg")) or error_message(data),
        links=links,
        cost=_number(data.get("conversion_cost")),
        duration=_number(data.get("conversion_duration")),
        created=_text(data.get("createdAt")),
        webhook_url=_text(data.get("webhook_url")),
        raw=dict(data),
    )


def _progress_by_links(
    word: str, links: Mapping[str, StemLinks], requested: Sequence[str]
) -> Progress:
    """Judge an unknown status word: the job is completed if every requested link is present."""
    asked = set(requested) or set(DEFAULT_STEMS)
    is_done = asked <= links.keys() if word else bool(links)
    return Progress.COMPLETED if is_done else Progress.UNFINISHED


def _links(data: Mapping[str, Any], requested: Sequence[str]) -> dict[str, StemLinks]:
    """Return all links of an object; the first of two links to the same file counts."""
    links: dict[str, StemLinks] = {}
    fields = _link_fields(data)
    for named in ("mp3", "wav"):
        values = [value for format_, value in fields if format_ == named]
        for stem, url in _urls(values, requested):
            format_ = _format_of(url) or named
            found = links.get(stem, _NO_LINKS)
            if getattr(found, format_) is None:
                found = attrs.evolve(found, **{format_: url})
            links[stem] = found
    return links


def _link_fields(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (format, value) of each field that may contain links, in order of their numbers."""
    fields: list[tuple[int, str, Any]] = []
    for name, value in data.items():
        if not value or not isinstance(name, str):
            continue
        if field := _LINK_FIELD.fullmatch(name):
            fields.append((int(field["number"] or 0), "wav" if field["wav"] else "mp3", value))
        elif (field := _STEM_FIELD.fullmatch(name)) and _is_url(value):
            fields.append((0, "wav" if field["wav"] else "mp3", {field["stem"]: value}))
    fields.sort(key=lambda each: each[0])
    return [(format_, value) for _, format_, value in fields]


def _urls(values: Sequence[Any], requested: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (stem, URL) from values that name their stems, otherwise from plain URLs."""
    read = [_decode(value) for value in values]
    named = [
        (name, url.strip())
        for value in read
        if isinstance(value, Mapping)
        for stem, url in value.items()
        if (name := _id(stem)) is not None and _is_url(url)
    ]
    plain = [] if named else list(dict.fromkeys(value for value in read if _is_url(value)))
    yield from named or zip(_names(plain, requested), plain, strict=True)


def _names(urls: Sequence[str], requested: Sequence[str]) -> Iterable[str]:
    """Return the stems of plain URLs: the one requested stem, or those in the file names."""
    if len(urls) == 1 and len(requested) == 1:
        return list(requested)
    found: list[str] = []
    for url in urls:
        name = stem_in(_path_of(url).rpartition("/")[2]) or UNNAMED_STEM
        # Two files with the same stem in their names are still two files.
        found.append(name if name not in found else f"{UNNAMED_STEM}_{len(found) + 1}")
    return found


def stem_in(file_name: str) -> str | None:
    """Return the stem in a file name, or ``None`` if it contains none or several."""
    words = re.sub(r"[^a-z0-9]+", "_", file_name.rpartition(".")[0].lower())
    found = [stem for stem in Stem if f"_{stem}_" in f"_{words}_"]
    longest = [
        each for each in found if not any(each != other and each in other for other in found)
    ]
    return str(longest[0]) if len(longest) == 1 else None


def _format_of(url: str) -> str | None:
    ending = _path_of(url).rpartition(".")[2].lower()
    return ending if ending in ("mp3", "wav") else None


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:  # the download reports what is wrong with the URL
        return ""


def _decode(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value.strip() if isinstance(value, str) else value
    try:
        # The documented sample has line breaks between its entries; strict=False accepts them in
        # strings too.
        return json.loads(value, strict=False)
    except (ValueError, RecursionError):
        return None


def _is_url(value: Any) -> bool:
    """Return whether a value is a link to a file; a bucket without a key is not."""
    if not isinstance(value, str) or not value.strip().startswith(("http://", "https://")):
        return False
    if not value.strip().isprintable():  # with a NUL or a lone surrogate, which cannot be stored
        return False
    try:
        parts = urlsplit(value.strip())
    except ValueError:  # the download reports what is wrong with the URL
        return True
    return bool(parts.path.strip("/") or parts.query)


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    try:
        return str(value).strip() or None
    except ValueError:  # an integer of more digits than Python will print
        return None


def _id(value: Any) -> str | None:
    """Return an id, or the name of a stem, that any journal can store."""
    text = _text(value)
    return text if text is not None and is_task_id(text) else None


def _amount(value: Any) -> float | None:
    """Return a number that is not below zero: seconds or credits, with -1 for "unknown"."""
    number = _number(value)
    return number if number is not None and number >= 0.0 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _message(value: Any, depth: int = 4) -> str | None:
    """Return the message in one part of an error: a string, an object, or a list of objects."""
    if not value:
        return None
    if isinstance(value, str):
        return excerpt(value.encode("utf-8", "replace")) or None
    if isinstance(value, Mapping):
        inner = map(value.get, ("message", "msg", "code", "details")) if depth else ()
        return next(filter(None, (_message(each, depth - 1) for each in inner)), None)
    if isinstance(value, list) and depth:
        parts = (_detail(each, depth - 1) for each in value[:5])
        return "; ".join(filter(None, parts)) or None
    return None


def _detail(item: Any, depth: int) -> str | None:
    """Return one entry of a FastAPI validation error as ``location: message``."""
    if not isinstance(item, Mapping):
        return _message(item, depth)
    location = item.get("loc")
    path = ".".join(_text(part) or "?" for part in location) if isinstance(location, list) else ""
    message = _message(item, depth)
    return f"{path}: {message}" if path and message else message
