"""Faults that can be scripted: what goes wrong, where, when and how often.

`KINDS` is the whole table. How a fault is carried out stands beside the part that it strikes:
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
"""What a fault strikes: an API call, a file, a webhook delivery, or a conversion itself."""


class Stage(enum.Enum):
    """The point of a request's life at which a fault strikes."""

    ARRIVAL = "before the key is checked and the body read"
    INSTEAD = "in place of the work, once the request has been read and found valid"
    ANSWER = "after the work is done, on the answer"


@attrs.frozen
class Kind:
    """A row of `KINDS`: where a fault may strike, at which stage, and what it does."""

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
    "status": Kind(_API | _FILE, Stage.INSTEAD, "answers `status` with `body`, `retry_after`"),
    "redirect": Kind(_API | _FILE, Stage.INSTEAD, "redirects to `location`, with `status`"),
    "drop_before_body": Kind(_API, Stage.ARRIVAL, "closes before the request body is read"),
    "drop_before_answer": Kind(_API | _FILE, Stage.ANSWER, "does the work, closes unanswered"),
    "drop_mid_answer": Kind(_API, Stage.ANSWER, "does the work, closes amid the answer (`at`)"),
    "stall_answer": Kind(_API | _FILE, Stage.ANSWER, "does the work and never answers"),
    "slow_answer": Kind(_API | _FILE, Stage.ANSWER, "does the work, answers `seconds` later"),
    # API calls alone
    "not_success": Kind(_API, Stage.INSTEAD, "answers 200 with success false"),
    "wrong_json": Kind(_API, Stage.ANSWER, "does the work, answers JSON of another shape"),
    "drop_mid_body": Kind(_BODY, Stage.ARRIVAL, "closes once `at` bytes of body are read"),
    "stall_read": Kind(_BODY, Stage.ARRIVAL, "stops reading after `at` bytes of body"),
    # files alone
    "expired": Kind(_FILE, Stage.INSTEAD, "403, and old links stay dead: byId has fresh ones"),
    "truncated": Kind(_FILE, Stage.ANSWER, "closes before Content-Length is reached (`at`)"),
    "stall": Kind(_FILE, Stage.ANSWER, "sends a part (`at`) and then nothing"),
    "mis_sized": Kind(_FILE, Stage.ANSWER, "a part (`at`), with a Content-Length that fits it"),
    "no_length": Kind(_FILE, Stage.ANSWER, "no Content-Length, ended by closing"),
    "no_length_truncated": Kind(_FILE, Stage.ANSWER, "the same, closed too early (`at`)"),
    "gzip": Kind(_FILE, Stage.ANSWER, "gzip-encoded though nobody asked"),
    "changed": Kind(_FILE, Stage.ANSWER, "the file's content and ETag change, for good"),
    "changed_anyway": Kind(_FILE, Stage.ANSWER, "the same, and If-Range is ignored"),
    "no_ranges": Kind(_FILE, Stage.ANSWER, "ignores Range and sends the whole file"),
    "wrong_range": Kind(_FILE, Stage.ANSWER, "a 206 that starts elsewhere than asked"),
    "html": Kind(_FILE, Stage.ANSWER, "200 with an HTML page"),
    "xml": Kind(_FILE, Stage.ANSWER, "200 with an XML error"),
    "empty": Kind(_FILE, Stage.ANSWER, "200 with nothing in it"),
    # conversions
    "fails": Kind(_JOB, Stage.INSTEAD, "ends with status `word` and status_msg `message`"),
    "never_finishes": Kind(_JOB, Stage.INSTEAD, "stays in progress for ever"),
    # webhook deliveries: the rows of webhooks.BEHAVIOURS
    "normal": Kind(_HOOK, Stage.ANSWER, "delivered once, after the end"),
    "before_answer": Kind(_HOOK, Stage.ANSWER, "finished and told before the submit's answer"),
    "early": Kind(_HOOK, Stage.ANSWER, "told while byId still says not finished"),
    "twice": Kind(_HOOK, Stage.ANSWER, "delivered two times"),
    "late": Kind(_HOOK, Stage.ANSWER, "delivered `seconds` after the end"),
    "lost": Kind(_HOOK, Stage.ANSWER, "never delivered"),
    "garbled": Kind(_HOOK, Stage.ANSWER, "no JSON"),
    "forged": Kind(_HOOK, Stage.ANSWER, "sent with another last path segment in its URL"),
    "other_task": Kind(_HOOK, Stage.ANSWER, "the right URL, another task's id"),
}
"""Every fault there is, by its name."""


@attrs.frozen
class FaultContext:
    """What a fault's predicate is shown.

    Attributes:
        on: what is about to be struck.
        request: the HTTP request, for API calls and files.
        upload: the track, from a submit's body on.
        submission: the conversion, for what concerns one.
        file: the file's name, such as `drums.wav`.
    """

    on: Target
    request: web.Request | None = None
    upload: Upload | None = None
    submission: Submission | None = None
    file: str | None = None


@attrs.frozen
class Fault:
    """One thing to go wrong: `Fault("byId", "status", status=503, retry_after=1)`.

    Args:
        on: what it strikes.
        kind: what happens; a name out of `KINDS`.
        times: how many times it strikes; None for ever.
        after: how many occasions it lets pass first.
        when: strikes only where this is true of the `FaultContext`.
        status: the status of kinds that answer one; each has a fitting default.
        body: the shape of an error's body, a name out of `responses.ERROR_BODIES`, or bytes to be
            sent as they are.
        retry_after: seconds, a timedelta (sent as an HTTP date that far ahead), or any text.
        location: where a redirect points.
        seconds: how long what is slow or late takes, in vendor seconds.
        at: where what stops midway stops: bytes for an int, a part of the whole for a float.
        accepted: for "status", "redirect" and "not_success" on API calls: the vendor does the
            work all the same, so that a submit is a paid conversion.
        early: for the same: answered before the body is read.
        word: the status word of a conversion that fails.
        message: the words of an error or of a failure.
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
            raise ValueError(f"no fault named {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.on not in row.targets:
            raise ValueError(f"{self.kind!r} strikes {sorted(row.targets)}, not {self.on!r}")

        if (self.accepted or self.early) and (
            self.on not in _API or self.kind not in {"status", "redirect", "not_success"}
        ):
            raise ValueError("accepted and early are for API calls answered with something else")

    @property
    def stage(self) -> Stage:
        """When in a request's life it strikes."""
        if self.accepted:
            return Stage.ANSWER
        return Stage.ARRIVAL if self.early else KINDS[self.kind].stage

    def cut(self, size: int) -> int:
        """How much of `size` bytes gets through."""
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
    """The faults to come, in order: of several that fit an occasion the first one strikes."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._planned = [_PlannedFault(fault) for fault in faults]

    def add(self, *faults: Fault) -> None:
        """Script more faults, behind those there are."""
        self._planned += [_PlannedFault(fault) for fault in faults]

    def clear(self) -> None:
        """Forget them all."""
        self._planned.clear()

    def take(self, context: FaultContext, stage: Stage) -> Fault | None:
        """The fault that strikes now, if any; counts it."""
        for planned in self._planned:
            if planned.fires(context, stage):
                return planned.fault
        return None

    def fired(self, kind: str | None = None) -> int:
        """How many times faults (of one kind) have struck."""
        return sum(each.fired for each in self._planned if kind in (None, each.fault.kind))

    def __iter__(self) -> Iterator[Fault]:
        """The faults that may still strike."""
        return iter([each.fault for each in self._planned if not each.is_spent])
