"""Following: another handle, session or process has this track already.

The holder of a job's claim advances the job; every other handle on the same track follows. A handle
of the same session ends when the first one does; for any other the journal is read at intervals,
until the job has ended or its claim is free. A completed job needs no claim: its record has all
that a handle needs.

A handle that follows keeps its own id, by which its user knows it, while its record becomes the one
that it follows.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel
import attrs

from musicgpt_async._engine.context import Context
from musicgpt_async._engine.deliveries import Deliveries
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.queue import SubmitQueue, Turn
from musicgpt_async._engine.recovery import Recovery
from musicgpt_async._io import sources
from musicgpt_async._rules import lifecycle, records
from musicgpt_async._rules.lifecycle import Effect, Trigger
from musicgpt_async.errors import (
    DeadlineError,
    ExtractionFailedError,
    InvalidOptionError,
    JobDetachedError,
    JournalError,
    MusicGPTError,
    SourceError,
    SubmissionUnknownError,
)
from musicgpt_async.journal import Claim
from musicgpt_async.models import Extraction, JobRecord, JobState

OWNER_POLL_INTERVAL = 1.0  # seconds between reads of a job that another process works on


class _Deadline:
    """The end of a follower's wait for an owner that lives.

    Before the track is delivered there is none: its owner may wait for a slot for any time, as a
    job of this session may. From then on the follower needs no option of the owner's to end.

    Args:
        seconds: From delivery to acceptance, and from acceptance to the end; ``None`` for no limit.

    Attributes:
        scope: Cancelled when the deadline has passed.
    """

    def __init__(self, seconds: float | None) -> None:
        self.scope = anyio.CancelScope()
        self._seconds = seconds
        self._is_accepted = False

    def observe(self, record: JobRecord) -> None:
        """Start the time when a record is seen delivered, and again when it is seen accepted."""
        if not records.was_delivered(record):
            self.scope.deadline = math.inf  # a 429 may have sent it back
        elif self._seconds is not None:
            is_accepted = record.task_id is not None
            if self.scope.deadline == math.inf or is_accepted != self._is_accepted:
                self.scope.deadline = anyio.current_time() + self._seconds
            self._is_accepted = is_accepted


Follow = Callable[[Job, _Deadline], Awaitable[None]]


class Following:
    """Resumes jobs whose records exist, or follows their owners.

    Args:
        context: What the parts share.
        queue: Takes what was never delivered.
        recovery: Takes what was delivered and has no task.
        deliveries: Receives the webhooks of what is resumed.
    """

    def __init__(
        self, context: Context, *, queue: SubmitQueue, recovery: Recovery, deliveries: Deliveries
    ) -> None:
        self._context = context
        self._jobs = context.jobs
        self._queue = queue
        self._recovery = recovery
        self._deliveries = deliveries
        self._scopes: dict[str, anyio.CancelScope] = {}

    def on_change(self, job: Job, effects: Effect) -> None:
        """Stop following for a handle that has ended."""
        if Effect.END in effects and (scope := self._scopes.get(job.id)) is not None:
            scope.cancel()

    def follow(self, job: Job, record: JobRecord, claim: Claim | None) -> None:
        """Continue the job that the journal has of this track, instead of a new submit."""
        self._jobs.apply(job, Trigger.REQUEUED)
        if records.has_same_options(record, job.record):
            follow = partial(self._follow_owner, record=record, claim=claim)
            self._start(job, record.id, follow)
        else:
            self._jobs.apply(job, Trigger.REFUSED, outcome=_make_other_options_error(job, record))
            self.resume(job, record, claim)

    def watch(self, job: Job) -> None:
        """Follow the owner of a job's record; if it has none, resume it."""
        self._jobs.mirror(job, job.record)
        self._start(job, job.record.id, self._watch_owner)

    def stop(self, job: Job) -> None:
        """Stop watching for a job that the session resumes itself."""
        if (scope := self._scopes.get(job.id)) is not None:
            scope.cancel()

    def resume(self, job: Job, record: JobRecord, claim: Claim | None) -> None:
        """Continue from the state of a record; a job that has ended gives the claim back."""
        if job.has_ended:  # refused, or detached while the journal was asked
            if claim is not None:
                on_failure = partial(_drop, claim)
                self._context.supervisor.spawn(self._give_back, claim, on_failure=on_failure)
            return
        self._jobs.adopt(job, record, claim)
        try:
            self._resume(job, record)
        except MusicGPTError as error:  # it ends this handle only
            self._jobs.apply(job, Trigger.SESSION_LEFT, outcome=error)

    def _resume(self, job: Job, record: JobRecord) -> None:
        if record.links and record.task_id:
            self._jobs.apply(job, Trigger.COMPLETED, outcome=records.make_extraction(record))
        elif record.task_id:
            self._deliveries.subscribe(job)
            self._queue.force_acquire(job)
            self._jobs.apply(job, Trigger.ACCEPTED)
            if self._deliveries.is_subscribed(job):  # one may have arrived before
                self._jobs.apply(job, Trigger.WEBHOOK_RECEIVED)
        elif records.was_delivered(record):
            self._jobs.apply(job, Trigger.RESPONSE_MISSING)
            self._recovery.search(job)
        else:
            self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        source = job.record.source if job.source is None else job.source
        if source:
            track = sources.parse_source(source, label=job.record.label)
            self._jobs.update(job, save=False, source=track.location)  # a key's may have moved
            self._queue.push(Turn(job, track, is_registered=True))
            return
        error = SourceError(
            f"{job.title} was bytes or a stream, which cannot be read again; submit it anew."
        )
        self._jobs.apply(job, Trigger.REFUSED, outcome=error)

    def _start(self, job: Job, record_id: str, follow: Follow) -> None:
        scope = self._scopes[job.id] = anyio.CancelScope()
        if job.has_ended:
            scope.cancel()
        on_failure = partial(self._on_failure, job)
        supervisor = self._context.supervisor
        supervisor.spawn(self._limited, job, record_id, scope, follow, on_failure=on_failure)

    async def _limited(
        self, job: Job, record_id: str, scope: anyio.CancelScope, follow: Follow
    ) -> None:
        """Follow until the job has ended here, is resumed here, or its deadline has passed."""
        deadline = _Deadline(job.deadline)
        try:
            with scope, deadline.scope:
                await follow(job, deadline)
            if deadline.scope.cancelled_caught:
                found = await self._context.store.find(record_id)
                overdue = _make_overdue_error(job, None if found is None else found.task_id)
                self._jobs.apply(job, Trigger.DETACHED, outcome=overdue)
        finally:
            if self._scopes.get(job.id) is scope:
                del self._scopes[job.id]

    async def _watch_owner(self, job: Job, deadline: _Deadline) -> None:
        """Show what the record says, until it has ended or its claim is free."""
        store, record_id = self._context.store, job.record.id
        scope = self._scopes[job.id]
        while True:
            with anyio.CancelScope(shield=True):  # a claim is never lost on the way
                claim = await store.claim(record_id)
                found = await store.find(record_id)
                outcome = None if found is None else make_outcome(found)
                is_over = found is None or outcome is not None
                if claim is not None and (is_over or scope.cancel_called):
                    await self._give_back(claim)
            await anyio.lowlevel.checkpoint_if_cancelled()
            if found is None:
                error = JournalError(f"The journal has no job {record_id} any more.")
                self._jobs.apply(job, Trigger.SESSION_LEFT, outcome=error)
            elif outcome is not None:
                self._jobs.restore(job, found)
                trigger = lifecycle.TRIGGER_OF_END[found.state]
                self._jobs.apply(job, trigger, outcome=outcome)
            elif claim is not None:
                self.resume(job, found, claim)
            else:
                self._jobs.mirror(job, found)
                deadline.observe(found)
                await anyio.sleep(OWNER_POLL_INTERVAL)
                continue
            return

    async def _follow_owner(
        self, job: Job, deadline: _Deadline, record: JobRecord, claim: Claim | None
    ) -> None:
        """Wait until the job is over, or its claim is free."""
        store = self._context.store
        while claim is None and record.state is not JobState.COMPLETED:
            if record.state is JobState.FAILED:
                error = ExtractionFailedError(record.error or "It failed.", task_id=record.task_id)
                self._jobs.apply(job, Trigger.EXTRACTION_FAILED, outcome=error)
                return
            primary = self._jobs.find(record.id)
            if primary is None:  # else it has a deadline of its own here
                deadline.observe(record)
                await anyio.sleep(OWNER_POLL_INTERVAL)
            elif await self._copy_outcome(job, primary):
                return
            for lost in await store.flush():  # how the other handle ended has to be there
                self._jobs.apply(lost, Trigger.SESSION_LEFT, outcome=make_taken_over_error(lost))
            found = await store.add_or_get(job, force=False, followed=record.id)
            if found is None:  # it failed before it was sent, and is this handle's to submit now
                self._enqueue(job)
                return
            record, claim = found
        self.resume(job, record, claim)

    async def _copy_outcome(self, job: Job, primary: Job) -> bool:
        """End as another handle of this session does; return False if that was detached."""
        while not primary.has_ended:
            await primary.wait_changed()
        outcome = primary.outcome
        if outcome is None or isinstance(outcome, JobDetachedError):
            return False
        own_record = job.record
        self._jobs.restore(
            job,
            attrs.evolve(
                primary.record,
                id=own_record.id,
                label=own_record.label,
                directory=own_record.directory,
                format=own_record.format,
                requested_stems=own_record.requested_stems,
            ),
            primary=primary.primary or primary,
        )
        trigger = lifecycle.TRIGGER_OF_END.get(primary.record.state, Trigger.REFUSED)
        self._jobs.apply(job, trigger, outcome=outcome)
        return True

    async def _give_back(self, claim: Claim) -> None:
        journal = self._context.store.journal
        if journal is not None:
            await journal._release(claim.id)
        claim.drop()

    def _on_failure(self, job: Job, error: Exception) -> None:
        if not isinstance(error, MusicGPTError):
            error = MusicGPTError(f"Following {job.title} failed unexpectedly: {error!r}.")
        self._jobs.apply(job, Trigger.SESSION_LEFT, outcome=error)


