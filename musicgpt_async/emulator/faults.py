"""Scripted faults of the emulator.

`KINDS` is the table of all faults. They are implemented beside the part that they affect:
`api_faults.py`, `file_faults.py`, `conversions.py` and `webhooks.py`.
"""

import enum
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Literal

import attrs
from aiohttp import web

from musicgpt_async.emulator.vendor import Submission, Upload

Target = Literal["submit", "byId", "byUser", "file", "webhook", "job"]
"""The target of a fault: an API call, a file, a webhook delivery, or a conversion."""


class Stage(enum.Enum):
    """The point in the processing of a request at which a fault occurs."""

    ARRIVAL = "before the key is checked and the body is read"
    INSTEAD = "instead of the work, after the request was read and validated"
    ANSWER = "after the work, on the response"


@attrs.frozen
class Kind:
    """A row of `KINDS`: the possible targets of a fault, its stage, and its effect."""

    targets: frozenset[str]
    stage: Stage
    effect: str


_API = frozenset({"submit", "byId", "byUser"})
_BODY = frozenset({"submit"})
_FILE = frozenset({"file"})
_HOOK = frozenset({"webhook"})
_JOB = frozenset({"job"})

KINDS: dict[str, Kind] = {
    # API calls and files
    "status": Kind(_API | _FILE, Stage.INSTEAD, "responds with `status`, `body`, `retry_after`"),
    "redirect": Kind(_API | _FILE, Stage.INSTEAD, "redirects to `location`, with `status`"),
    "drop_before_body": Kind(_API, Stage.ARRIVAL, "closes before the request body is read"),
    "drop_before_answer": Kind(
        _API | _FILE, Stage.ANSWER, "does the work, closes without a response"
    ),
    "drop_mid_answer": Kind(_API, Stage.ANSWER, "does the work, closes within the response (`at`)"),
    "stall_answer": Kind(_API | _FILE, Stage.ANSWER, "does the work and never responds"),
    "slow_answer": Kind(_API | _FILE, Stage.ANSWER, "does the work, responds `seconds` later"),
    # API calls only
    "not_success": Kind(_API, Stage.INSTEAD, "responds with 200 and success false"),
    "wrong_json": Kind(_API, Stage.ANSWER, "does the work, sends JSON of another shape"),
    "drop_mid_body": Kind(_BODY, Stage.ARRIVAL, "closes after reading `at` bytes of the body"),
    "stall_read": Kind(_BODY, Stage.ARRIVAL, "stops reading after `at` bytes of the body"),
    # files only
    "expired": Kind(_FILE, Stage.INSTEAD, "403, old links stay expired; byId has fresh ones"),
    "truncated": Kind(_FILE, Stage.ANSWER, "closes before Content-Length is reached (`at`)"),
    "stall": Kind(_FILE, Stage.ANSWER, "sends a part (`at`) and then nothing"),
    "mis_sized": Kind(_FILE, Stage.ANSWER, "a part (`at`), with a Content-Length that fits it"),
    "no_length": Kind(_FILE, Stage.ANSWER, "no Content-Length, ended by closing"),
    "no_length_truncated": Kind(_FILE, Stage.ANSWER, "the same, closed too early (`at`)"),
    "gzip": Kind(_FILE, Stage.ANSWER, "gzip-encoded without being requested"),
    "changed": Kind(_FILE, Stage.ANSWER, "the file's content and ETag change, for good"),
    "changed_anyway": Kind(_FILE, Stage.ANSWER, "the same, and If-Range is ignored"),
    "no_ranges": Kind(_FILE, Stage.ANSWER, "ignores Range and sends the whole file"),
    "wrong_range": Kind(_FILE, Stage.ANSWER, "a 206 with another start than requested"),
    "html": Kind(_FILE, Stage.ANSWER, "200 with an HTML page"),
    "xml": Kind(_FILE, Stage.ANSWER, "200 with an XML error"),
    "empty": Kind(_FILE, Stage.ANSWER, "200 with an empty body"),
    # conversions
    "fails": Kind(_JOB, Stage.INSTEAD, "ends with status `word` and status_msg `message`"),
    "never_finishes": Kind(_JOB, Stage.INSTEAD, "stays in progress for ever"),
    # webhook deliveries: the rows of webhooks.BEHAVIOURS
    "normal": Kind(_HOOK, Stage.ANSWER, "delivered once, after the end"),
    "before_answer": Kind(_HOOK, Stage.ANSWER, "finished and sent before the submit's response"),
    "early": Kind(_HOOK, Stage.ANSWER, "sent while byId still reports it unfinished"),
    "twice": Kind(_HOOK, Stage.ANSWER, "delivered two times"),
    "late": Kind(_HOOK, Stage.ANSWER, "delivered `seconds` after the end"),
    "lost": Kind(_HOOK, Stage.ANSWER, "never delivered"),
    "garbled": Kind(_HOOK, Stage.ANSWER, "no JSON"),
    "forged": Kind(_HOOK, Stage.ANSWER, "sent to a URL with another last path segment"),
    "other_task": Kind(_HOOK, Stage.ANSWER, "the right URL, another task's id"),
}
"""All kinds of faults, by name."""


