"""The state of the emulated service: the account, its conversions and its limits."""

import collections
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from musicgpt_async.emulator.clock import Clock

QUEUED = "IN_QUEUE"
COMPLETED = "COMPLETED"
PROGRESS = (QUEUED, "PENDING", "PROCESSING", "IN_PROGRESS")
"""The status words an unfinished conversion goes through, in order."""

CREDITS_PER_MINUTE = 1.5
"""Credits per minute of audio, for all stems alike, so that sums are easy to check."""

UNKNOWN_DURATION = 180.0
"""Seconds of audio that an estimate assumes if the duration is unknown, as for a URL."""

MINUTE = 60.0


@attrs.frozen
class Upload:
    """A validated submit that is not accepted yet.

    Attributes:
        fields: Text fields as they were received.
        stems: Requested stems; the default of four if none was named.
        preprocessing: Requested preprocessing options.
        webhook_url: URL for the webhook, if any.
        audio_url: URL of the track; None for an upload.
        file_name: Name of the uploaded file; None for an `audio_url`.
        size: Bytes of the upload.
        audio: File with the upload; None with `keep_audio=False` or an `audio_url`.
        fingerprint: Equal for the same name and bytes.
        duration: Seconds of audio, if known before the separation.
        eco_mode: Whether the faster separation is requested; always False in the first generation.
    """

    fields: Mapping[str, str]
    stems: tuple[str, ...]
    preprocessing: tuple[str, ...]
    webhook_url: str | None
    audio_url: str | None = None
    file_name: str | None = None
    size: int = 0
    audio: Path | None = None
    fingerprint: str = ""
    duration: float | None = None
    eco_mode: bool = False


@attrs.define(eq=False)
class Submission:
    """An accepted submit and the state of its conversion.

    Attributes:
        number: Sequence number, starting at 1.
        task_id: Id of the task, a UUID.
        conversion_id: Id of the conversion, a UUID.
        upload: The submit.
        created: Time of its acceptance, in seconds of the emulator's clock.
        created_at: Date of its acceptance, as in the API.
        updated_at: Date of the last change, as in the API.
        seconds: Planned duration of the conversion, in emulated seconds.
        eta: Estimate in the response to the submit, in seconds.
        credit_estimate: Estimate in the response to the submit, in credits.
        status: IN_QUEUE, PENDING, PROCESSING, IN_PROGRESS, COMPLETED, or the word of a failure.
        status_msg: Message of a failure.
        finished: Time of its end, in seconds of the emulator's clock; None before.
        cost: Credits charged; None before the end.
        duration: Seconds of audio; None before it was read.
        sha256: Digest of the audio; set at the latest at the end.
        polls: Number of byId calls for it.
        link_version: Version of its links, starting at 1; a new one expires the older links.
    """

    number: int
    task_id: str
    conversion_id: str
    upload: Upload = attrs.field(repr=False)
    created: float
    created_at: datetime
    updated_at: datetime
    seconds: float = 0.0
    eta: int = -1
    credit_estimate: float = 0.0
    status: str = QUEUED
    status_msg: str = ""
    finished: float | None = None
    cost: float | None = None
    duration: float | None = None
    sha256: str | None = None
    polls: int = 0
    link_version: int = 1

    @property
    def fields(self) -> Mapping[str, str]:
        """The text fields of the submit as they were received."""
        return self.upload.fields

    @property
    def stems(self) -> tuple[str, ...]:
        """The requested stems; the default of four if none was named."""
        return self.upload.stems

    @property
    def preprocessing(self) -> tuple[str, ...]:
        """The requested preprocessing options."""
        return self.upload.preprocessing

    @property
    def eco_mode(self) -> bool:
        """Whether the faster separation is requested."""
        return self.upload.eco_mode

    @property
    def file_name(self) -> str | None:
        """The name of the uploaded file; None for an `audio_url`."""
        return self.upload.file_name

    @property
    def size(self) -> int:
        """The bytes of audio received."""
        return self.upload.size

    @property
    def webhook_url(self) -> str | None:
        """The URL for the webhook, if any."""
        return self.upload.webhook_url

    @property
    def is_finished(self) -> bool:
        """Whether the conversion has completed or failed."""
        return self.finished is not None

    @property
    def is_completed(self) -> bool:
        """Whether the conversion has completed, so that its files exist."""
        return self.status == COMPLETED


@attrs.frozen
class Refusal(Exception):  # noqa: N818  it is a response, not a defect
    """A refused request: the status and the message of the response.

    `detail` is FastAPI's list of errors for a 422.
    """

    status: int
    message: str
    detail: Sequence[Mapping[str, object]] = ()
    retry_after: float | None = None


def invalid(loc: Sequence[str], message: str, kind: str = "value_error") -> Refusal:
    """Return the 422 of a FastAPI service for one field."""
    return Refusal(422, message, [{"loc": list(loc), "msg": message, "type": kind}])


