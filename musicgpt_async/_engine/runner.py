"""Runner: one job from its turn to acceptance, top to bottom.

A coroutine exists for that stretch only: before it the job is an entry of the queue, after it an
entry of the poller. Detaching a job cancels the scope of that coroutine. The inner scope of a
delivery is shielded from the commit point until what became of it is recorded, so that a detached
job whose track went out is known to be accepted, or not.
"""

from __future__ import annotations

import logging
import time
from functools import partial

import anyio
import attrs

from musicgpt_async._engine.context import Context
from musicgpt_async._engine.following import Following
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.queue import SubmitQueue, Turn
from musicgpt_async._engine.recovery import Recovery
from musicgpt_async._engine.submission import Result, Submitter
from musicgpt_async._io import sources
from musicgpt_async._io.content import ReadableTrack
from musicgpt_async._rules import fingerprint, retrying
from musicgpt_async._rules.lifecycle import Effect, Trigger
from musicgpt_async._rules.retrying import SubmitOutcome
from musicgpt_async.errors import (
    AuthenticationError,
    CreditLimitError,
    EndpointNotFoundError,
    ForbiddenError,
    InsufficientCreditsError,
    MusicGPTError,
    SourceChangedError,
)
from musicgpt_async.events import Throttled
from musicgpt_async.models import JobState

_log = logging.getLogger(__name__)

# Refusals of the account, not of a track: the rest of the queue would be refused as well.
ACCOUNT_ERRORS = (
    AuthenticationError,
    EndpointNotFoundError,
    ForbiddenError,
    InsufficientCreditsError,
)
MAX_DELIVERIES = 5  # attempts to deliver a track before the network error is final