@attrs.frozen
class FaultContext:
    """The argument of a fault's predicate `when`.

    Attributes:
        on: The target.
        request: The HTTP request, for API calls and files.
        upload: The track, after the body of a submit was read.
        submission: The conversion, if there is one.
        file: The file's name, such as `drums.wav`.
    """

    on: Target
    request: web.Request | None = None
    upload: Upload | None = None
    submission: Submission | None = None
    file: str | None = None


@attrs.frozen
class Fault:
    """A scripted fault: `Fault("byId", "status", status=503, retry_after=1)`.

    Args:
        on: The target.
        kind: The effect, a name in `KINDS`.
        times: How many times it occurs; None for always.
        after: Number of matching requests that it skips first.
        when: Predicate on the `FaultContext`; the fault occurs only if it returns true.
        status: Status of kinds that respond with one; each has its default.
        body: Shape of an error's body, a name in `responses.ERROR_BODIES`, or bytes to send.
        retry_after: Seconds, a timedelta (sent as an HTTP date that far ahead), or any text.
        location: Target of a redirect.
        seconds: Delay of slow and late kinds, in emulated seconds.
        at: Point at which an incomplete transfer stops: bytes as an int, or a share as a float.
        accepted: For "status", "redirect" and "not_success" on API calls: carry out the call
            nevertheless, so that a submit is a paid conversion.
        early: For the same kinds: respond before the body is read.
        word: Status word of a conversion that fails.
        message: Message of an error or a failure.
    """

    on: Target
    kind: str
    times: int | None = attrs.field(default=1, kw_only=True)
    after: int = attrs.field(default=0, kw_only=True)
    when: Callable[[FaultContext], bool] | None = attrs.field(default=None, kw_only=True)
    status: int | None = attrs.field(default=None, kw_only=True)
    body: str | bytes | None = attrs.field(default=None, kw_only=True)
    retry_after: float | str | timedelta | None = attrs.field(default=None, kw_only=True)
    location: str = attrs.field(default="/", kw_only=True)
    seconds: float = attrs.field(default=1.0, kw_only=True)
    at: float = attrs.field(default=0.5, kw_only=True)
    accepted: bool = attrs.field(default=False, kw_only=True)
    early: bool = attrs.field(default=False, kw_only=True)
    word: str = attrs.field(default="ERROR", kw_only=True)
    message: str = attrs.field(default="Something went wrong", kw_only=True)

    def __attrs_post_init__(self) -> None:
        row = KINDS.get(self.kind)
        if row is None:
            raise ValueError(f"unknown fault {self.kind!r}; choose one of: {', '.join(KINDS)}")
        if self.on not in row.targets:
            raise ValueError(f"{self.kind!r} is a fault of {sorted(row.targets)}, not {self.on!r}")

        if (self.accepted or self.early) and (
            self.on not in _API or self.kind not in {"status", "redirect", "not_success"}
        ):
            raise ValueError("accepted and early are for API calls answered with something else")

    @property
    def stage(self) -> Stage:
        """The stage of a request at which it occurs."""
        if self.accepted:
            return Stage.ANSWER
        return Stage.ARRIVAL if self.early else KINDS[self.kind].stage

    def cut(self, size: int) -> int:
        """Return how many of `size` bytes are transferred."""
        return min(size, int(self.at if isinstance(self.at, int) else self.at * size))


@attrs.define(eq=False)
class _PlannedFault:
    fault: Fault
    seen: int = 0
    fired: int = 0

    def fires(self, context: FaultContext, stage: Stage) -> bool:
        fault = self.fault
        if fault.on != context.on or fault.stage is not stage or self.is_spent:
            return False
        if fault.when is not None and not fault.when(context):
            return False
        self.seen += 1
        if self.seen <= fault.after:
            return False
        self.fired += 1
        return True

    @property
    def is_spent(self) -> bool:
        return self.fault.times is not None and self.fired >= self.fault.times


class FaultPlan:
    """The planned faults in order; if several match a request, the first one occurs."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._planned = [_PlannedFault(fault) for fault in faults]

    def add(self, *faults: Fault) -> None:
        """Append faults to the plan."""
        self._planned += [_PlannedFault(fault) for fault in faults]

    def clear(self) -> None:
        """Remove all faults."""
        self._planned.clear()

    def take(self, context: FaultContext, stage: Stage) -> Fault | None:
        """Return the fault that occurs now, if any, and count it."""
        for planned in self._planned:
            if planned.fires(context, stage):
                return planned.fault
        return None

    def fired(self, kind: str | None = None) -> int:
        """Return how many times faults (of one kind) have occurred."""
        return sum(each.fired for each in self._planned if kind in (None, each.fault.kind))

    def __iter__(self) -> Iterator[Fault]:
        """Iterate over the faults that may still occur."""
        return iter([each.fault for each in self._planned if not each.is_spent])
