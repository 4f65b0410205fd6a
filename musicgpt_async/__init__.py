"""An asyncio client for MusicGPT stem extraction.

::

    async with MusicGPTSession() as session:  # key from MUSICGPT_API_KEY
        job = session.submit("song.flac", stems=["vocals", Stem.DRUMS])
        extraction = await job
        files = await job.download("stems/")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from musicgpt_async._version import __version__

if TYPE_CHECKING:
    from musicgpt_async import errors, events
    from musicgpt_async.batch import BatchItem, Outcome
    from musicgpt_async.errors import (
        APIError,
        AuthenticationError,
        BadRequestError,
        ConfigurationError,
        ConflictError,
        CreditLimitError,
        DeadlineError,
        DownloadError,
        EndpointNotFoundError,
        ExtractionFailedError,
        ForbiddenError,
        InsufficientCreditsError,
        InvalidOptionError,
        JobDetachedError,
        JobNotFoundError,
        JournalError,
        MusicGPTError,
        NotFinishedError,
        NotFoundError,
        ProtocolError,
        RateLimitError,
        ServerError,
        SessionClosedError,
        SourceChangedError,
        SourceError,
        SubmissionUnknownError,
        TransportError,
        TransportTimeoutError,
        ValidationError,
    )
    from musicgpt_async.job import ExtractionJob
    from musicgpt_async.journal import Journal
    from musicgpt_async.models import (
        Acceptance,
        AudioFormat,
        Extraction,
        JobState,
        Limits,
        Preprocessing,
        PreprocessingName,
        Stem,
        StemLinks,
        StemName,
    )
    from musicgpt_async.session import MusicGPTSession
    from musicgpt_async.webhooks import WebhookReceiver

__all__ = [
    "APIError",
    "Acceptance",
    "AudioFormat",
    "AuthenticationError",
    "BadRequestError",
    "BatchItem",
    "ConfigurationError",
    "ConflictError",
    "CreditLimitError",
    "DeadlineError",
    "DownloadError",
    "EndpointNotFoundError",
    "Extraction",
    "ExtractionFailedError",
    "ExtractionJob",
    "ForbiddenError",
    "InsufficientCreditsError",
    "InvalidOptionError",
    "JobDetachedError",
    "JobNotFoundError",
    "JobState",
    "Journal",
    "JournalError",
    "Limits",
    "MusicGPTError",
    "MusicGPTSession",
    "NotFinishedError",
    "NotFoundError",
    "Outcome",
    "Preprocessing",
    "PreprocessingName",
    "ProtocolError",
    "RateLimitError",
    "ServerError",
    "SessionClosedError",
    "SourceChangedError",
    "SourceError",
    "Stem",
    "StemLinks",
    "StemName",
    "SubmissionUnknownError",
    "TransportError",
    "TransportTimeoutError",
    "ValidationError",
    "WebhookReceiver",
    "__version__",
    "errors",
    "events",
]

# The module of each public name, which is imported at the name's first use: pytest imports this
# package for its plugin at every start, even in projects that never use it.
_MODULES = ("errors", "models", "events", "job", "batch", "webhooks", "journal", "session")

if not TYPE_CHECKING:  # hidden from type checkers, for which every misspelt name would exist

    def __getattr__(name: str) -> Any:
        for home in _MODULES if name in __all__ else ():
            module = import_module(f"{__name__}.{home}")
            if name == home:
                return module
            if name in vars(module):
                globals()[name] = vars(module)[name]
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
