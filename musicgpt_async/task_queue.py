"""Tasks for procrastinate, so that any number of machines work on one account.

Needs the extra ``procrastinate``. An application adds the tasks to its own app::

    app.add_tasks_from(make_blueprint(), namespace="musicgpt")

defers tracks from anywhere::

    task = app.configure_task("musicgpt:extract", queue=queue_of(source))
    await task.defer_async(source=source, stems=["vocals"])

and gives each worker one session::

    async with MusicGPTSession(journal=DATABASE_URL) as session, app.open_async():
        await app.run_worker_async(
            queues=worker_queues(),
            concurrency=32,
            additional_context=worker_context(session, "stems"),
        )

procrastinate delivers a task again if its worker died or if it failed. What keeps a track from
being paid for twice then is its key: all deliveries of a task submit with the same one, and the
journal, which all workers share, holds one job for it. What a delivery means for the money is
decided by the session; this module only says which errors are worth another delivery.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio
from procrastinate import BaseRetryStrategy, Blueprint, JobContext, RetryDecision
from procrastinate.exceptions import JobAborted
from procrastinate.job_context import AbortReason
from procrastinate.jobs import Job

from musicgpt_async._rules.formats import DEFAULT_FORMAT, check_format
from musicgpt_async._rules.retrying import backoff
from musicgpt_async.batch import BatchItem, Outcome
from musicgpt_async.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    CreditLimitError,
    ExtractionFailedError,
    ForbiddenError,
    InsufficientCreditsError,
    InvalidOptionError,
    JobDetachedError,
    NotFoundError,
    SubmissionUnknownError,
    ValidationError,
)
from musicgpt_async.models import AudioFormat
from musicgpt_async.session import MusicGPTSession

__all__ = [
    "STALLED_AFTER",
    "Extractor",
    "make_blueprint",
    "queue_of",
    "retry_delay",
    "worker_context",
    "worker_queues",
]

logger: logging.Logger = logging.getLogger(__name__)

QUEUE = "musicgpt"
"""The queue of tracks that any worker can read: URLs, which MusicGPT fetches itself."""
STALLED_AFTER = 30.0  # seconds without a heartbeat after which a worker's tasks are given to others
RESCUE_SCHEDULE = "* * * * * */5"  # every 5 seconds; the last field is procrastinate's seconds
RESCUE_LOCK = "musicgpt:rescue"
RESCUE_PRIORITY = 1  # above the tracks, which would keep it waiting
FIRST_DELAY, LONGEST_DELAY = 10.0, 600.0  # seconds between two deliveries of a task that failed
MAX_ATTEMPTS = 10  # over about 40 minutes
# PostgreSQL's limit for the name of a channel is 63 bytes, of which procrastinate needs 23.
MAX_SITE_LENGTH = 31 - 1  # bytes
CONTEXT_KEY = "musicgpt"
_FILE_URL = "file://"

# The track's own fault, or one that only its owner can resolve: another delivery ends the same way.
PERMANENT_ERRORS = (
    BadRequestError,
    ConflictError,
    ExtractionFailedError,
    InvalidOptionError,
    NotFoundError,
    SubmissionUnknownError,
    ValidationError,
)
# The account's: every track waits until its owner has resolved it, however long that takes.
ACCOUNT_ERRORS = (
    AuthenticationError,
    ConfigurationError,
    CreditLimitError,
    ForbiddenError,
    InsufficientCreditsError,
)


def queue_of(source: str | os.PathLike[str], *, site: str | None = None) -> str:
    """Return the queue for a track: a URL's is every worker's, a path's is its site's.

    Args:
        source: A path, or an http(s) URL.
        site: Name of the machines that have the path; by default this host's name.
    """
    return QUEUE if _is_url(os.fspath(source)) else _queue_of_site(site)


def worker_queues(site: str | None = None) -> list[str]:
    """Return the queues that a worker of a site takes tasks from.

    Args:
        site: As in queue_of().
    """
    return [_queue_of_site(site), QUEUE]


def _queue_of_site(site: str | None) -> str:
    name = socket.gethostname() if site is None else site
    if not name.isprintable() or not name.strip():
        raise InvalidOptionError(f"A site is a text of printable characters, not {name!r}.")
    if len(name.encode()) > MAX_SITE_LENGTH:
        name = hashlib.sha256(name.encode()).hexdigest()[:MAX_SITE_LENGTH]
    return f"{QUEUE}@{name}"


def retry_delay(error: BaseException, attempts: int) -> float | None:
    """Return the seconds until a task is delivered again, ``None`` if it has failed for good.

    A worker that stops gives its tasks back at once. What is wrong with the account is no task's
    failure. Everything else is tried ten times, over about 40 minutes.

    Args:
        error: What the task ended with.
        attempts: Deliveries of the task before this one.
    """
    if isinstance(error, (JobDetachedError, asyncio.CancelledError)):
        return 0.0
    if isinstance(error, (*PERMANENT_ERRORS, JobAborted)):
        return None
    if attempts + 1 >= MAX_ATTEMPTS and not isinstance(error, ACCOUNT_ERRORS):
        return None
    return backoff(attempts + 1, first=FIRST_DELAY, most=LONGEST_DELAY)


class Extractor:
    """What the tasks of one worker share: its session, and where the stems go.

    Args:
        session: The worker's one session.
        directory: Where the stems go.
        format: As in ``ExtractionJob.download()``.
        report: Called with the outcome of each delivery, and with the seconds until the next one,
            ``None`` if there is none; by default failures are logged.

    Raises:
        InvalidOptionError: There is no such format.
    """

    def __init__(
        self,
        session: MusicGPTSession,
        directory: str | os.PathLike[str],
        *,
        format: AudioFormat = DEFAULT_FORMAT,  # noqa: A002 - as in download()
        report: Callable[[Outcome, float | None], None] | None = None,
    ) -> None:
        self._session = session
        self._directory = Path(directory)
        self._format = check_format(format)
        self._report = report or _log_failure
        self._running: set[anyio.CancelScope] = set()
        self._is_stopping = False

    def stop(self) -> None:
        """Detach the tracks that are being extracted; their tasks go back to their queues."""
        self._is_stopping = True
        for scope in tuple(self._running):
            scope.cancel()

    async def extract(self, item: BatchItem, *, attempts: int, retry_failed: bool) -> None:
        """Extract one track and download its stems.

        Args:
            item: The track, with its key.
            attempts: Deliveries of its task before this one.
            retry_failed: As in ``extract_many()``.

        Raises:
            JobDetachedError: The worker stops.
            MusicGPTError: It failed.
        """
        outcome = None
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            if self._is_stopping:
                scope.cancel()
            try:
                outcome = await self._extract(item, retry_failed=retry_failed)
            finally:
                self._running.discard(scope)
        if outcome is None:
            raise JobDetachedError("The worker stops; the task goes back to its queue.")
        error = outcome.error
        self._report(outcome, None if error is None else retry_delay(error, attempts))
        if error is not None:
            raise error

    async def _extract(self, item: BatchItem, *, retry_failed: bool) -> Outcome:
        batch = self._session.extract_many(
            [item], self._directory, format=self._format, retry_failed=retry_failed
        )
        async with aclosing(batch) as outcomes:  # type: ignore[type-var]  # it is a generator
            return await anext(outcomes)


def _log_failure(outcome: Outcome, delay: float | None) -> None:
    if outcome.error is not None:
        what = "not tried again" if delay is None else f"tried again in {delay:g} s"
        logger.warning("The task is %s: %s", what, outcome.error)


def worker_context(
    session: MusicGPTSession,
    directory: str | os.PathLike[str],
    *,
    format: AudioFormat = DEFAULT_FORMAT,  # noqa: A002 - as in download()
) -> dict[str, Any]:
    """Return what a worker gives to its tasks, as its ``additional_context``.

    Args:
        session: The worker's one session, with a journal that all workers share.
        directory: Where the stems go.
        format: As in ``ExtractionJob.download()``.
    """
    return {CONTEXT_KEY: Extractor(session, directory, format=format)}


class _Retry(BaseRetryStrategy):
    """Delivers a task again after errors that may pass."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        delay = retry_delay(exception, job.attempts)
        return None if delay is None else RetryDecision(retry_in={"seconds": round(delay)})