def _credits(seconds: float) -> float:
    return max(0.01, round(seconds / MINUTE * CREDITS_PER_MINUTE, 2))


@attrs.define(eq=False)
class Vendor:
    """One account and its submissions; only its methods change this state."""

    clock: Clock
    api_key: str
    forbidden_keys: frozenset[str]
    parallel: float
    polls_per_minute: float
    credits: float
    seconds: Callable[[Submission], float]
    eta: Callable[[Submission], int]
    wrong_key: tuple[int, str] = (401, "Invalid or missing API key")
    submissions: list[Submission] = attrs.field(factory=list)
    unfinished: int = 0
    most_unfinished: int = 0
    polls: int = 0
    throttled: collections.Counter[str] = attrs.field(factory=collections.Counter)
    _by_id: dict[str, Submission] = attrs.field(factory=dict)
    _window: collections.deque[float] = attrs.field(factory=collections.deque)
    _reserved: float = 0.0

    def check_key(self, key: str | None) -> None:
        """Refuse a request without the account's key, or with a forbidden one (403)."""
        if key in self.forbidden_keys:
            raise Refusal(403, "This API key is not allowed to use this feature")
        if key != self.api_key:
            raise Refusal(*self.wrong_key)

    def accept(self, upload: Upload) -> Submission:
        """Accept a conversion, or refuse it if credit (402) or a slot (429) is missing."""
        estimate = _credits(UNKNOWN_DURATION if upload.duration is None else upload.duration)
        if self.unfinished >= self.parallel:
            self.throttled["parallel"] += 1
            raise Refusal(429, "Parallel conversion limit reached, wait for one to finish")
        if estimate > self.credits - self._reserved:
            raise Refusal(402, "Insufficient credit balance")
        submission = self._register(upload, estimate)
        self.unfinished += 1
        self.most_unfinished = max(self.most_unfinished, self.unfinished)
        self._reserved += estimate
        return submission

    def _register(self, upload: Upload, estimate: float) -> Submission:
        now = datetime.now(UTC)
        submission = Submission(
            number=len(self.submissions),
            task_id=str(uuid.uuid4()),
            conversion_id=str(uuid.uuid4()),
            upload=upload,
            created=self.clock.now(),
            created_at=now,
            updated_at=now,
            credit_estimate=estimate,
        )
        submission.seconds = self.seconds(submission)
        submission.eta = self.eta(submission)
        self.submissions.append(submission)
        self._by_id[submission.task_id] = self._by_id[submission.conversion_id] = submission
        return submission

    def count_call(self) -> None:
        """Count a byId call, refused or not."""
        self.polls += 1

    def admit_poll(self) -> None:
        """Admit a byId call, or refuse it (429) beyond the account's calls per minute."""
        now = self.clock.now()
        while self._window and self._window[0] <= now - MINUTE:
            self._window.popleft()
        if len(self._window) >= self.polls_per_minute:
            self.throttled["polls"] += 1
            wait = self._window[0] + MINUTE - now if self._window else MINUTE
            raise Refusal(429, "Rate limit exceeded", retry_after=math.ceil(wait))
        self._window.append(now)

    def find(self, identifier: str) -> Submission:
        """Return the conversion with a task_id or conversion_id, or raise a 404."""
        submission = self._by_id.get(identifier)
        if submission is None:
            raise Refusal(404, "Conversion not found")
        return submission

    def count_poll(self, submission: Submission) -> None:
        """Count a byId call for this conversion."""
        submission.polls += 1

    def advance(self, submission: Submission, status: str) -> None:
        """Move an unfinished conversion to its next status word."""
        if not submission.is_finished:
            submission.status = status
            submission.updated_at = datetime.now(UTC)

    def received(self, submission: Submission, *, sha256: str | None) -> None:
        """Record the digest of the audio."""
        submission.sha256 = sha256

    def complete(self, submission: Submission, *, duration: float) -> None:
        """Finish a conversion, charge for it and release its slot."""
        submission.duration = round(duration, 3)
        submission.cost = _credits(duration)
        self.credits -= submission.cost
        self._finish(submission, COMPLETED, "")

    def fail(self, submission: Submission, message: str, *, status: str = "ERROR") -> None:
        """Finish a conversion as failed, free of charge."""
        self._finish(submission, status, message)

    def _finish(self, submission: Submission, status: str, message: str) -> None:
        submission.status, submission.status_msg = status, message
        submission.finished = self.clock.now()
        submission.updated_at = datetime.now(UTC)
        self.unfinished -= 1
        self._reserved -= submission.credit_estimate

    def expire_links(self, submission: Submission) -> None:
        """Expire all links so far (403); the next byId call returns fresh ones."""
        submission.link_version += 1
