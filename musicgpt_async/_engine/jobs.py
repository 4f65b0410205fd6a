"""Jobs: the only writer of records.

Every change of a job goes through :meth:`Jobs.apply`. It looks the trigger up in the table of
``lifecycle``, changes the record, and calls the observers in the order in which the runtime listed
them, with the effects that the table names. The parts of the engine only say what happened; none of
them calls another. ``commit`` is ``apply`` and a record that is durable when it returns.

A job ends once: a trigger that would end it again is ignored, so no part has to check after each
await whether the job has ended. A late response records what became known and has no other effect.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

import attrs

from musicgpt_async._engine.job_state import DownloadStatus, Job
from musicgpt_async._engine.store import JobStore
from musicgpt_async._rules import lifecycle
from musicgpt_async._rules.lifecycle import Effect, Trigger
from musicgpt_async.errors import MusicGPTError
from musicgpt_async.events import Accepted, Completed, Downloaded, EventBus, Failed
from musicgpt_async.job import ExtractionJob, JobRuntime
from musicgpt_async.journal import Claim
from musicgpt_async.models import Extraction, JobRecord, JobState

# Ended jobs that a session without a journal remembers, the latest ones.
MAX_ENDED = 1024
# Final states: no process continues such a job, so memory is as current as the journal.
_FINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.UNKNOWN})
_SAVES = Effect.SAVE | Effect.SAVE_FIRST
# After these triggers no response is awaited that could show the result of a submit.
_RESPONSES = frozenset(
    {
        Trigger.NOT_DELIVERED,
        Trigger.REQUEUED,
        Trigger.ACCEPTED,
        Trigger.REFUSED,
        Trigger.RESPONSE_MISSING,
        Trigger.RESPONSE_LOST,
    }
)


class Observer(Protocol):
    """A part of the engine that carries effects out."""

    def on_change(self, job: Job, effects: Effect) -> None:
        """Do what the effects of a change ask of this part; return at once."""


class Jobs:
    """All jobs of a session that have not ended, and the only way to change one.

    Args:
        store: Makes records durable.
        event_bus: Where events go.
        runtime: What handles ask for things; it calls their callbacks.
    """

    def __init__(self, store: JobStore, event_bus: EventBus, runtime: JobRuntime) -> None:
        self._store = store
        self._event_bus = event_bus
        self._runtime = runtime
        self._observers: tuple[Observer, ...] = ()
        self._live: dict[str, Job] = {}
        self._last_position = 0
        # With a journal, only while referenced: the journal has the record.
        self._ended: MutableMapping[str, Job] = (
            {} if store.journal is None else WeakValueDictionary()
        )

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._live.values()))

    def observe(self, *observers: Observer) -> None:
        """Call these at every change, in this order."""
        self._observers = observers

    def create(self, record: JobRecord, source: Any, title: str, deadline: float | None) -> Job:
        """Return a new job, which is queued."""
        self._last_position += 1
        job = Job(record.id, record, title, source, deadline, self._last_position)
        job.handle = ExtractionJob(job, self._runtime)
        self._live[job.id] = job
        return job

    def create_ended(
        self, record: JobRecord, title: str, outcome: Extraction | MusicGPTError
    ) -> Job:
        """Return a job that ended before, as its record says; nothing happens to it any more."""
        job = Job(record.id, record, title, record.source or None, None, 0, outcome=outcome)
        job.handle = ExtractionJob(job, self._runtime)
        self._remember(job)
        return job

    def recall(self, id: str) -> Job | None:  # noqa: A002 - the handle's own name
        """Return the job that a handle shows, if it is in memory."""
        if (live := self._live.get(id)) is not None:
            return live
        ended = self._ended.get(id)
        return self.find(id) or ended if ended is None or self.is_outdated(ended) else ended

    def is_outdated(self, job: Job) -> bool:
        """Return whether the journal may know more of a job whose handle has ended here."""
        is_final = job.record.state in _FINAL
        return self._store.journal is not None and job.has_ended and not is_final

    def _remember(self, job: Job) -> None:
        self._ended[job.id] = job
        if self._store.journal is None and len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def find(self, record_id: str) -> Job | None:
        """Return the job of this session that writes a record."""
        job = self._live.get(record_id)
        if job is not None and job.record.id == record_id:
            return job
        return next(
            (
                job
                for job in self._live.values()
                if job.record.id == record_id and job.claim is not None
            ),
            None,
        )

    def apply(
        self,
        job: Job,
        trigger: Trigger,
        *,
        outcome: Extraction | MusicGPTError | None = None,
        **facts: Any,
    ) -> None:
        """Change a job by the table.

        Args:
            job: The job.
            trigger: What happened.
            outcome: How it ended, if the trigger ends it.
            facts: Attributes of the record that change with it.
        """
        if job.has_ended and trigger not in lifecycle.LATE:
            return
        step = lifecycle.next_step(job.record.state, trigger)
        effects = step.effects
        if job.has_ended:
            effects &= _SAVES
        elif Effect.END in effects:
            facts = {**self._end(job, trigger, outcome), **facts}
        job.record = attrs.evolve(job.record, state=step.state, **facts)
        if trigger is Trigger.DELIVERED:
            job.is_response_due = True
        elif trigger in _RESPONSES:
            job.is_response_due = False
        for observer in self._observers:
            observer.on_change(job, effects)
        for callback in job.notify():
            self._runtime.call_soon(callback, job.handle)
        self._publish(job, trigger, effects)

    async def commit(
        self,
        job: Job,
        trigger: Trigger,
        *,
        outcome: Extraction | MusicGPTError | None = None,
        **facts: Any,
    ) -> None:
        """Change a job by the table; when this returns, its record is durable.

        Raises:
            JournalError: It could not be saved.
        """
        self.apply(job, trigger, outcome=outcome, **facts)
        await self._store.save(job)

    def update(self, job: Job, *, save: bool = True, **facts: Any) -> None:
        """Record facts that do not change the state."""
        job.record = attrs.evolve(job.record, **facts)
        if save:
            self._store.save_later(job)

    def adopt(self, job: Job, record: JobRecord, claim: Claim | None) -> None:
        """Make a queued job the one that a record describes, and let it write if it has a claim."""
        self.restore(job, record)
        self._store.give_claim(job, claim)

    def restore(self, job: Job, record: JobRecord, *, primary: Job | None = None) -> None:
        """Give a queued job an existing record; it is queued until the next trigger.

        Args:
            job: The job.
            record: The record, of this job or of the one that it follows.
            primary: The job of this session that writes the record for both.
        """
        if not job.has_ended:
            job.record, job.primary = attrs.evolve(record, state=JobState.QUEUED), primary

    def count_downloads(self, job: Job, *, requested: int = 0, writers: int = 0) -> DownloadStatus:
        """Count downloads that begin (1) or end (-1); return what is known of them."""
        status = job.downloads()
        status.requested += requested
        status.writers += writers
        return status

    def set_download_end(self, job: Job, end: Downloaded | Failed | None) -> None:
        """Record how the latest download of a job ended, ``None`` while one is under way."""
        job.downloads().end = end
        if end is not None:
            self._event_bus.publish(end)

    def mirror(self, job: Job, record: JobRecord) -> None:
        """Show what another process has saved of a job that a handle only follows."""
        if job.has_ended:
            return
        if record.state in lifecycle.TERMINAL:  # this handle still follows it
            state = JobState.QUEUED if record.task_id is None else JobState.PROCESSING
            record = attrs.evolve(record, state=state)
        if record != job.record:
            job.record = record
            job.notify()

    def _end(
        self, job: Job, trigger: Trigger, outcome: Extraction | MusicGPTError | None
    ) -> dict[str, Any]:
        """Record the outcome of a job; return the attributes of its record that this changes."""
        if isinstance(outcome, MusicGPTError):
            task_id = outcome.task_id or job.record.task_id
            outcome = outcome.copy(task_id=task_id, job=job.handle)
        job.outcome = outcome
        del self._live[job.id]
        self._remember(job)
        is_error = isinstance(outcome, MusicGPTError) and trigger is not Trigger.SESSION_LEFT
        return {"error": str(outcome)} if is_error else {}

    def _publish(self, job: Job, trigger: Trigger, effects: Effect) -> None:
        if not self._event_bus:
            return
        if Effect.END in effects:
            if isinstance(job.outcome, Extraction):
                self._event_bus.publish(job.make_event(Completed, extraction=job.outcome))
            else:
                self._event_bus.publish(job.make_event(Failed, error=job.outcome))
        elif trigger is Trigger.ACCEPTED and Effect.START_POLLING in effects:
            record = job.record
            self._event_bus.publish(
                job.make_event(Accepted, eta=record.eta, credit_estimate=record.credit_estimate)
            )
