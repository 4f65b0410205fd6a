"""Every error that the library raises.

::

    MusicGPTError
    ├── ConfigurationError (ValueError)       no key, an unusable URL, another loop
    │   └── EndpointNotFoundError                 the base URL is not the API's
    ├── InvalidOptionError (ValueError)       a stem, option or format name that does not exist
    ├── SourceError (OSError)                 the track cannot be read
    │   └── SourceChangedError                the track changed while it was being sent
    ├── SessionClosedError (RuntimeError)     the session is not open
    ├── NotFinishedError (InvalidStateError)  the job has not ended yet
    ├── TransportError (ConnectionError)      no connection, or it broke before an answer
    │   └── TransportTimeoutError (TimeoutError)  the other side stopped reading or sending
    ├── ProtocolError (ValueError)            an answer that does not fit the API
    ├── APIError                              an answer that says no
    │   ├── BadRequestError (ValueError)          400
    │   ├── AuthenticationError (PermissionError) 401
    │   ├── InsufficientCreditsError              402
    │   ├── ForbiddenError (PermissionError)      403
    │   ├── NotFoundError (LookupError)           404
    │   ├── ConflictError                         409
    │   ├── ValidationError (ValueError)          422
    │   ├── RateLimitError                        429
    │   └── ServerError                           500 and above
    ├── SubmissionUnknownError (ConnectionError)  the track went out whole and no answer came
    ├── CreditLimitError                      the session's own max_credits is reached
    ├── ExtractionFailedError                 MusicGPT gave the job up
    ├── DeadlineError (TimeoutError)          the job is still running at MusicGPT
    ├── JobDetachedError                      this handle no longer follows the job
    ├── JobNotFoundError (LookupError)        the session and its journal have no job with this id
    ├── DownloadError (OSError)               a stem did not arrive whole
    └── JournalError (OSError)                the journal cannot be used

Each error bears the same data, ``None`` if it does not apply: see :class:`MusicGPTError`.
"""

from __future__ import annotations

from asyncio import InvalidStateError
from collections.abc import Mapping
from typing import Any, ClassVar, Self


class MusicGPTError(Exception):
    """Something went wrong; the message says what to do next.

    Attributes:
        message: The sentence shown to people.
        status: The HTTP status of the answer, if there was one.
        task_id: MusicGPT's name for the job, if it is known.
        retry_after: Seconds that MusicGPT asked to wait.
        vendor_message: MusicGPT's own words.
        job: The handle of a job that may still be alive at MusicGPT.
        advice: What to do about errors of this class, where that is always the same.
    """

    advice: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        task_id: str | None = None,
        retry_after: float | None = None,
        vendor_message: str | None = None,
        job: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.task_id = task_id
        self.retry_after = retry_after
        self.vendor_message = vendor_message
        self.job = job

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments that make this error again."""
        return {
            "status": self.status,
            "task_id": self.task_id,
            "retry_after": self.retry_after,
            "vendor_message": self.vendor_message,
            "job": self.job,
        }

    def copy(self, **changes: Any) -> Self:
        """Return an equal error with no traceback of its own, so that each raise is a new one."""
        duplicate = type(self)(self.message, **{**self.kwargs, **changes})
        duplicate.__cause__ = self.__cause__
        return duplicate

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # A handle lives in one loop of one process: it stays behind when an error is pickled.
        return _restore, (type(self), self.message, {**self.kwargs, "job": None})


def _restore(kind: type[MusicGPTError], message: str, kwargs: dict[str, Any]) -> MusicGPTError:
    return kind(message, **kwargs)


class ConfigurationError(MusicGPTError, ValueError):
    """The session cannot work as it was set up."""


class EndpointNotFoundError(ConfigurationError):
    """The base URL is not MusicGPT's: the server there has no such route, for any job."""

    advice = (
        "Check MUSICGPT_BASE_URL (or base_url=): it ends in /api/public/v1, in /api/public/v2 or "
        "in /api/public."
    )


