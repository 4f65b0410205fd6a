"""Waiting: one schedule of looks for all jobs of a session."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection

import anyio
import attrs

from musicgpt_async._rules import payloads, protocol, retrying
from musicgpt_async._rules.endpoints import Endpoints
from musicgpt_async._rules.lifecycle import Change
from musicgpt_async._rules.payloads import Conversion, Progress
from musicgpt_async._rules.polling import Schedule
from musicgpt_async._rules.protocol import Answer
from musicgpt_async._work.bell import Bell
from musicgpt_async._work.desk import Desk
from musicgpt_async.errors import (
    DeadlineError,
    ExtractionFailedError,
    MusicGPTError,
    ProtocolError,
    RateLimitError,
)
from musicgpt_async.events import Looked, Slowed
from musicgpt_async.job import ExtractionJob
from musicgpt_async.models import JobState

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class _Watch:
    """One entry of the schedule: a job that is waited for."""

    job: ExtractionJob
    accepted: float | None
    expiry: asyncio.TimerHandle | None = None
    refusals: int = 0
    refused_since: float = 0.0

    @property
    def task_id(self) -> str:
        return self.job.task_id or ""


@attrs.define(eq=False)
class _Question:
    """One entry of the schedule: a task that somebody asks after once."""

    task_id: str
    stems: Collection[str]
    answered: anyio.Event = attrs.field(factory=anyio.Event)
    answer: Conversion | MusicGPTError | None = None


class Watcher:
    """Looks after jobs until they end, within the account's calls a minute.

    Args:
        desk: What the rooms share.
        schedule: When to look next; the one place that decides it.
    """

    def __init__(self, desk: Desk, schedule: Schedule[_Watch | _Question]) -> None:
        self._desk = desk
        self._feed = desk.feed
        self._url = Endpoints.of(desk.base_url).status
        self._schedule = schedule
        self._watches: dict[str, _Watch] = {}
        self._strange_words: set[str] = set()
        self._bell = Bell()

    def watch(self, job: ExtractionJob, *, age: float | None) -> None:
        """Look after a job from now on.

        Args:
            job: It has a task_id.
            age: Seconds since it was accepted, ``None`` where nobody knows.
        """
        now = _now()
        watch = _Watch(job, None if age is None else now - age)
        if job.deadline is not None:
            loop = asyncio.get_running_loop()
            watch.expiry = loop.call_later(job.deadline, self._expire, job)
        self._watches[job.id] = watch
        token = job.record.token if self._desk.mail.expects(job) else None
        self._schedule.add(watch, now=now, eta=job.eta, age=age, webhook=token)
        if self._desk.mail.hint(job) is not None:
            self.delivered(job)
        self._bell.ring()

    def wake(self, job: ExtractionJob) -> None:
        """Look after a job at once: it may have ended while nobody looked."""
        watch = self._watches.get(job.id)
        if watch is not None:
            self._schedule.wake(watch, now=_now())
            self._bell.ring()

    def delivered(self, job: ExtractionJob) -> None:
        """Look after a job at once: a delivery came for it."""
        watch = self._watches.get(job.id)
        if watch is not None:
            self._schedule.delivered(watch, now=_now())
            self._bell.ring()

    def forget(self, job: ExtractionJob) -> None:
        """Stop looking after a job; the schedule learns from one that has finished."""
        watch = self._watches.pop(job.id, None)
        if watch is None:
            return
        if watch.expiry is not None:
            watch.expiry.cancel()
        if job.state in (JobState.COMPLETED, JobState.FAILED):
            self._schedule.finished(watch, now=_now())
            self._desk.mail.report_silence(now=_now())
        else:
            self._schedule.forget(watch)

    async def ask(self, task_id: str, stems: Collection[str]) -> Conversion:
        """Ask after a task once, within the same budget.

        Raises:
            MusicGPTError: The look failed.
        """
        question = _Question(task_id, stems)
        now = _now()
        self._schedule.add(question, now=now, eta=None, age=None)
        self._schedule.wake(question, now=now)
        self._bell.ring()
        try:
            await question.answered.wait()
        finally:
            self._schedule.forget(question)
        if isinstance(question.answer, Conversion):
            return question.answer
        raise question.answer or ProtocolError("The look was broken off.")

    async def run(self) -> None:
        """Make the looks as they fall due."""
        async with anyio.create_task_group() as looks:
            while True:
                for entry in self._schedule.due(_now()):
                    looks.start_soon(self._look, entry)
                await self._bell.wait(until=self._schedule.next_due())

    async def _look(self, entry: _Watch | _Question) -> None:
        try:
            answer = await self._desk.http.ask(self._url, protocol.look_query(entry.task_id))
            conversion = _of_task(entry, answer)
            self._schedule.answered(now=_now())
        except RateLimitError as error:
            self._slow_down(entry, error)
        except MusicGPTError as error:
            self._failed(entry, error)
        except Exception as error:  # noqa: BLE001 - one look's failure is never the session's
            _log.error("A look at task %s failed unexpectedly", entry.task_id, exc_info=error)
            self._failed(entry, ProtocolError(f"A look failed unexpectedly: {error!r}."))
        else:
            self._saw(entry, conversion)
        self._bell.set(self._schedule.next_due())

    def _slow_down(self, entry: _Watch | _Question, error: RateLimitError) -> None:
        now = _now()
        self._schedule.throttled(now=now, retry_after=error.retry_after)
        self._schedule.pending(entry, now=now)
        if isinstance(entry, _Watch) and self._feed:
            self._feed.publish(entry.job.event(Slowed, call="look", retry_after=error.retry_after))

    def _failed(self, entry: _Watch | _Question, error: MusicGPTError) -> None:
        """Go on after a failed look: it is never a failed job."""
        now = _now()
        if isinstance(entry, _Question):
            entry.answer = error
            entry.answered.set()
            return
        if entry.job.done():
            return
        _log.debug("A look at %s failed: %s", entry.job.title, error)
        self._publish_look(entry, "")
        self._schedule.pending(entry, now=now)
        waited = None if entry.accepted is None else now - entry.accepted
        if not retrying.look_is_refused(error, waited=waited):
            return
        entry.refused_since = entry.refused_since if entry.refusals else now
        entry.refusals += 1
        lasted = now - entry.refused_since
        if retrying.gives_up(entry.refusals, lasted=lasted, attached=waited is None):
            refusal = error.fresh(task_id=entry.task_id, job=entry.job)
            self._desk.end(entry.job, Change.RELEASE, refusal)
        else:
            self._schedule.wake(entry, now=now, delay=retrying.pause_after(entry.refusals))

    def _saw(self, entry: _Watch | _Question, conversion: Conversion) -> None:
        if isinstance(entry, _Question):
            entry.answer = conversion
            entry.answered.set()
            return
        entry.refusals = 0
        job = entry.job
        self._publish_look(entry, conversion.status)
        if not conversion.known and conversion.progress is Progress.UNFINISHED:
            self._say_once(conversion.status)
        if job.done():
            return
        if conversion.progress is Progress.COMPLETED:
            self._complete(job, conversion)
        elif conversion.progress is Progress.FAILED:
            self._desk.end(job, Change.FAIL, _failure(job, conversion))
        else:
            self._schedule.pending(entry, now=_now())

    def _complete(self, job: ExtractionJob, conversion: Conversion) -> None:
        hint = self._desk.mail.hint(job)
        if hint is not None:
            links = payloads.with_hinted_links(conversion.links, hint.links)
            conversion = attrs.evolve(conversion, links=links)
        extraction = conversion.extraction(job.task_id or "")
        self._desk.end(
            job,
            Change.COMPLETE,
            extraction,
            links=extraction.stems,
            cost=extraction.cost,
            duration=extraction.duration,
            conversion_id=extraction.conversion_id or job.conversion_id,
        )

    def _expire(self, job: ExtractionJob) -> None:
        if job.done():
            return
        error = DeadlineError(
            f"{job.title} was not finished after {job.deadline:g} s. It goes on at the vendor: "
            f"session.attach({job.task_id!r}) takes it up again.",
            task_id=job.task_id,
            job=job,
        )
        self._desk.end(job, Change.EXPIRE, error)

    def _publish_look(self, watch: _Watch, status: str) -> None:
        if self._feed:
            self._feed.publish(watch.job.event(Looked, status=status))

    def _say_once(self, word: str) -> None:
        if word not in self._strange_words:
            self._strange_words.add(word)
            _log.warning("The vendor has a new word for a job: %r; it counts as unfinished.", word)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _of_task(entry: _Watch | _Question, answer: Answer) -> Conversion:
    stems = entry.job.stems if isinstance(entry, _Watch) else entry.stems
    what = f"The look at task {entry.task_id}"
    conversion = protocol.read_conversion(
        answer, now=time.time(), what=what, requested=tuple(stems)
    )
    if conversion.task_id not in ("", entry.task_id):
        raise ProtocolError(
            f"The look at task {entry.task_id} was answered with task {conversion.task_id}."
        )
    return conversion


def _failure(job: ExtractionJob, conversion: Conversion) -> ExtractionFailedError:
    words = conversion.message
    said = f': "{words}"' if words else ""
    return ExtractionFailedError(
        f"The vendor gave {job.title} up ({conversion.status}{said}). "
        "Check that the track is playable audio; submitting it again costs credits again.",
        task_id=job.task_id,
        vendor_message=words,
        job=job,
    )