def make_blueprint(*, stalled_after: float = STALLED_AFTER) -> Blueprint:
    """Return the tasks for one app: ``extract``, and the rescue of tasks whose worker died.

    Args:
        stalled_after: Seconds without a sign of life from a worker, after which its tasks are
            delivered to others. At least three times the workers' ``update_heartbeat_interval``.
    """
    blueprint = Blueprint()

    @blueprint.task(name="extract", queue=QUEUE, retry=_Retry(), pass_context=True)
    async def extract(context: JobContext, /, **track: Any) -> None:
        await _extract_track(context, **track)

    # One rescue waits at most: of two at once the second could take tasks from live workers.
    @blueprint.periodic(cron=RESCUE_SCHEDULE)
    @blueprint.task(
        name="rescue",
        queue=QUEUE,
        queueing_lock=RESCUE_LOCK,
        priority=RESCUE_PRIORITY,
        pass_context=True,
    )
    async def rescue(context: JobContext, /, timestamp: int) -> None:  # noqa: ARG001 - procrastinate's
        manager = context.app.job_manager
        for job in await manager.get_stalled_jobs(
            task_name=extract.name, seconds_since_heartbeat=stalled_after
        ):
            logger.warning("Task %s is delivered again: its worker stopped responding.", job.id)
            await manager.retry_job(job)

    return blueprint


