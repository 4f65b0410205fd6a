"""Poller: one schedule of polls for all jobs of a session, within the account's calls a minute.

A failed poll is never a failed job. A job is polled once more before it is given up at its
deadline. A task that a poll shows running holds a slot, whichever process submitted it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection
from functools import partial

import anyio
import attrs

from musicgpt_async._engine.context import Context
from musicgpt_async._engine.deliveries import Deliveries
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.poll_grants import PollGrant, PollGrants
from musicgpt_async._engine.queue import SubmitQueue
from musicgpt_async._engine.wakeup import Wakeup
from musicgpt_async._rules import payloads, protocol, retrying
from musicgpt_async._rules.lifecycle import Effect, Trigger
from musicgpt_async._rules.payloads import Conversion, Progress
from musicgpt_async._rules.polling import Schedule
from musicgpt_async.errors import (
    DeadlineError,
    ExtractionFailedError,
    MusicGPTError,
    ProtocolError,
    RateLimitError,
    TransportTimeoutError,
)
from musicgpt_async.events import Polled, Throttled
from musicgpt_async.models import JobState

_log = logging.getLogger(__name__)

NEWLY_ACCEPTED = 0.5  # seconds since acceptance; an older job was resumed
LAST_POLL_TIMEOUT = 10.0  # seconds past its deadline that a job's last poll may take
# Seconds in which a one-off poll has to be answered; a pause after a 429 takes 120 s at most.
SINGLE_POLL_TIMEOUT = 300.0
MAX_RECENT_TASKS = 4096  # tasks that are remembered to be a job's own, the newest ones
MAX_UNKNOWN_STATUSES = 64  # new status words that are logged, once each


@attrs.define(eq=False)
class _PollEntry:
    """A job in the schedule.

    Attributes:
        job: It has a task.
        accepted: When it was accepted, on the loop's clock; ``None`` if that is not known.
        ends_at: When its deadline passes, or its last poll has taken too long; on the loop's clock.
        refusals: Refused polls in a row.
        refused_since: When the first of them was, on the loop's clock.
        is_last: Whether its deadline has passed: the next poll is its last.
    """

    job: Job
    accepted: float | None
    ends_at: float = math.inf
    refusals: int = 0
    refused_since: float = 0.0
    is_last: bool = False

    @property
    def task_id(self) -> str:
        return self.job.record.task_id or ""

    @property
    def stems(self) -> Collection[str]:
        return self.job.record.stems


@attrs.define(eq=False)
class _SinglePoll:
    """A task in the schedule that is polled once."""

    task_id: str
    stems: Collection[str]
    finished: anyio.Event = attrs.field(factory=anyio.Event)
    result: Conversion | MusicGPTError | None = None


class Poller:
    """Polls jobs until they end.

    Args:
        context: What the parts share.
        schedule: When to poll next; the one place that decides it.
        queue: Has the slots of jobs that are seen to run.
        deliveries: Knows which jobs may have webhooks, and what these said.
        grants: Asks the account for each poll; ``None`` if this session alone uses it.
    """

    def __init__(
        self,
        context: Context,
        schedule: Schedule[_PollEntry | _SinglePoll],
        *,
        queue: SubmitQueue,
        deliveries: Deliveries,
        grants: PollGrants | None,
    ) -> None:
        self._context = context
        self._jobs = context.jobs
        self._event_bus = context.event_bus
        self._url = context.endpoints.status
        self._schedule = schedule
        self._queue = queue
        self._deliveries = deliveries
        self._grants = grants
        self._entries: dict[str, _PollEntry] = {}  # in order of their ends
        self._next_end = math.inf  # no entry ends before it
        self._recent_tasks: dict[str, None] = {}
        self._unknown_statuses: set[str] = set()
        self._wakeup = Wakeup()

    def on_change(self, job: Job, effects: Effect) -> None:
        """Begin to poll a job, poll it at once, or stop."""
        if Effect.START_POLLING in effects:
            self._add(job)
        elif Effect.CHECK_NOW in effects:
            self._wake(job)
        elif Effect.END in effects:
            self._remove(job)

    async def run(self) -> None:
        """Poll as polls fall due."""
        if self._grants is not None:
            await self._run_granted(self._grants)
        while True:
            self._end_overdue_if_any()
            self._start_due()
            await self._wait_due(self._schedule.next_due())

    async def _run_granted(self, grants: PollGrants) -> None:
        """Poll as polls fall due and the account grants them, one by one."""
        grant: PollGrant | None = None
        while True:
            self._end_overdue_if_any()
            await grants.share()
            now, due = _now(), self._schedule.next_due()
            if grant is not None and grant.has_expired(now):
                grant = None
            if due is not None and due <= now:
                grant = grant or await grants.take()
                due, now = self._schedule.next_due(), _now()
            if grant is not None and due is not None and due <= now:
                due = grant.early if self._schedule.is_wake_due(now) else grant.due
                if due <= now and self._start_due(most=1):
                    grant = None
                    continue
            await self._wait_due(due)

    async def _wait_due(self, due: float | None) -> None:
        """Wait until a poll is due, or a job past its deadline."""
        await self._wakeup.wait(until=min(due or math.inf, self._next_end))

    def _end_overdue_if_any(self) -> None:
        if self._next_end <= _now():
            self._end_overdue(_now())

    def _start_due(self, *, most: float = math.inf) -> bool:
        """Start the polls that are due; return whether there were any."""
        due = self._schedule.take_due(_now(), most=most)
        for entry in due:
            self._context.supervisor.spawn(
                self._poll, entry, on_failure=partial(self._on_error, entry)
            )
        return bool(due)

    async def poll_once(self, task_id: str, stems: Collection[str]) -> Conversion:
        """Poll a task once, ahead of the jobs and within the same budget.

        Raises:
            MusicGPTError: The poll failed, or was throttled for too long.
        """
        entry, now = _SinglePoll(task_id, stems), _now()
        self._schedule.add(entry, now=now, eta=None)
        self._schedule.wake(entry, now=now)
        self._wakeup.set()
        try:
            with anyio.move_on_after(SINGLE_POLL_TIMEOUT):
                await entry.finished.wait()
        finally:
            self._schedule.remove(entry)
        if isinstance(entry.result, Conversion):
            return entry.result
        raise entry.result or TransportTimeoutError(
            f"Task {task_id} was not polled within {SINGLE_POLL_TIMEOUT:g} s; try it again later."
        )

    def is_polled(self, task_id: str) -> bool:
        """Return whether a task is known to be another job's of this session."""
        return task_id in self._recent_tasks

    def recent_task_ids(self) -> set[str]:
        """Return the newest tasks of this session's jobs."""
        return set(self._recent_tasks)

    def _add(self, job: Job) -> None:
        now, accepted_at = _now(), job.record.accepted_at
        age = None if accepted_at is None else time.time() - accepted_at
        if age is not None and age < NEWLY_ACCEPTED:
            age = 0.0  # it has been followed from its beginning
        entry = _PollEntry(job, None if age is None else now - age)
        if job.deadline is not None:
            # A timer of the loop for each job would take four times the memory of its entry.
            entry.ends_at = now + job.deadline
            self._next_end = min(self._next_end, entry.ends_at)
        self._entries[job.id] = entry
        self._remember(entry.task_id)
        token = job.record.token if self._deliveries.is_subscribed(job) else None
        self._schedule.add(entry, now=now, eta=job.record.eta, age=age, webhook=token)
        if self._deliveries.hint(job) is not None:
            self._wake(job)
        self._wakeup.set()

    def _remember(self, task_id: str) -> None:
        self._recent_tasks[task_id] = None
        if len(self._recent_tasks) > MAX_RECENT_TASKS:
            del self._recent_tasks[next(iter(self._recent_tasks))]

    def _wake(self, job: Job) -> None:
        """Poll a job because a delivery came for it."""
        entry = self._entries.get(job.id)
        if entry is not None:
            self._schedule.delivered(entry, now=_now())
            self._wakeup.set()

    def _remove(self, job: Job) -> None:
        entry = self._entries.pop(job.id, None)
        if entry is None:
            return
        if job.record.state in (JobState.COMPLETED, JobState.FAILED):
            self._schedule.on_finished(entry, now=_now())
            self._deliveries.report_silence(now=_now())
        else:
            self._schedule.remove(entry)

    async def _poll(self, entry: _PollEntry | _SinglePoll) -> None:
        subject = f"The poll of task {entry.task_id}"
        response = await self._context.http.get(self._url, protocol.status_query(entry.task_id))
        conversion = protocol.parse_conversion(
            response, now=time.time(), subject=subject, requested=tuple(entry.stems)
        )
        if conversion.task_id not in ("", entry.task_id):
            raise ProtocolError(f"{subject} was answered with task {conversion.task_id}.")
        self._schedule.on_success(now=_now())
        self._on_result(entry, conversion)
        self._wakeup.set_at(self._schedule.next_due())

    def _on_result(self, entry: _PollEntry | _SinglePoll, conversion: Conversion) -> None:
        if isinstance(entry, _SinglePoll):
            entry.result = conversion
            entry.finished.set()
            return
        job = entry.job
        if self._event_bus:
            self._event_bus.publish(job.make_event(Polled, status=conversion.status))
        if not conversion.is_known_status and conversion.progress is Progress.UNFINISHED:
            self._warn_once(conversion.status)
        if self._entries.get(job.id) is not entry:  # it ended while the poll was on its way
            return
        entry.refusals = 0
        if conversion.progress is Progress.COMPLETED:
            self._complete(job, conversion)
        elif conversion.progress is Progress.FAILED:
            self._jobs.apply(job, Trigger.EXTRACTION_FAILED, outcome=_make_failure(job, conversion))
        else:
            self._on_unfinished(entry)

    def _complete(self, job: Job, conversion: Conversion) -> None:
        hint = self._deliveries.hint(job)
        if hint is not None:
            links = payloads.merge_links(conversion.links, hint.links)
            conversion = attrs.evolve(conversion, links=links)
        extraction = conversion.extraction(job.record.task_id or "")
        self._jobs.apply(
            job,
            Trigger.COMPLETED,
            outcome=extraction,
            links=extraction.stems,
            cost=extraction.cost,
            duration=extraction.duration,
            conversion_id=extraction.conversion_id or job.record.conversion_id,
        )

    def _on_unfinished(self, entry: _PollEntry) -> None:
        now = _now()
        self._queue.force_acquire(entry.job)  # it is known to run
        self._schedule.on_unfinished(entry, now=now)
        self._give_up_if_last(entry)

    def _on_error(self, entry: _PollEntry | _SinglePoll, error: Exception) -> None:
        """Handle a failed poll."""
        if isinstance(error, RateLimitError):
            self._on_throttled(entry, error)
        elif isinstance(error, MusicGPTError):
            self._on_failed_poll(entry, error)
        else:
            _log.error("A poll of task %s failed unexpectedly", entry.task_id, exc_info=error)
            failure = ProtocolError(f"A poll failed unexpectedly: {error!r}.")
            self._on_failed_poll(entry, failure)
        self._wakeup.set_at(self._schedule.next_due())

    def _on_throttled(self, entry: _PollEntry | _SinglePoll, error: RateLimitError) -> None:
        now = _now()
        held = None if self._grants is None else self._grants.held
        self._schedule.on_throttled(now=now, retry_after=error.retry_after, held=held)
        if self._grants is not None:
            self._grants.on_throttled(error.retry_after)
            self._wakeup.set()
        self._schedule.on_unfinished(entry, now=now)
        if isinstance(entry, _PollEntry):
            if self._event_bus:
                slowed = entry.job.make_event(Throttled, call="poll", retry_after=error.retry_after)
                self._event_bus.publish(slowed)
            self._give_up_if_last(entry)
        else:
            entry.result = error  # unless a later poll succeeds

    def _on_failed_poll(self, entry: _PollEntry | _SinglePoll, error: MusicGPTError) -> None:
        if isinstance(entry, _SinglePoll):
            entry.result = error
            entry.finished.set()
            return
        if self._entries.get(entry.job.id) is not entry:
            return
        now = _now()
        _log.debug("A poll of %s failed: %s", entry.job.title, error)
        if self._event_bus:
            self._event_bus.publish(entry.job.make_event(Polled, status=""))
        self._schedule.on_unfinished(entry, now=now)
        waited = None if entry.accepted is None else now - entry.accepted
        if retrying.is_permanent_poll_error(error, waited=waited):
            self._on_refused_poll(entry, error, now=now)
        self._give_up_if_last(entry)

    def _on_refused_poll(self, entry: _PollEntry, error: MusicGPTError, *, now: float) -> None:
        entry.refused_since = entry.refused_since if entry.refusals else now
        entry.refusals += 1
        duration, is_attached = now - entry.refused_since, entry.accepted is None
        if retrying.should_give_up(entry.refusals, duration=duration, attached=is_attached):
            refusal = error.copy(task_id=entry.task_id)
            self._jobs.apply(entry.job, Trigger.DETACHED, outcome=refusal)
        else:
            self._schedule.wake(entry, now=now, delay=retrying.poll_backoff(entry.refusals))

    def _end_overdue(self, now: float) -> None:
        """Poll jobs once more whose deadlines have passed: they may be finished."""
        self._next_end, overdue = math.inf, list[_PollEntry]()
        for entry in self._entries.values():
            if entry.ends_at <= now:
                overdue.append(entry)
            else:
                self._next_end = min(self._next_end, entry.ends_at)
                if not entry.is_last:
                    break  # so are all after it
        for entry in overdue:
            if entry.is_last:
                self._give_up(entry)
            else:
                entry.is_last, entry.ends_at = True, now + LAST_POLL_TIMEOUT
                self._next_end = min(self._next_end, entry.ends_at)
                self._schedule.wake(entry, now=now)

    def _give_up_if_last(self, entry: _PollEntry) -> None:
        if entry.is_last and self._entries.get(entry.job.id) is entry:
            self._give_up(entry)

    def _give_up(self, entry: _PollEntry) -> None:
        job = entry.job
        error = DeadlineError(
            f"{job.title} was not finished after {job.deadline:g} s. It goes on at MusicGPT: "
            f"session.attach({entry.task_id!r}) follows it again.",
            task_id=entry.task_id,
        )
        self._jobs.apply(job, Trigger.TIMED_OUT, outcome=error)

    def _warn_once(self, status: str) -> None:
        known = self._unknown_statuses
        if status not in known and len(known) < MAX_UNKNOWN_STATUSES:
            known.add(status)
            _log.warning("Unknown job status %.200r; treating it as unfinished.", status)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _make_failure(job: Job, conversion: Conversion) -> ExtractionFailedError:
    words = conversion.message
    said = f': "{words}"' if words else ""
    # MusicGPT's own words say better what is wrong with a track.
    advice = "" if words else "Check that the track is playable audio. "
    return ExtractionFailedError(
        f"MusicGPT could not process {job.title} ({conversion.status}{said}). "
        f"{advice}Submitting it again costs credits again.",
        task_id=job.record.task_id,
        vendor_message=words,
    )