class InvalidOptionError(MusicGPTError, ValueError):
    """A stem, preprocessing option or format has a name that does not exist."""


class SourceError(MusicGPTError, OSError):
    """The track cannot be read; nothing was paid for."""


class SourceChangedError(SourceError):
    """The track changed while it was being sent; the submission was broken off in time."""


class SessionClosedError(MusicGPTError, RuntimeError):
    """The session was used before it was started or after it was closed."""


class NotFinishedError(MusicGPTError, InvalidStateError):
    """A job's result was asked for before it had one."""


class TransportError(MusicGPTError, ConnectionError):
    """The network failed before an answer came."""


class TransportTimeoutError(TransportError, TimeoutError):
    """The other side stopped reading or sending for too long."""


class ProtocolError(MusicGPTError, ValueError):
    """An answer does not fit the API; the message shows a piece of it."""


class APIError(MusicGPTError):
    """MusicGPT answered no."""

    advice = "MusicGPT refused the call."


class BadRequestError(APIError, ValueError):
    """400: MusicGPT could not read the request."""

    advice = "MusicGPT could not read the request; check the track and the options."


class AuthenticationError(APIError, PermissionError):
    """401: the key is missing or wrong."""

    advice = (
        "The key was not accepted. It is read from MusicGPTSession(api_key=…) or from the "
        "environment variable MUSICGPT_API_KEY; get a key in the MusicGPT API dashboard."
    )


class InsufficientCreditsError(APIError):
    """402: the account has not enough credit."""

    advice = (
        "The account has not enough credit; add credit in the MusicGPT dashboard and try again."
    )


class ForbiddenError(APIError, PermissionError):
    """403: the key is wrong, or it may not do this (MusicGPT docs, errors)."""

    advice = (
        "The API key may be wrong, or its plan does not allow this; check MUSICGPT_API_KEY and the "
        "plan in the MusicGPT dashboard."
    )


class NotFoundError(APIError, LookupError):
    """404: there is no such thing at MusicGPT."""

    advice = "MusicGPT knows no such thing; check the task_id, and that the key is that account's."


class ConflictError(APIError):
    """409: MusicGPT calls it a duplicate."""

    advice = "MusicGPT calls this a duplicate; look for the first one before submitting again."


class ValidationError(APIError, ValueError):
    """422: MusicGPT refused a field of the request."""

    advice = "MusicGPT refused a field of the request; its words name the field."


class RateLimitError(APIError):
    """429: too many calls a minute, or too many unfinished conversions."""

    advice = "Too many calls or unfinished conversions for the plan; wait, or lower the limits."


class ServerError(APIError):
    """500 and above: MusicGPT's own failure."""

    advice = "MusicGPT's service failed; try again later."


class SubmissionUnknownError(MusicGPTError, ConnectionError):
    """The whole track was handed over and no usable answer came: it may have been accepted.

    It is never sent again by itself, since a second submission is paid for a second time.
    """


class CreditLimitError(MusicGPTError):
    """Nothing more is submitted: ``max_credits`` is reached, or the account's credit is used up."""


class ExtractionFailedError(MusicGPTError):
    """MusicGPT gave the job up; ``vendor_message`` is its ``status_msg``."""


class DeadlineError(MusicGPTError, TimeoutError):
    """The time is over and the job is still running at MusicGPT; ``job`` is its handle."""


class JobDetachedError(MusicGPTError):
    """This handle no longer follows the job; if it was accepted, it goes on at MusicGPT."""


class JobNotFoundError(MusicGPTError, LookupError):
    """Neither the session nor its journal has a job with this id; MusicGPT was not asked."""


class DownloadError(MusicGPTError, OSError):
    """A stem did not arrive whole; no half file lies under a final name."""


class JournalError(MusicGPTError, OSError):
    """The journal cannot be read or written; the file was left as it was."""