async def _extract_track(
    context: JobContext,
    *,
    source: str,
    stems: Sequence[str] = (),
    preprocessing: Sequence[str] = (),
    eco_mode: bool = False,
    label: str | None = None,
    folder: str = "",
    key: str | None = None,
    retry_failed: bool = False,
) -> None:
    """Extract the track of a task; the arguments are those of ``submit()`` and ``BatchItem``."""
    extractor = context.additional_context.get(CONTEXT_KEY)
    if not isinstance(extractor, Extractor):
        raise ConfigurationError(
            "This worker has no session for the tasks of musicgpt-async: give run_worker_async() "
            "additional_context=worker_context(session, directory)."
        )
    options = {
        "stems": stems,
        "preprocessing": preprocessing,
        "eco_mode": eco_mode,
        "label": label,
        "key": key or _default_key(context.job, source),
    }
    item = BatchItem(source=parse_task_source(source), options=options, folder=folder)
    attempts = context.job.attempts
    try:
        # Only the first delivery may pay again for what had failed before.
        await extractor.extract(
            item, attempts=attempts, retry_failed=retry_failed and attempts == 0
        )
    except asyncio.CancelledError:
        if context.abort_reason() is AbortReason.USER_REQUEST:
            raise JobAborted from None
        raise


def _default_key(job: Job, source: str) -> str:
    # Ids count from 1 again in a database that was made anew; the journal may be an older one.
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    return f"procrastinate:{job.id}:{digest[:16]}"


def format_task_source(source: str) -> str:
    """Return a path or URL as a task can hold it: PostgreSQL stores no invalid Unicode."""
    try:
        source.encode()
    except UnicodeEncodeError:
        return Path(source).as_uri()
    return source


def parse_task_source(source: str) -> str:
    """Return the path or URL of a task."""
    if not source.startswith(_FILE_URL):
        return source
    return os.fsdecode(unquote_to_bytes(source.removeprefix(_FILE_URL)))


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))