def make_outcome(record: JobRecord) -> Extraction | MusicGPTError | None:
    """Return how the job of a record ended for good, ``None`` if it can be continued."""
    match record.state:
        case JobState.COMPLETED:
            return records.make_extraction(record)
        case JobState.FAILED if record.task_id is not None:
            return ExtractionFailedError(record.error or "It failed.", task_id=record.task_id)
        case JobState.FAILED:
            return MusicGPTError(record.error or "It was not submitted.")
        case JobState.UNKNOWN:
            return SubmissionUnknownError(record.error or "Its response was lost.")
        case JobState.DETACHED if not records.was_delivered(record):
            return JobDetachedError(record.error or "It was detached and not submitted.")
        case _:
            return None


def _drop(claim: Claim, _: Exception) -> None:
    claim.drop()


def make_taken_over_error(job: Job) -> JobDetachedError:
    """Return the error of a job whose claim another process has taken."""
    return JobDetachedError(f"Another process has taken {job.title} over; it goes on there.")


def _make_other_options_error(job: Job, record: JobRecord) -> InvalidOptionError:
    return InvalidOptionError(
        f"{job.title} was not submitted, and nothing was paid: its key belongs to the job "
        f"{record.id} with other options ({_describe_options(record)}; now "
        f"{_describe_options(job.record)}). Use another key, or force=True to pay for it again."
    )


def _describe_options(record: JobRecord) -> str:
    stems = ", ".join(record.stems) or "MusicGPT's own"
    options = [*record.preprocessing, *(["eco_mode"] if record.eco_mode else ())]
    return f"stems: {stems}; options: {', '.join(options) or 'none'}"


def _make_overdue_error(job: Job, task_id: str | None) -> DeadlineError:
    return DeadlineError(
        f"Another process has not finished {job.title} after {job.deadline:g} s; it goes on there. "
        "Nothing was paid twice: submit it again to follow it.",
        task_id=task_id,
    )
