"""The exceptions that the library raises.

::

    MusicGPTError
    ├── ConfigurationError (ValueError)       no key, an unusable URL, another event loop
    │   └── EndpointNotFoundError                 the base URL is not the API's
    ├── InvalidOptionError (ValueError)       a stem, option or format name that does not exist
    ├── SourceError (OSError)                 the track cannot be read
    │   └── SourceChangedError                the track changed while it was being sent
    ├── SessionClosedError (RuntimeError)     the session is not open
    ├── NotFinishedError (InvalidStateError)  the job has not ended yet
    ├── TransportError (ConnectionError)      no connection, or it failed before a response
    │   └── TransportTimeoutError (TimeoutError)  the other side stopped reading or sending
    ├── ProtocolError (ValueError)            a response that is not one of this API
    ├── APIError                              a response that reports an error
    │   ├── BadRequestError (ValueError)          400
    │   ├── AuthenticationError (PermissionError) 401
    │   ├── InsufficientCreditsError              402
    │   ├── ForbiddenError (PermissionError)      403
    │   ├── NotFoundError (LookupError)           404
    │   ├── ConflictError                         409
    │   ├── ValidationError (ValueError)          422
    │   ├── RateLimitError                        429
    │   └── ServerError                           500 and above
    ├── SubmissionUnknownError (ConnectionError)  the track was delivered, the response was lost
    ├── CreditLimitError                      the session's own max_credits is reached
    ├── ExtractionFailedError                 MusicGPT could not process the track
    ├── DeadlineError (TimeoutError)          the job is still running at MusicGPT
    ├── JobDetachedError                      this handle no longer follows the job
    ├── JobNotFoundError (LookupError)        the session and its journal have no job with this id
    ├── DownloadError (OSError)               a stem could not be downloaded
    └── JournalError (OSError)                the journal cannot be used

All errors have the same attributes, ``None`` if they do not apply: see :class:`MusicGPTError`.
"""

from __future__ import annotations

from asyncio import InvalidStateError
from collections.abc import Mapping
from typing import Any, ClassVar, Self


class MusicGPTError(Exception):
    """Base class of all errors. The message says what happened and what to do next.

    Attributes:
        message: The message for users.
        status: The HTTP status of the response, if there was one.
        task_id: MusicGPT's id of the job, if it is known.
        retry_after: Seconds from the ``Retry-After`` header.
        vendor_message: MusicGPT's own message.
        job: The handle of a job that may still be running at MusicGPT.
        advice: What to do about errors of this class, if it is always the same.
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
        """The keyword arguments that reproduce this error."""
        return {
            "status": self.status,
            "task_id": self.task_id,
            "retry_after": self.retry_after,
            "vendor_message": self.vendor_message,
            "job": self.job,
        }

    def copy(self, **changes: Any) -> Self:
        """Return an equal error without a traceback, so that each raise uses a new object."""
        duplicate = type(self)(self.message, **{**self.kwargs, **changes})
        duplicate.__cause__ = self.__cause__
        return duplicate

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # A handle belongs to one event loop of one process, so it is not pickled with the error.
        return _restore, (type(self), self.message, {**self.kwargs, "job": None})


def _restore(kind: type[MusicGPTError], message: str, kwargs: dict[str, Any]) -> MusicGPTError:
    return kind(message, **kwargs)


class ConfigurationError(MusicGPTError, ValueError):
    """The configuration of the session is wrong or incomplete."""


class EndpointNotFoundError(ConfigurationError):
    """The base URL is not MusicGPT's: the server does not have the routes of the API."""

    advice = (
        "Check MUSICGPT_BASE_URL (or base_url=): it must end in /api/public/v1, /api/public/v2 or "
        "/api/public."
    )


class InvalidOptionError(MusicGPTError, ValueError):
    """An option of a submit or a download is not valid."""


class SourceError(MusicGPTError, OSError):
    """The track cannot be read; nothing was paid for."""


class SourceChangedError(SourceError):
    """The track changed while it was being sent; the upload was stopped before its end."""


class SessionClosedError(MusicGPTError, RuntimeError):
    """The session was used before it was started or after it was closed."""


class NotFinishedError(MusicGPTError, InvalidStateError):
    """The result of a job was requested before the job has ended."""


class TransportError(MusicGPTError, ConnectionError):
    """The network failed before a response arrived."""


class TransportTimeoutError(TransportError, TimeoutError):
    """The other side stopped reading or sending for too long."""


class ProtocolError(MusicGPTError, ValueError):
    """A response is not one of the API; the message contains an excerpt."""


class APIError(MusicGPTError):
    """MusicGPT responded with an error."""

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
    """402: the account does not have enough credit."""

    advice = (
        "The account does not have enough credit; add credit in the MusicGPT dashboard and try "
        "again."
    )


class ForbiddenError(APIError, PermissionError):
    """403: the key is wrong, or not allowed to do this (MusicGPT docs, errors)."""

    advice = (
        "The API key may be wrong, or the plan may not allow this; check MUSICGPT_API_KEY and the "
        "plan in the MusicGPT dashboard."
    )


class NotFoundError(APIError, LookupError):
    """404: MusicGPT does not know the task."""

    advice = "Check the task_id, and that the API key belongs to the account that submitted it."


class ConflictError(APIError):
    """409: MusicGPT reports a duplicate."""

    advice = "MusicGPT reports a duplicate; look for the first task before you submit again."


class ValidationError(APIError, ValueError):
    """422: MusicGPT rejected a field of the request."""

    advice = "MusicGPT rejected a field of the request; its message names the field."


class RateLimitError(APIError):
    """429: too many calls per minute, or too many unfinished conversions."""

    advice = "Too many calls or unfinished conversions for the plan; wait, or lower the limits."


class ServerError(APIError):
    """500 and above: MusicGPT's service failed."""

    advice = "MusicGPT's service failed; try again later."


class SubmissionUnknownError(MusicGPTError, ConnectionError):
    """The track was delivered, but the response was lost: it may have been accepted.

    The library never sends it again, since a second submit would be charged again.
    """


class CreditLimitError(MusicGPTError):
    """The track was not submitted, because ``max_credits`` or the account's credit is used up."""


class ExtractionFailedError(MusicGPTError):
    """MusicGPT could not process the track; ``vendor_message`` is its ``status_msg``."""


class DeadlineError(MusicGPTError, TimeoutError):
    """The deadline passed while the job was still running at MusicGPT; ``job`` is its handle."""


class JobDetachedError(MusicGPTError):
    """This handle no longer follows the job. An accepted job continues at MusicGPT."""


class JobNotFoundError(MusicGPTError, LookupError):
    """Neither the session nor its journal has a job with this id. MusicGPT was not called."""


class DownloadError(MusicGPTError, OSError):
    """A stem could not be downloaded. Files under their final names are always complete."""


class JournalError(MusicGPTError, OSError):
    """The journal cannot be read or written. It was not changed."""
