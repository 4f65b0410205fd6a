"""Every fault that is tried, and what the user gets: for the tests and for the documentation.

``python tests/faults/table.py`` prints it as Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import groupby
from typing import Any

import attrs

from musicgpt_async import (
    APIError,
    DeadlineError,
    DownloadError,
    ExtractionFailedError,
    InsufficientCreditsError,
    JournalError,
    MusicGPTError,
    ProtocolError,
    SubmissionUnknownError,
    TransportError,
    TransportTimeoutError,
    ValidationError,
)
from musicgpt_async.emulator import Emulator, Fault, FaultContext

# More than the buffers of two sockets hold, so that the end of a track cannot slip out unread.
LONG = 24 << 20
SHORT = 20_000
TARGET, SPARED = "drums", "bass"
"""The requested stems; faults of files affect the first one only."""


@attrs.frozen(kw_only=True)
class Case:
    """A fault and its consequences.

    Attributes:
        on: The target.
        what: The fault, as text.
        gets: The result for the user, as text.
        faults: The faults that the emulator injects.
        submissions: Conversions that the emulator accepted, each of which is paid for.
        posts: Submits that reached the emulator.
        error: The class of the error that the user gets, if any.
        words: A regular expression that its message matches.
        size: Bytes of the track.
        format: The requested format.
        journals: Whether to run it with a journal, without one, or both.
        settings: Further arguments of the session.
    """

    on: str
    what: str
    gets: str
    faults: tuple[Fault, ...]
    submissions: int = 1
    posts: int = 1
    error: type[MusicGPTError] | None = None
    words: str = ""
    size: int = SHORT
    format: Any = "wav"
    journals: tuple[bool, ...] = (False,)
    settings: dict[str, Any] = attrs.field(factory=dict)

    @property
    def row(self) -> str:
        """The case as a row of the table."""
        return make_row(self)


@attrs.frozen(kw_only=True)
class Outage:
    """A time for which the database of the journal is away, and its consequences.

    Attributes:
        what: The fault, as text.
        gets: The result for the user, as text.
        begins: Whether the moment has come at which the database goes away.
        faults: The faults that the emulator injects.
        is_killed: Whether the process is killed meanwhile; another one resumes its jobs.
        submissions: Conversions that the emulator accepted, each of which is paid for.
        error: The class of the error that the user gets, if any.
    """

    on: str = "Database"
    what: str
    gets: str
    begins: Callable[[Emulator], object]
    faults: tuple[Fault, ...] = ()
    is_killed: bool = False
    submissions: int = 1
    error: type[MusicGPTError] | None = None

    @property
    def row(self) -> str:
        """The case as a row of the table."""
        return make_row(self)


def make_row(case: Case | Outage) -> str:
    """Return a case as a row of the table."""
    ends = f"{case.gets}: `{case.error.__name__}`" if case.error else case.gets
    return f"| {case.what} | {case.submissions} | {ends} |"


def submit(what: str, gets: str, *faults: tuple[str, dict[str, Any]], **facts: Any) -> Case:
    """Return a case of a failed submit."""
    injected = tuple(Fault("submit", kind, **how) for kind, how in faults)
    return Case(
        on="Submit", what=what, gets=gets, faults=injected, **{"journals": (False, True), **facts}
    )


def unknown(what: str, kind: str, *, submissions: int = 1, **how: Any) -> Case:
    """Return a case in which it is unknown whether the track was accepted."""
    facts = {key: how.pop(key) for key in ("journals",) if key in how}
    return submit(
        what,
        "not submitted again; the end is unknown",
        (kind, how),
        submissions=submissions,
        error=SubmissionUnknownError,
        words="not sent again by itself",
        **facts,
    )


def refused(what: str, error: type[MusicGPTError], words: str, kind: str, **how: Any) -> Case:
    """Return a case in which MusicGPT refuses."""
    size = how.pop("size", SHORT)
    return submit(
        what, "fails at once", (kind, how), submissions=0, error=error, words=words, size=size
    )


def failed_poll(what: str, kind: str, **how: Any) -> Case:
    """Return a case of a look gone wrong, which is never a failed job."""
    return Case(on="Poll", what=what, gets=WHOLE, faults=(Fault("byId", kind, **how),))


def file(what: str, gets: str, *faults: tuple[str, dict[str, Any]], **facts: Any) -> Case:
    """Return a case of a failed download."""
    injected = tuple(Fault("file", kind, when=_is_target, **how) for kind, how in faults)
    return Case(on="File", what=what, gets=gets, faults=injected, **facts)


def spoilt(what: str, words: str, kind: str, **how: Any) -> Case:
    """Return a case in which a file cannot be had whole."""
    gets = how.pop("gets", "no file under that name; the other stem is complete")
    form = how.pop("format", "wav")
    return file(what, gets, (kind, how), error=DownloadError, words=words, format=form)


def _is_target(context: FaultContext) -> bool:
    return (context.file or "").startswith(TARGET)


AGAIN = "submitted again, paid for once; all stems complete"
IN_LINE = "keeps its place in the queue, submitted again; all stems complete"
WHOLE = "all stems complete"
RESUMED = "continues where it stopped; all stems complete"
OVER = "starts over; all stems complete"
FOREVER: dict[str, Any] = {"times": None}
PAGE = b"<html><body>Welcome to our network</body></html>"

SUBMITS = (
    submit(
        "connection closed before the track was read",
        AGAIN,
        ("drop_before_body", {}),
        posts=2,
        size=LONG,
    ),
    submit(
        "connection closed in the middle of the track",
        AGAIN,
        ("drop_mid_body", {"at": 0.1}),
        posts=2,
        size=LONG,
    ),
    submit(
        "the same, five times in a row",
        "given up",
        ("drop_mid_body", {"at": 0.1, **FOREVER}),
        submissions=0,
        posts=5,
        size=LONG,
        error=TransportError,
        words="connection to 127.0.0.1 failed",
    ),
    submit(
        "server stops reading in the middle of the track",
        AGAIN,
        ("stall_read", {"at": 0.1}),
        posts=2,
        size=LONG,
    ),
    submit(
        "the same, five times in a row",
        "given up",
        ("stall_read", {"at": 0.1, **FOREVER}),
        submissions=0,
        posts=5,
        size=LONG,
        error=TransportTimeoutError,
        words="accepted no byte",
        journals=(False,),
    ),
    unknown(
        "short track sent completely, connection closed before it was read",
        "drop_before_body",
        submissions=0,
        journals=(False,),  # a journal's write leaves time to see that the connection closed
    ),
    unknown("accepted, connection closed before the answer", "drop_before_answer"),
    unknown("accepted, connection closed amid the answer", "drop_mid_answer"),
    unknown("accepted, never answered", "stall_answer"),
    submit("accepted, answered late", WHOLE, ("slow_answer", {"seconds": 0.6})),
    unknown("accepted, 500", "status", status=500, accepted=True),
    unknown("500 with nothing accepted", "status", status=500, submissions=0),
    unknown("accepted, 502 with an HTML page", "status", status=502, body="html", accepted=True),
    unknown("accepted, 504 with no body", "status", status=504, body="empty", accepted=True),
    unknown("accepted, JSON of another shape", "wrong_json"),
    unknown("accepted, 200 with an HTML page", "wrong_json", body=PAGE),
    submit(
        "500 before the track was read",
        AGAIN,
        ("status", {"status": 500, "early": True}),
        posts=2,
        size=LONG,
    ),
    submit("429 without Retry-After", IN_LINE, ("status", {"status": 429}), posts=2),
    submit(
        "429, Retry-After in seconds",
        IN_LINE,
        ("status", {"status": 429, "retry_after": 1}),
        posts=2,
    ),
    submit(
        "429, Retry-After as a date",
        IN_LINE,
        ("status", {"status": 429, "retry_after": timedelta(seconds=2)}),
        posts=2,
    ),
    submit(
        "429, Retry-After that is neither",
        IN_LINE,
        ("status", {"status": 429, "retry_after": "soon"}),
        posts=2,
    ),
    submit(
        "429 before the track was read",
        IN_LINE,
        ("status", {"status": 429, "early": True, "retry_after": 1}),
        posts=2,
        size=LONG,
    ),
    submit(
        "503 with an HTML page",
        IN_LINE,
        ("status", {"status": 503, "body": "html", "retry_after": 1}),
        posts=2,
    ),
    refused("402", InsufficientCreditsError, "add credit", "status", status=402),
    refused("422", ValidationError, "field", "status", status=422, body="detail_list"),
    refused(
        "413 before the track was read",
        APIError,
        "413",
        "status",
        status=413,
        body="html",
        early=True,
        size=LONG,
    ),
    refused("200 with `success: false`", APIError, "went wrong", "not_success"),
    refused("redirect (302)", ProtocolError, "302", "redirect", location="/elsewhere"),
    refused("redirect (307)", ProtocolError, "307", "redirect", status=307, location="/elsewhere"),
)

LOOKS = (
    failed_poll("connection closed before the question was read", "drop_before_body"),
    failed_poll("connection closed before the answer", "drop_before_answer"),
    failed_poll("connection closed amid the answer", "drop_mid_answer"),
    failed_poll("never answered", "stall_answer"),
    failed_poll("429 without Retry-After", "status", status=429),
    failed_poll("429, Retry-After in seconds", "status", status=429, retry_after=1),
    failed_poll(
        "429, Retry-After as a date", "status", status=429, retry_after=timedelta(seconds=2)
    ),
    failed_poll("500", "status", status=500, times=2),
    failed_poll("502 with an HTML page", "status", status=502, body="html", times=2),
    failed_poll("401", "status", status=401),
    failed_poll("404 soon after the submit", "status", status=404, times=2),
    failed_poll("JSON of another shape", "wrong_json"),
    failed_poll("200 with an HTML page", "wrong_json", body=PAGE),
    failed_poll("200 with `success: false`", "not_success"),
    failed_poll("redirect", "redirect", location="/elsewhere"),
    Case(
        on="Poll",
        what="MusicGPT could not process the track",
        gets="MusicGPT's own message",
        faults=(Fault("job", "fails", message="Unreadable audio"),),
        error=ExtractionFailedError,
        words="Unreadable audio",
    ),
    Case(
        on="Poll",
        what="the job never finishes",
        gets="fails at its deadline, with the handle to continue",
        faults=(Fault("job", "never_finishes"),),
        error=DeadlineError,
        words=r"session\.attach",
        settings={"deadline": 1.0},
    ),
)

FILES = (
    file("connection closed before the answer", WHOLE, ("drop_before_answer", {})),
    file("connection closed halfway", RESUMED, ("truncated", {})),
    file("closed halfway, four times", RESUMED, ("truncated", {"times": 4})),
    file("never answered", WHOLE, ("stall_answer", {})),
    file("stops halfway and sends nothing more", RESUMED, ("stall", {})),
    file("answered late", WHOLE, ("slow_answer", {"seconds": 0.6})),
    file(
        "500, then 502 with HTML", WHOLE, ("status", {"status": 500}), ("status", {"status": 502})
    ),
    file("429, then 503", WHOLE, ("status", {"status": 429}), ("status", {"status": 503})),
    spoilt("500, every time", "could not serve it", "status", status=500, **FOREVER),
    file("link expired (403)", "new link from byId; all stems complete", ("expired", {})),
    file("link gone (404)", "new link from byId; all stems complete", ("status", {"status": 404})),
    spoilt("403 for new links, too", "refused it", "status", status=403, **FOREVER),
    file(
        "ETag changed midway",
        "starts over with the new content; all stems complete",
        ("truncated", {}),
        ("changed", {}),
    ),
    file(
        "ETag changed midway, If-Range ignored",
        "starts over with the new content; all stems complete",
        ("truncated", {}),
        ("changed_anyway", {}),
    ),
    file("cut, then Range is ignored", OVER, ("truncated", {}), ("no_ranges", {})),
    file("cut, then another range than requested", OVER, ("truncated", {}), ("wrong_range", {})),
    file("WAV with a Content-Length that is too short", OVER, ("mis_sized", {})),
    spoilt("the same, every time", "its header declares", "mis_sized", **FOREVER),
    file("no Content-Length", WHOLE, ("no_length", {})),
    file("no Content-Length, and cut", OVER, ("no_length_truncated", {})),
    spoilt("the same, every time", "its header declares", "no_length_truncated", **FOREVER),
    spoilt(
        "MP3 without a Content-Length",
        "does not declare its length",
        "no_length",
        format="mp3",
        gets="cannot be proven complete: no file; the other stem is complete",
        **FOREVER,
    ),
    spoilt("gzip that was not requested", "content encoding", "gzip"),
    file("redirected", "followed; all stems complete", ("redirect", {"location": ""})),
    spoilt("redirected in a circle", "too many redirects", "redirect", location="", **FOREVER),
    spoilt(
        "redirected into a private network", "private", "redirect", location="https://10.0.0.1/"
    ),
    spoilt("redirected to http", "not https", "redirect", location="http://example.com/"),
    file("HTML page in place of audio", "requested again; all stems complete", ("html", {})),
    spoilt("the same, every time", "not audio", "html", **FOREVER),
    file("XML error in place of audio", "requested again; all stems complete", ("xml", {})),
    spoilt("the same, every time", "not audio", "xml", **FOREVER),
    spoilt("an empty file", "is empty|not audio", "empty"),
)

CASES = (*SUBMITS, *LOOKS, *FILES)

SLOW = {"seconds": 1.0}  # longer than the database has been away for when the response comes
OUTAGES = (
    Outage(
        what="away before the submit",
        gets="submitted when it is back; all stems complete",
        begins=lambda _: True,
    ),
    Outage(
        what="away when the submit is answered",
        gets="saved when it is back; all stems complete",
        begins=lambda vendor: vendor.submissions,
        faults=(Fault("submit", "slow_answer", **SLOW),),
    ),
    Outage(
        what="the same, and the process is killed",
        gets="the next process finds the task in the account's listing; all stems complete",
        begins=lambda vendor: vendor.submissions,
        faults=(Fault("submit", "slow_answer", **SLOW),),
        is_killed=True,
    ),
    Outage(
        what="away while MusicGPT works on the track",
        gets="polled again when it is back; all stems complete",
        begins=lambda vendor: vendor.polls,
    ),
    Outage(
        what="the same, and the process is killed",
        gets="the next process continues; all stems complete",
        begins=lambda vendor: vendor.polls,
        is_killed=True,
    ),
    Outage(
        what="away while the stems are downloaded",
        gets=WHOLE,
        begins=lambda vendor: any("/files" in each.path for each in vendor.requests),
        faults=(Fault("file", "slow_answer", **SLOW),),
    ),
    Outage(
        what="away when the session starts",
        gets="fails at once, nothing was sent",
        begins=lambda _: True,
        submissions=0,
        error=JournalError,
    ),
)
ROWS = (*CASES, *OUTAGES)


def markdown() -> str:
    """Return the table as the documentation's page of faults has it."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for on, cases in groupby(ROWS, lambda case: case.on):
        yield f"| {on}: what goes wrong | accepted submissions | what the user gets |"
        yield "| --- | --- | --- |"
        yield from (case.row for case in cases)
        yield ""


if __name__ == "__main__":
    print(markdown().rstrip())
