"""Submission: one delivery of a track, and what became of it as a value.

The body goes out up to its closing boundary, which is the commit point: from there on MusicGPT may
have the track, so the record says so before the boundary goes out, and nothing may cancel the wait
for the response. The runner provides the scope of that wait; its shield is set right before the
boundary is written, in the same step of the loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import attrs

from musicgpt_async._engine.context import Context
from musicgpt_async._engine.deliveries import Deliveries
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.queue import SubmitQueue, Turn
from musicgpt_async._engine.supervision import StrayCancellationError, as_error
from musicgpt_async._io.content import Digest, ReadableTrack
from musicgpt_async._io.upload import MultipartBody
from musicgpt_async._rules import payloads, protocol, retrying
from musicgpt_async._rules.lifecycle import Trigger
from musicgpt_async._rules.retrying import SubmitOutcome
from musicgpt_async.errors import JobDetachedError, MusicGPTError, TransportTimeoutError
from musicgpt_async.events import Uploading
from musicgpt_async.models import Acceptance

_log = logging.getLogger(__name__)

# Seconds that a submit waits for the response to the one before it: if the process is killed with
# two unanswered submits, the account's listing cannot distinguish them.
SUBMIT_LOCK_TIMEOUT = 2.0


@attrs.frozen
class Result:
    """What became of one delivery.

    Attributes:
        outcome: The kind of result.
        acceptance: MusicGPT's response, if it accepted the track.
        error: Why it did not, or why that is not known.
    """

    outcome: SubmitOutcome
    acceptance: Acceptance | None = None
    error: MusicGPTError | None = None


class Submitter:
    """Delivers tracks.

    Args:
        context: What the parts share.
        deliveries: Gives each submit the URL for its webhook.
        queue: Holds back what goes out ahead of its slot.
    """

    def __init__(self, context: Context, deliveries: Deliveries, queue: SubmitQueue) -> None:
        self._context = context
        self._queue = queue
        self._jobs = context.jobs
        self._deliveries = deliveries
        self._url = context.endpoints.submit
        self._submit_lock = anyio.Semaphore(1)

    async def deliver(self, turn: Turn, content: ReadableTrack | None) -> Result:
        """Deliver a track once; nothing is raised but a cancellation before the commit point.

        Args:
            turn: The job and its track; its ``in_flight`` is shielded from the commit point on.
            content: The track, open; ``None`` for a URL.

        Returns:
            What became of it.
        """
        response, lock = anyio.CancelScope(), _HeldLock(self._submit_lock)
        size = None if content is None else content.size
        digest = None
        if self._context.store.journal is not None:
            digest = Digest(self._context.executor)

        async def before_commit() -> None:
            await self._before_commit(turn, size, digest, lock)
            # Nothing is awaited from here until the closing boundary is handed to the transport.
            turn.in_flight.shield = True
            bound = retrying.response_timeout(self._context.http.request_timeout, size)
            response.deadline = anyio.current_time() + bound

        try:
            body = self._make_body(turn, content, before_commit, digest)
        except MusicGPTError as refusal:  # no webhook can be received for it
            return Result(SubmitOutcome.REFUSED, error=refusal)
        refused = False
        try:
            return Result(SubmitOutcome.ACCEPTED, await self._post(turn.job, body, response))
        except BaseException as raised:  # noqa: BLE001 - as_error raises again what is no failure
            try:
                error = as_error(raised)
            except BaseException:
                await self._retract(turn.job, body)
                raise
            result = _judge(turn.job, body, body.failure or error)
            refused = result.outcome is SubmitOutcome.NOT_ACCEPTED
            return result
        finally:
            self._queue.on_upload_ended(turn, delivered=body.delivered, refused=refused)
            lock.release()

    async def _post(self, job: Job, body: MultipartBody, response: anyio.CancelScope) -> Acceptance:
        with response:
            reply = await self._context.http.post(self._url, body)
            subject = f"The submit of {job.title}"
            return protocol.parse_acceptance(reply, now=time.time(), subject=subject)
        raise TransportTimeoutError(
            "The whole upload went out, and its response did not come in time."
        )

    async def _before_commit(
        self, turn: Turn, size: int | None, digest: Digest | None, lock: _HeldLock
    ) -> None:
        """Record that MusicGPT may have the track, before it can."""
        if self._context.store.journal is not None:
            await lock.acquire(min(SUBMIT_LOCK_TIMEOUT, self._context.stall_timeout / 2))
        _stop_if_detached(turn)
        await self._jobs.commit(
            turn.job,
            Trigger.DELIVERED,
            sent_at=time.time(),
            size=size,
            sha256=None if digest is None or size is None else digest.hexdigest,
        )
        _stop_if_detached(turn)

    async def _retract(self, job: Job, body: MultipartBody) -> None:
        """Record that a delivery was broken off after its record and before its boundary."""
        if not body.delivered and job.record.sent_at is not None:
            with anyio.CancelScope(shield=True):
                await self._jobs.commit(job, Trigger.NOT_DELIVERED, sent_at=None)

    def _make_body(
        self,
        turn: Turn,
        content: ReadableTrack | None,
        before_commit: Callable[[], Awaitable[None]],
        digest: Digest | None,
    ) -> MultipartBody:
        job, size = turn.job, None if content is None else content.size
        fields = payloads.submit_fields(
            stems=job.record.stems,
            preprocessing=job.record.preprocessing,
            eco_mode=job.record.eco_mode,
            audio_url=turn.track.location if content is None else "",
            webhook_url=self._deliveries.subscribe(job),
        )
        return MultipartBody(
            fields,
            content,
            stall_timeout=self._context.stall_timeout,
            before_commit=before_commit,
            progress=partial(self._progress, turn, size),
            digest=digest,
            hold=self._queue.on_upload_began(turn, size),
        )

    def _progress(self, turn: Turn, total: int | None, sent: int) -> None:
        job = turn.job
        self._queue.on_upload_progress(turn, sent)
        if self._context.event_bus:
            self._context.event_bus.publish(job.make_event(Uploading, sent=sent, total=total))


class _HeldLock:
    """The lock that keeps submits apart, as one of them holds it."""

    def __init__(self, lock: anyio.Semaphore) -> None:
        self._lock = lock
        self._is_held = False

    async def acquire(self, timeout: float) -> None:  # noqa: ASYNC109 - the submit continues without it
        """Wait until no other submit waits for its response, for so many seconds at most."""
        with anyio.move_on_after(timeout):
            await self._lock.acquire()
            self._is_held = True

    def release(self) -> None:
        """Let the next submit continue; without effect if the lock is not held."""
        if self._is_held:
            self._is_held = False
            self._lock.release()


def _stop_if_detached(turn: Turn) -> None:
    # aiohttp writes the body in a task of its own, which a cancellation reaches a step later.
    if turn.scope.cancel_called:
        raise JobDetachedError(f"{turn.job.title} was detached before it was sent.")


def _judge(job: Job, body: MultipartBody, error: BaseException) -> Result:
    """Return what a failed delivery means: by MusicGPT's response, or by how far the body came."""
    if isinstance(error, MusicGPTError) and not isinstance(error, StrayCancellationError):
        return Result(retrying.submit_outcome(error, delivered=body.delivered), error=error)
    _log.error("Submitting %s failed unexpectedly", job.title, exc_info=error)
    failure = MusicGPTError(f"Submitting {job.title} failed unexpectedly: {error!r}.")
    return Result(SubmitOutcome.UNKNOWN if body.delivered else SubmitOutcome.REFUSED, error=failure)