class Runner:
    """Submits the jobs whose turn it is.

    Args:
        context: What the parts share.
        queue: Decides whose turn it is.
        submitter: Delivers a track once.
        recovery: Reconciles submits whose responses were lost.
        following: Follows jobs that another handle or process has.
    """

    def __init__(
        self,
        context: Context,
        *,
        queue: SubmitQueue,
        submitter: Submitter,
        recovery: Recovery,
        following: Following,
    ) -> None:
        self._context = context
        self._jobs = context.jobs
        self._queue = queue
        self._submitter = submitter
        self._recovery = recovery
        self._following = following
        self._active: dict[str, Turn] = {}
        self._finished = anyio.Event()

    async def run(self) -> None:
        """Start the submits whose turn it is."""
        while True:
            for turn in self._queue.take():
                if isinstance(turn, Turn):
                    self._start(turn)
                else:
                    refused, error = turn
                    self._jobs.apply(refused.job, Trigger.REFUSED, outcome=error)
            await self._queue.wait_changed()

    def on_change(self, job: Job, effects: Effect) -> None:
        """Cancel the submit of a job that has ended, and the wait for a response not needed."""
        turn = self._active.get(job.id)
        if turn is not None and Effect.END in effects:
            turn.scope.cancel()
        elif turn is not None and Effect.START_POLLING in effects:
            turn.in_flight.cancel()  # its webhook may have been faster

    async def wait_for_responses(self, seconds: float) -> None:
        """Wait for responses to submits in flight, within a limit, so that they are recorded."""
        with anyio.move_on_after(seconds):
            while any(turn.job.is_response_due for turn in self._active.values()):
                await self._finished.wait()

    def abandon(self) -> None:
        """Stop waiting for responses."""
        for turn in self._active.values():
            turn.in_flight.cancel()

    def _start(self, turn: Turn) -> None:
        self._active[turn.job.id] = turn
        self._jobs.apply(turn.job, Trigger.SLOT_ACQUIRED)
        supervisor = self._context.supervisor
        supervisor.spawn(self._run_turn, turn, on_failure=partial(self._on_failure, turn))

    async def _run_turn(self, turn: Turn) -> None:
        try:
            with turn.scope:
                await self._run_to_acceptance(turn)
        finally:
            self._queue.on_ended(turn)
            if self._active.get(turn.job.id) is turn:  # not a later one of the same job
                del self._active[turn.job.id]
            self._finished.set()
            self._finished = anyio.Event()

    async def _run_to_acceptance(self, turn: Turn) -> None:
        # With a key the content does not matter: a track that is known already is not even opened.
        if turn.key is not None and not await self._register(
            turn, fingerprint.compute_key_fingerprint(turn.key), size=None
        ):
            return
        async with sources.open_track(turn.track, self._context.executor) as content:
            if not await self._register_content(turn, content):
                return
            deliveries = 0
            while True:
                await self._queue.wait_for_slot(turn)  # the slot is needed from here on
                if turn.job.record.state is JobState.QUEUED:
                    self._jobs.apply(turn.job, Trigger.SLOT_ACQUIRED)
                result = None
                with anyio.CancelScope() as turn.in_flight:
                    result = await self._submitter.deliver(turn, content)
                    deliveries = (
                        deliveries + 1 if result.outcome is SubmitOutcome.NOT_DELIVERED else 0
                    )
                    await self._record(turn, result, is_last=deliveries == MAX_DELIVERIES)
                if result is None:
                    self._on_response_not_needed(turn)
                    return
                if result.outcome is SubmitOutcome.NOT_DELIVERED and deliveries < MAX_DELIVERIES:
                    await anyio.sleep(retrying.delivery_backoff(deliveries))
                elif result.outcome is not SubmitOutcome.NOT_ACCEPTED:
                    return

    async def _register_content(self, turn: Turn, content: ReadableTrack | None) -> bool:
        """Save the job before anything is sent; return whether it is this session's to submit."""
        size = None if content is None else content.size
        if fingerprint.is_keyed(turn.job.record.fingerprint):
            self._jobs.update(turn.job, save=False, size=size)
            return True
        job, location = turn.job, turn.track.location
        version = "" if content is None else content.version
        computed = fingerprint.compute_fingerprint(
            location if location or version else job.id,
            version,
            stems=job.record.stems,
            preprocessing=job.record.preprocessing,
            eco_mode=job.record.eco_mode,
        )
        if turn.is_registered:
            if computed != job.record.fingerprint:  # it may be in the journal as changed, too
                raise SourceChangedError(
                    f"{job.title} changed after it was queued, and was not sent; submit it again."
                )
            return True
        return await self._register(turn, computed, size=size)

    async def _register(self, turn: Turn, computed: str, *, size: int | None) -> bool:
        """Save the job, unless the same one is known already."""
        job = turn.job
        self._jobs.update(job, save=False, fingerprint=computed, size=size)
        found = await self._context.store.add_or_get(
            job, force=turn.force, retry_failed=turn.retry_failed
        )
        if found is None:
            return True
        self._queue.on_ended(turn)
        self._following.follow(job, *found)
        return False

    async def _record(self, turn: Turn, result: Result, *, is_last: bool) -> None:
        """Record what became of a delivery."""
        job, error = turn.job, result.error
        if result.acceptance is not None:
            facts = attrs.asdict(result.acceptance)
            self._jobs.apply(job, Trigger.ACCEPTED, **facts, accepted_at=time.time())
            self._queue.on_accepted(turn, result.acceptance.credit_estimate)
            _log.debug("%s was accepted as task %s", job.title, job.record.task_id)
            return
        assert error is not None  # noqa: S101 - for the type checker: there is one or the other
        match result.outcome:
            case SubmitOutcome.NOT_DELIVERED if not is_last:
                # Marked as stamina marks its retries, so that one handler can show both.
                cause = {"stamina.caused_by": repr(error)}
                _log.warning("%s It is tried again.", error, extra=cause)
                await self._undo_delivery(job, Trigger.NOT_DELIVERED)
            case SubmitOutcome.NOT_ACCEPTED:
                self._queue.on_not_accepted(turn, error)
                if self._context.event_bus:
                    slowed = job.make_event(Throttled, call="submit", retry_after=error.retry_after)
                    self._context.event_bus.publish(slowed)
                await self._undo_delivery(job, Trigger.REQUEUED)
            case SubmitOutcome.UNKNOWN:
                self._queue.on_unknown(turn)
                self._recovery.await_webhook(job, error)
            case _:
                self._jobs.apply(job, Trigger.REFUSED, outcome=error, sent_at=None)
                if isinstance(error, ACCOUNT_ERRORS):
                    self._fail_queued(error)

    def _on_response_not_needed(self, turn: Turn) -> None:
        """Stop waiting for a response: the webhook was faster, or the session is closed."""
        if turn.job.record.task_id is not None:
            self._queue.on_accepted(turn, None)
        else:
            self._queue.on_unknown(turn)
            self._jobs.apply(turn.job, Trigger.RESPONSE_MISSING)

    async def _undo_delivery(self, job: Job, trigger: Trigger) -> None:
        if job.record.sent_at is None:
            self._jobs.apply(job, trigger)
        else:
            await self._jobs.commit(job, trigger, sent_at=None)

    def _on_failure(self, turn: Turn, error: Exception) -> None:
        """End a job whose submit failed without a response from MusicGPT."""
        job = turn.job
        if not isinstance(error, MusicGPTError):
            _log.error("Submitting %s failed unexpectedly", job.title, exc_info=error)
            error = MusicGPTError(f"Submitting {job.title} failed unexpectedly: {error!r}.")
        match job.record.state:
            case JobState.QUEUED | JobState.UPLOADING:
                self._jobs.apply(job, Trigger.REFUSED, outcome=error, sent_at=None)
            case JobState.UNACKNOWLEDGED:
                self._recovery.await_webhook(job, error)
            case JobState.PROCESSING:  # it was accepted, whatever went wrong here
                self._jobs.apply(job, Trigger.SESSION_LEFT, outcome=error)

    def _fail_queued(self, error: MusicGPTError) -> None:
        """End what is queued: the account would be refused again."""
        kind = CreditLimitError if isinstance(error, InsufficientCreditsError) else type(error)
        for turn in self._queue.queued():
            refusal = kind(
                f"{turn.job.title} was not submitted, because a track before it was refused "
                f"with status {error.status}. {error.advice}",
                status=error.status,
                vendor_message=error.vendor_message,
            )
            self._jobs.apply(turn.job, Trigger.REFUSED, outcome=refusal)
