"""An asyncio client for MusicGPT stem extraction.

::

    async with MusicGPTSession() as session:  # key from MUSICGPT_API_KEY
        job = session.submit("song.flac", stems=["vocals", Stem.DRUMS])
        extraction = await job
        files = await job.download("stems/")
"""

from musicgpt_async import errors, events
from musicgpt_async._version import __version__
from musicgpt_async.batch import Item, Outcome
from musicgpt_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    CreditLimitError,
    DeadlineError,
    DownloadError,
    ExtractionFailedError,
    ForbiddenError,
    InsufficientCreditsError,
    InvalidOptionError,
    JournalError,
    MusicGPTError,
    NotFinishedError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    ReleasedError,
    ServerError,
    SessionClosedError,
    SourceChangedError,
    SourceError,
    StalledError,
    SubmissionUnknownError,
    TransportError,
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
    Stem,
    StemLinks,
)
from musicgpt_async.session import MusicGPTSession
from musicgpt_async.webhooks import WebhookReceiver

__all__ = [
    "APIError",
    "Acceptance",
    "AudioFormat",
    "AuthenticationError",
    "BadRequestError",
    "ConfigurationError",
    "ConflictError",
    "CreditLimitError",
    "DeadlineError",
    "DownloadError",
    "Extraction",
    "ExtractionFailedError",
    "ExtractionJob",
    "ForbiddenError",
    "InsufficientCreditsError",
    "InvalidOptionError",
    "Item",
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
    "ProtocolError",
    "RateLimitError",
    "ReleasedError",
    "ServerError",
    "SessionClosedError",
    "SourceChangedError",
    "SourceError",
    "StalledError",
    "Stem",
    "StemLinks",
    "SubmissionUnknownError",
    "TransportError",
    "ValidationError",
    "WebhookReceiver",
    "__version__",
    "errors",
    "events",
]
