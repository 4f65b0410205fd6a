"""Submitting: a line of jobs, the account's slots, and the three ways that a submit can end."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from operator import itemgetter

import anyio
import anyio.abc
import attrs
import stamina

from musicgpt_async._io import sources
from musicgpt_async._io.content import Content, Digest
from musicgpt_async._io.sources import Track
from musicgpt_async._io.upload import Body
from musicgpt_async._rules import identity, matching, payloads, protocol, retrying
from musicgpt_async._rules.credit import Credit
from musicgpt_async._rules.endpoints import Endpoints
from musicgpt_async._rules.lifecycle import Change
from musicgpt_async._rules.payloads import Conversion
from musicgpt_async._rules.retrying import Verdict
from musicgpt_async._rules.slots import Slots
from musicgpt_async._work.bell import Bell
from musicgpt_async._work.desk import Desk
from musicgpt_async._work.waiting import Watcher
from musicgpt_async.errors import (
    AuthenticationError,
    ConfigurationError,
    CreditLimitError,
    EndpointNotFoundError,
    ForbiddenError,
    InsufficientCreditsError,
    JournalError,
    MusicGPTError,
    NotFoundError,
    ReleasedError,
    SourceChangedError,
    StalledError,
    SubmissionUnknownError,
)
from musicgpt_async.events import Accepted, Queued, Slowed, Uploading
from musicgpt_async.job import ExtractionJob
from musicgpt_async.models import Acceptance, JobRecord, JobState

_log = logging.getLogger(__name__)

# Refusals of the account, not of a track.
_NONE_WILL_PASS = (
    AuthenticationError,
    EndpointNotFoundError,
    ForbiddenError,
    InsufficientCreditsError,
)
# Tries to get a whole body out before the network is blamed.
DELIVERIES = 5
# Seconds that the answer to a body that is out may still take once everything is let go of.
LAST_ANSWER = 5.0
# Seconds that a submit waits for the answer to the one before it: of two that a killed process left
# without an answer, the account's listing could not tell which is which.
APART = 2.0
# Seconds that the answer may come after its job's webhook, before byId is asked whether the task
# that the webhook named is real.
WEBHOOK_GRACE = 1.0
# Seconds that a webhook is waited for where jobs have no deadline.
LONGEST_SILENCE = 3600.0
# Jobs in line at which a batch brings its next track.
SHORT_LINE = 2
# Tasks that are remembered, the newest ones: a delivery that names another job's task comes soon.
REMEMBERED_TASKS = 4096
# Seconds between the questions whether a task that a delivery named is a real one.
CONFIRMATIONS = (0.0, 1.0, 2.0, 4.0, 8.0)


class _NotDeliveredError(Exception):
    """No server can have the whole track."""

    def __init__(self, error: MusicGPTError) -> None:
        super().__init__(str(error))
        self.error = error


class _NotAcceptedError(Exception):
    """The vendor is full."""

    def __init__(self, error: MusicGPTError) -> None:
        super().__init__(str(error))
        self.error = error


@attrs.define(eq=False)
class _Entry:
    """One job on its way in."""

    job: ExtractionJob
    track: Track
    force: bool
    entered: bool
    scope: anyio.CancelScope | None = None
    bound: anyio.CancelScope | None = None
    turn: anyio.Event | None = None
    answer_due: bool = False
    without_estimate: bool = False
    alone: bool = False
    left: anyio.Event = attrs.field(factory=anyio.Event)


class Submitter:
    """Takes jobs from the line into slots, and hands over those that were accepted.

    Args:
        desk: What the rooms share.
        slots: How many jobs may be unfinished at the vendor.
        credit: How much may be spent.
        watcher: Looks after accepted jobs.
        known: Called with a job whose track the journal has already, and its record.
        stall_timeout: Seconds without the vendor taking a byte of an upload.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        slots: Slots,
        credit: Credit,
        watcher: Watcher,
        known: Callable[[ExtractionJob, JobRecord], None],
        stall_timeout: float,
    ) -> None:
        self._desk = desk
        self._url = Endpoints.of(desk.base_url).submit
        self._slots = slots
        self._credit = credit
        self._watcher = watcher
        self._known = known
        self._stall_timeout = stall_timeout
        self._line: list[tuple[int, _Entry]] = []
        self._entries: dict[str, _Entry] = {}
        self._tasks: dict[str, None] = {}
        self._alone = anyio.Semaphore(1)
        self._expected: list[tuple[ExtractionJob, SubmissionUnknownError]] = []
        self._bell = Bell()
        self._shorter = anyio.Event()

    def enqueue(
        self, job: ExtractionJob, track: Track, *, force: bool = False, entered: bool = False
    ) -> None:
        """Put a job in line.

        Args:
            job: It is queued.
            track: What to send.
            force: Whether to submit it though the journal has the same track already.
            entered: Whether it stands in the journal itself.
        """
        entry = self._entries[job.id] = _Entry(job, track, force, entered)
        self._stand_in_line(entry)

    def drop(self, job: ExtractionJob) -> None:
        """Let go of a job that has ended: what was not handed over is never sent."""
        entry = self._entries.get(job.id)
        if entry is None:
            return
        if entry.scope is None:
            self._leave(entry)
        elif not entry.answer_due:
            entry.scope.cancel()

    def occupy(self, job: ExtractionJob) -> None:
        """Count the slot of a job that was submitted elsewhere, or before."""
        if not job.holds_slot:
            job.holds_slot = True
            self._slots.occupy()

    def give_back(self, job: ExtractionJob) -> None:
        """Give a job's slot back, if it holds one."""
        if job.holds_slot:
            job.holds_slot = False
            self._slots.give_back()
            self._bell.ring()

    @property
    def tasks(self) -> Collection[str]:
        """The tasks that this session's newest submits were answered with."""
        return self._tasks.keys()

    def accept(self, job: ExtractionJob, task_id: str, conversion_id: str | None) -> None:
        """Go on with a job whose lost answer was found again."""
        self.occupy(job)
        self._accepted(job, Acceptance(task_id=task_id, conversion_id=conversion_id))
        self._watcher.wake(job)  # its webhook may have come while nobody was there

    def expect(self, job: ExtractionJob, error: SubmissionUnknownError) -> None:
        """Wait for the webhook of a job whose answer was lost; ``error`` if none comes."""
        self.occupy(job)
        self._expected.append((job, error))
        self._bell.ring()

    async def run(self) -> None:
        """Give slots to the jobs in line."""
        async with anyio.create_task_group() as turns:
            while True:
                while self._expected:
                    turns.start_soon(self._await_webhook, *self._expected.pop())
                now = anyio.current_time()
                self._dispatch(turns, now)
                await self._bell.wait(until=self._next_try(now))

    async def room_for_another(self) -> None:
        """Wait until hardly anybody stands in line."""
        while len(self._line) > SHORT_LINE:
            await self._shorter.wait()

    async def last_answers(self) -> None:
        """Wait a little for the answers to bodies that are out, so that they are remembered."""
        due = [entry for entry in self._entries.values() if entry.answer_due]
        with anyio.move_on_after(LAST_ANSWER, shield=True):
            for entry in due:
                await entry.left.wait()

    def _next_try(self, now: float) -> float | None:
        moment = self._slots.next_try()
        return moment if moment is not None and moment > now else None

    def _dispatch(self, turns: anyio.abc.TaskGroup, now: float) -> None:
        while self._line:
            _, entry = self._line[0]
            if entry.job.done():
                heapq.heappop(self._line)
            elif not self._credit.allows_another() or not self._take_slot(entry.job, now):
                break
            else:
                heapq.heappop(self._line)
                self._give_turn(entry, turns)
        if len(self._line) <= SHORT_LINE:
            self._shorter.set()
            self._shorter = anyio.Event()

    def _take_slot(self, job: ExtractionJob, now: float) -> bool:
        job.holds_slot = self._slots.take(now=now)
        return job.holds_slot

    def _give_turn(self, entry: _Entry, turns: anyio.abc.TaskGroup) -> None:
        try:
            self._credit.begin()
        except CreditLimitError as error:
            self._desk.end(entry.job, Change.FAIL, error.fresh(job=entry.job))
            return
        entry.without_estimate = True
        entry.job.advance(Change.TURN)
        if entry.turn is not None:
            entry.turn.set()
        else:
            entry.scope = anyio.CancelScope()
            turns.start_soon(self._turn, entry)

    async def _turn(self, entry: _Entry) -> None:
        acceptance: Acceptance | None = None
        assert entry.scope is not None  # noqa: S101 - for the type checker: _give_turn made it
        try:
            with entry.scope:
                acceptance = await self._admit(entry)
        except (_NotDeliveredError, MusicGPTError) as error:
            self._fail(entry, error.error if isinstance(error, _NotDeliveredError) else error)
        except Exception as error:  # noqa: BLE001 - one track's failure is never the batch's
            self._fail(entry, _unexpected(entry.job, error))
        finally:
            self._count(entry, acceptance.credit_estimate if acceptance else None)
            self._leave(entry)

    async def _admit(self, entry: _Entry) -> Acceptance | None:
        job = entry.job
        async with sources.opened(entry.track, self._desk.executor) as content:
            if found := await self._enter(entry, content):
                self.give_back(job)
                self._known(job, found)
                return None
            acceptance = await self._submit(entry, content)
        self._accepted(job, acceptance)
        return acceptance

    async def _enter(self, entry: _Entry, content: Content | None) -> JobRecord | None:
        """Write the job down before anything is sent; return the record that is there already."""
        job, location = entry.job, entry.track.location
        version = "" if content is None else content.version
        mark = identity.fingerprint(
            location if location or version else job.id,
            version,
            stems=job.stems,
            preprocessing=job.record.preprocessing,
            eco_mode=job.record.eco_mode,
        )
        if entry.entered:
            if mark != job.record.fingerprint:  # the changed track may be in the journal itself
                raise SourceChangedError(
                    f"{job.title} changed after it was put in line, and was not sent; "
                    "submit it again."
                )
            return None
        job.note(fingerprint=mark, size=None if content is None else content.size)
        found = await self._desk.ledger.enter(job, force=entry.force)
        if job.done():  # let go of while it was written down
            self._desk.ledger.save_soon(job)
        return found

    async def _submit(self, entry: _Entry, content: Content | None) -> Acceptance:
        while True:
            try:
                async for attempt in stamina.retry_context(
                    on=_NotDeliveredError, attempts=DELIVERIES, timeout=None, wait_max=20.0
                ):
                    with attempt:
                        return await self._attempt(entry, content)
            except _NotAcceptedError as refusal:
                await self._stand_aside(entry, refusal.error)

    async def _attempt(self, entry: _Entry, content: Content | None) -> Acceptance:
        job = entry.job
        if job.state is JobState.DELIVERED:  # the connection closed under the closing boundary
            await self._send_again(job)
            job.advance(Change.TURN)
        body = self._body(entry, content)
        try:
            return await self._first_word(entry, body)
        except MusicGPTError as error:
            failure = body.failure or error
        finally:
            entry.answer_due = False
            self._stand_apart_no_more(entry)
        if not isinstance(failure, MusicGPTError):
            raise failure
        verdict = retrying.submit_verdict(failure, delivered=body.delivered)
        if job.done():
            self._remember_end(job, verdict)
        match verdict:
            case Verdict.NOT_DELIVERED:
                raise _NotDeliveredError(failure)
            case Verdict.NOT_ACCEPTED:
                raise _NotAcceptedError(failure)
            case Verdict.UNKNOWN:
                self._count(entry, None)  # nobody will tell its estimate any more
                return await self._lost_answer(job, failure)
            case Verdict.REFUSED:
                raise failure

    async def _first_word(self, entry: _Entry, body: Body) -> Acceptance:
        """Return the acceptance from the answer, or from the job's own webhook if that is first."""
        found: list[Acceptance] = []
        failure: Exception | None = None
        async with anyio.create_task_group() as race:
            if self._desk.mail.expects(entry.job):
                race.start_soon(self._heed_webhook, entry.job, found, race.cancel_scope)
            try:
                found.append(await self._answer(entry, body))
            except Exception as error:  # noqa: BLE001 - raised below, outside the task group
                failure = error
            race.cancel_scope.cancel()
        if failure is not None and not found:
            raise failure
        return found[0]

    async def _answer(self, entry: _Entry, body: Body) -> Acceptance:
        """Return what the answer says.

        Raises:
            StalledError: It was not there whole in time, counted from when the body was out.
        """
        with anyio.CancelScope() as entry.bound:
            answer = await self._desk.http.send(self._url, body)
            what = f"The submit of {entry.job.title}"
            return protocol.read_acceptance(answer, now=time.time(), what=what)
        raise StalledError("The whole upload went out, and its answer did not come in time.")

    async def _heed_webhook(
        self, job: ExtractionJob, found: list[Acceptance], race: anyio.CancelScope
    ) -> None:
        acceptance = await self._named_by_webhook(job, grace=WEBHOOK_GRACE)
        if acceptance is not None:
            found.append(acceptance)
            race.cancel()

    def _remember_end(self, job: ExtractionJob, verdict: Verdict) -> None:
        """Write down how the submit of a job ended that was let go of meanwhile."""
        if verdict is not Verdict.UNKNOWN:
            job.note(sent_at=None)
            self._desk.ledger.save_soon(job)
        raise ReleasedError(f"{job.title} was let go of.")

    def _body(self, entry: _Entry, content: Content | None) -> Body:
        job = entry.job
        webhook_url = self._desk.mail.open(job)
        fields = payloads.submit_fields(
            stems=job.stems,
            preprocessing=job.record.preprocessing,
            eco_mode=job.record.eco_mode,
            audio_url=entry.track.location if content is None else "",
            webhook_url=webhook_url,
        )
        size = None if content is None else content.size
        digest = None
        if self._desk.ledger.journal is not None:
            digest = Digest(self._desk.executor)
        return Body(
            fields,
            content,
            stall_timeout=self._stall_timeout,
            hand_over=partial(self._hand_over, entry, size, digest),
            progress=partial(self._progress, job, size),
            digest=digest,
        )

    async def _hand_over(self, entry: _Entry, size: int | None, digest: Digest | None) -> None:
        """Write down that the vendor may have the track, before it can."""
        job = entry.job
        await self._stand_apart(entry)
        if job.done():
            raise ReleasedError(f"{job.title} was let go of before it was sent.")
        sha256 = None if digest is None or size is None else digest.hexdigest
        job.advance(Change.HAND_OVER, sent_at=time.time(), size=size, sha256=sha256)
        entry.answer_due = True  # before it is written: whoever lets go now waits for the outcome
        await self._desk.ledger.save(job)
        if job.done():
            raise ReleasedError(f"{job.title} was let go of before it was sent.")
        if entry.bound is not None:
            bound = retrying.answer_timeout(self._desk.http.request_timeout, size)
            entry.bound.deadline = anyio.current_time() + bound

    async def _stand_apart(self, entry: _Entry) -> None:
        """Where there is a journal, wait a little until no other submit is without its answer."""
        if self._desk.ledger.journal is not None:
            with anyio.move_on_after(min(APART, self._stall_timeout / 2)):
                await self._alone.acquire()
                entry.alone = True

    def _stand_apart_no_more(self, entry: _Entry) -> None:
        if entry.alone:
            entry.alone = False
            self._alone.release()

    async def _await_webhook(self, job: ExtractionJob, error: SubmissionUnknownError) -> None:
        try:
            self._desk.mail.open(job)
        except ConfigurationError as trouble:  # another session of this process follows the job
            self._desk.end(job, Change.RELEASE, trouble)
            return
        acceptance = await self._named_by_webhook(job)
        if job.state is not JobState.DELIVERED:  # let go of, or found in the account's listing
            return
        if acceptance is not None:
            self._accepted(job, acceptance)
        else:
            self._desk.end(job, Change.GIVE_UP, error)

    async def _named_by_webhook(
        self, job: ExtractionJob, *, grace: float = 0.0
    ) -> Acceptance | None:
        """Wait for the job's own webhook to name its task.

        Args:
            job: It was handed over.
            grace: Seconds in which the answer may still tell the task, before byId is asked.
        """
        with anyio.move_on_after(LONGEST_SILENCE if job.deadline is None else job.deadline):
            while self._desk.mail.expects(job):
                hint = await self._desk.mail.named_task(job)
                if hint is None:
                    break
                if job.task_id is not None or await self._confirms(hint, job, grace):
                    _log.info("%s was found again by its webhook: task %s", job.title, hint.task_id)
                    self._desk.mail.keep(job, hint)
                    return Acceptance(task_id=hint.task_id, conversion_id=hint.conversion_id)
        return None

    async def _confirms(self, hint: Conversion, job: ExtractionJob, grace: float) -> bool:
        try:
            await anyio.sleep(grace)
            return await self.is_real(hint.task_id, job)
        except anyio.get_cancelled_exc_class():  # the answer came: it still wakes the job
            self._desk.mail.keep(job, hint)
            raise

    async def _lost_answer(self, job: ExtractionJob, error: MusicGPTError) -> Acceptance:
        acceptance = await self._named_by_webhook(job)
        if acceptance is not None:
            return acceptance
        raise SubmissionUnknownError(
            f"{job.title} was sent whole and no answer told what became of it: {error} "
            f"{self._desk.ledger.way_out(job)}",
            status=error.status,
            vendor_message=error.vendor_message,
            job=job,
        ) from error

    async def is_real(self, task_id: str, job: ExtractionJob) -> bool:
        """Ask whether the vendor knows a task that a delivery named, and it is no other job's."""
        if task_id in self._tasks or await self._is_anothers(task_id, job):
            return False
        for pause in CONFIRMATIONS:
            await anyio.sleep(pause)
            try:
                conversion = await self._watcher.ask(task_id, job.stems)
            except NotFoundError:
                continue
            except MusicGPTError:
                return True  # the look failed, not the task
            return matching.is_of_job(job.record, conversion) is not False
        return False

    async def _is_anothers(self, task_id: str, job: ExtractionJob) -> bool:
        journal = self._desk.ledger.journal
        if journal is None:
            return False
        try:
            found = await journal.find(task_id)
        except JournalError as error:  # rather unknown than another job's stems
            _log.error("Whose task %s is was not found out: %s", task_id, error)
            return True
        return found is not None and found.id != job.record.id

    def _accepted(self, job: ExtractionJob, acceptance: Acceptance) -> None:
        facts = {**attrs.asdict(acceptance), "accepted_at": time.time()}
        self._tasks[acceptance.task_id] = None
        if len(self._tasks) > REMEMBERED_TASKS:
            del self._tasks[next(iter(self._tasks))]
        if job.done():  # it was let go of while the answer was on its way
            job.note(**facts)
            self._desk.ledger.save_soon(job)
            return
        job.advance(Change.ACCEPT, **facts)
        self._desk.ledger.save_soon(job)
        self._slots.accepted(waiting=bool(self._line))
        self._bell.ring()
        _log.debug("%s was accepted as task %s", job.title, acceptance.task_id)
        if self._desk.feed:
            self._desk.feed.publish(
                job.event(Accepted, eta=job.eta, credit_estimate=job.credit_estimate)
            )
        self._watcher.watch(job, age=0.0)

    async def _stand_aside(self, entry: _Entry, error: MusicGPTError) -> None:
        """Give the slot back after a 429 or 503 and wait for another, at the same place."""
        job, feed = entry.job, self._desk.feed
        await self._send_again(job)
        if job.done():  # it was let go of while that was written down
            raise ReleasedError(f"{job.title} was let go of.")
        self._slots.refused(
            now=anyio.current_time(), retry_after=error.retry_after, full=error.status == 429
        )
        self._count(entry, None)
        self.give_back(job)
        if feed:
            feed.publish(job.event(Slowed, call="submit", retry_after=error.retry_after))
        entry.turn = anyio.Event()
        self._stand_in_line(entry)
        await entry.turn.wait()

    async def _send_again(self, job: ExtractionJob) -> None:
        """Write down that the vendor has not got the track after all."""
        job.advance(Change.SEND_AGAIN, sent_at=None)
        await self._desk.ledger.save(job)

    def _stand_in_line(self, entry: _Entry) -> None:
        heapq.heappush(self._line, (entry.job.place, entry))
        if self._desk.feed:
            self._desk.feed.publish(entry.job.event(Queued))
        self._bell.ring()

    def _fail(self, entry: _Entry, error: MusicGPTError) -> None:
        job = entry.job
        if job.done():
            return
        unknown = isinstance(error, SubmissionUnknownError)
        self._desk.end(job, Change.GIVE_UP if unknown else Change.FAIL, error.fresh(job=job))
        if isinstance(error, _NONE_WILL_PASS):
            self._leave_unsent(error)

    def _leave_unsent(self, error: MusicGPTError) -> None:
        """End whatever stands in line: the account would be refused again."""
        out_of_credit = isinstance(error, InsufficientCreditsError)
        for _, entry in sorted(self._line, key=itemgetter(0)):
            if not entry.job.done():
                kind = CreditLimitError if out_of_credit else type(error)
                refusal = kind(
                    f"{entry.job.title} was not submitted, since a track before it was refused "
                    f"with status {error.status}. {error.hint}",
                    status=error.status,
                    vendor_message=error.vendor_message,
                    job=entry.job,
                )
                self._desk.end(entry.job, Change.FAIL, refusal)

    def _count(self, entry: _Entry, estimate: float | None) -> None:
        """Count what a turn is estimated to cost, once."""
        if entry.without_estimate:
            entry.without_estimate = False
            self._credit.end(estimate)

    def _leave(self, entry: _Entry) -> None:
        if self._entries.get(entry.job.id) is entry:  # not a later one of the same job
            del self._entries[entry.job.id]
        entry.left.set()
        self._bell.ring()

    def _progress(self, job: ExtractionJob, total: int | None, sent: int) -> None:
        if self._desk.feed:
            self._desk.feed.publish(job.event(Uploading, sent=sent, total=total))


def _unexpected(job: ExtractionJob, error: Exception) -> MusicGPTError:
    _log.error("Submitting %s failed unexpectedly", job.title, exc_info=error)
    words = f"Submitting {job.title} failed unexpectedly: {error!r}."
    if job.state is JobState.DELIVERED:  # it may be running and paid for
        return SubmissionUnknownError(f"{words} It may have been accepted all the same.", job=job)
    return MusicGPTError(words, job=job)
