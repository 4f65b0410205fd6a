"""Recovery: submits whose track went out and whose response never came.

Such a submit may be running and paid for, so it is never sent again automatically. Three things can
still name its task: its own webhook, which is confirmed by a poll before it is believed; the
account's listing, compared with all that the journal knows; and the user. A job
that none of them names by its deadline ends as unknown. It holds no slot meanwhile, because it is
not known whether it runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

import anyio
import attrs

from musicgpt_async._engine.context import Context
from musicgpt_async._engine.deliveries import Deliveries
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.poller import Poller
from musicgpt_async._engine.wakeup import Wakeup
from musicgpt_async._rules import protocol, reconciliation, records, retrying
from musicgpt_async._rules.lifecycle import Effect, Trigger
from musicgpt_async._rules.payloads import Conversion
from musicgpt_async.errors import (
    JournalError,
    MusicGPTError,
    NotFoundError,
    SubmissionUnknownError,
)
from musicgpt_async.models import JobRecord, JobState

_log = logging.getLogger(__name__)

MAX_PAGES = 50  # pages of the listing that are read
SETTLE_DELAY = 30.0  # seconds after delivery until the listing surely has the task
WEBHOOK_TIMEOUT = 3600.0  # seconds that a webhook is waited for if jobs have no deadline
HANDED_OVER_INTERVAL = 1.0  # seconds between checks whether a former owner learned a task
RESPONSE_GRACE = 1.0  # seconds that a response may come after its job's webhook
MAX_MISSES = 5  # polls of a task that a delivery named and MusicGPT does not know yet
MAX_CONFIRMATIONS = 4  # tasks of one job that are confirmed at once


@attrs.define(eq=False)
class _Unacknowledged:
    """A job without a task, and what may still name it.

    Attributes:
        job: The job.
        error: How it ends if nothing does.
        since: When the search began, on the loop's clock.
        ends_at: When nothing is waited for any more, on the loop's clock.
        awaits_webhook: Whether its webhook may still come.
        in_listing: Whether the account's listing is searched for it.
        is_resumed: Whether another process sent it.
        confirming: Tasks that are being confirmed.
        rejected: Tasks that were found not to be its own.
    """

    job: Job
    error: MusicGPTError | None
    since: float
    ends_at: float
    awaits_webhook: bool
    in_listing: bool
    is_resumed: bool = False
    confirming: set[str] = attrs.field(factory=set)
    rejected: set[str] = attrs.field(factory=set)

    @property
    def is_open(self) -> bool:
        return self.job.record.state is JobState.UNACKNOWLEDGED and not self.job.has_ended

    @property
    def waits_for_webhook(self) -> bool:
        return self.is_open and self.awaits_webhook and not self.job.is_response_due

    @property
    def is_searchable(self) -> bool:
        return self.is_open and not self.confirming

    @property
    def sent_at(self) -> float:
        return self.job.record.sent_at or 0.0


class Recovery:
    """Finds the tasks of submits whose responses were lost.

    Args:
        context: What the parts share.
        poller: Confirms tasks.
        deliveries: Receives webhooks.
    """

    def __init__(self, context: Context, *, poller: Poller, deliveries: Deliveries) -> None:
        self._context = context
        self._jobs = context.jobs
        self._poller = poller
        self._deliveries = deliveries
        self._open: list[_Unacknowledged] = []
        self._wakeup = Wakeup()

    def await_webhook(self, job: Job, error: MusicGPTError) -> None:
        """Wait for the webhook of a submit whose response was lost just now, if one can come."""
        unknown = SubmissionUnknownError(
            f"{job.title} was sent whole and its response was lost: {error} "
            f"{self._recovery_advice(job)}",
            status=error.status,
            vendor_message=error.vendor_message,
        )
        unknown.__cause__ = error
        if self._deliveries.is_subscribed(job):
            self._jobs.apply(job, Trigger.RESPONSE_MISSING)
            self._add(job, unknown, in_listing=False)
        else:
            self._jobs.apply(job, Trigger.RESPONSE_LOST, outcome=unknown)

    def search(self, job: Job) -> None:
        """Search for the task of a submit that an earlier process made."""
        if job.record.token is not None:
            self._deliveries.subscribe(job)
        self._add(job, None, in_listing=True).is_resumed = True

    def on_change(self, job: Job, effects: Effect) -> None:
        """Confirm what a delivery named; forget what has ended or was found."""
        if Effect.CHECK_NOW in effects and job.is_response_due:
            self._add(job, None, in_listing=False)  # its webhook is faster than its response
        elif self._open and effects & (Effect.CHECK_NOW | Effect.END | Effect.START_POLLING):
            self._wakeup.set()

    async def run(self) -> None:
        """Search until the session ends."""
        listings, next_listing = 0, 0.0
        while True:
            self._open = [each for each in self._open if each.is_open]
            now = anyio.current_time()
            await self._take_handed_over()
            for each in self._open:
                self._confirm_hint(each)
                if each.waits_for_webhook and each.ends_at <= now:
                    each.awaits_webhook = False
                    self._give_up_unless_searched(each)
            if not self._searched():
                listings, next_listing = 0, 0.0
            elif next_listing <= now:
                listings += 1
                await self._search_listing(self._searched())
                next_listing = anyio.current_time() + retrying.search_backoff(listings)
            moments = [each.ends_at for each in self._open if each.waits_for_webhook]
            if self._searched():
                moments.append(next_listing)
            if self._resumed():
                moments.append(anyio.current_time() + HANDED_OVER_INTERVAL)
            await self._wakeup.wait(until=min(moments, default=None))

    def _resumed(self) -> list[_Unacknowledged]:
        """Return the jobs that began in another process, which may learn their tasks yet."""
        has_journal = self._context.store.journal is not None
        return [each for each in self._open if has_journal and each.is_resumed]

    async def _take_handed_over(self) -> None:
        """Take the tasks that former owners of these jobs have learned since."""
        resumed = {each.job.record.id: each for each in self._resumed()}
        found = await self._context.store.find_handed_over(resumed)
        for record_id, task_id in found.items():
            each = resumed[record_id]
            known = {each.job.record.candidate_task_id, *each.rejected}
            if records.is_task_id(task_id) and task_id not in known:
                self._jobs.update(each.job, candidate_task_id=task_id)

    def _searched(self) -> list[_Unacknowledged]:
        return [each for each in self._open if each.in_listing and each.is_searchable]

    def _add(self, job: Job, error: MusicGPTError | None, *, in_listing: bool) -> _Unacknowledged:
        now = anyio.current_time()
        seconds = WEBHOOK_TIMEOUT if job.deadline is None else job.deadline
        each = next((each for each in self._open if each.job is job), None)
        if each is None:
            each = _Unacknowledged(job, error, now, 0.0, awaits_webhook=False, in_listing=False)
            self._open.append(each)
        each.error, each.ends_at, each.in_listing = error or each.error, now + seconds, in_listing
        each.awaits_webhook = self._deliveries.is_subscribed(job)
        self._wakeup.set()
        return each

    def _confirm_hint(self, each: _Unacknowledged) -> None:
        task_id = each.job.record.candidate_task_id
        if task_id is None or task_id in each.rejected | each.confirming:
            return
        if len(each.confirming) < MAX_CONFIRMATIONS:
            each.confirming.add(task_id)
            on_failure = partial(self._on_confirm_failure, each, task_id)
            self._context.supervisor.spawn(self._confirm, each, task_id, on_failure=on_failure)

    async def _confirm(self, each: _Unacknowledged, task_id: str) -> None:
        """Adopt the task that a delivery named, if it is the job's."""
        if each.job.is_response_due:
            await anyio.sleep(RESPONSE_GRACE)
        is_its_own = False
        with anyio.CancelScope(deadline=each.ends_at):
            is_its_own = await self._is_task_of(task_id, each)
        if is_its_own:
            conversion_id = self._deliveries.conversion_id(each.job, task_id)
            self._adopt_task(each, task_id, conversion_id, "webhook")
        self._end_confirmation(each, task_id)

    def _on_confirm_failure(self, each: _Unacknowledged, task_id: str, error: Exception) -> None:
        _log.error("The task of %s could not be confirmed: %s", each.job.title, error)
        self._end_confirmation(each, task_id)

    def _end_confirmation(self, each: _Unacknowledged, task_id: str) -> None:
        each.confirming.discard(task_id)
        each.rejected.add(task_id)
        self._give_up_unless_searched(each)
        self._wakeup.set()

    async def _is_task_of(self, task_id: str, each: _Unacknowledged) -> bool:
        """Return whether MusicGPT knows a task that a delivery named, and it is no other job's."""
        record, misses, polls = each.job.record, 0, 0
        if self._poller.is_polled(task_id) or await self._belongs_to_other_job(task_id, each.job):
            return False
        while each.is_open:
            try:
                conversion = await self._poller.poll_once(task_id, record.stems)
                return reconciliation.is_of_job(record, conversion) is not False
            except NotFoundError:
                misses += 1
                if misses == MAX_MISSES:
                    break
            except MusicGPTError as error:  # it says nothing of the task
                _log.debug("A poll of task %s failed: %s", task_id, error)
            polls += 1
            await anyio.sleep(retrying.search_backoff(polls))
        return False

    async def _belongs_to_other_job(self, task_id: str, job: Job) -> bool:
        journal = self._context.store.journal
        if journal is None:
            return False
        try:
            found = await journal._find(task_id)
        except JournalError as error:  # unknown is better than another job's stems
            _log.error("Could not look up the owner of task %s: %s", task_id, error)
            return True
        return found is not None and found.id != job.record.id

    def _adopt_task(
        self, each: _Unacknowledged, task_id: str, conversion_id: str | None, origin: str
    ) -> None:
        job = each.job
        if not each.is_open:
            return
        _log.info("%s was found again by its %s: task %s", job.title, origin, task_id)
        self._jobs.apply(
            job,
            Trigger.ACCEPTED,
            task_id=task_id,
            conversion_id=conversion_id,
            accepted_at=time.time(),
        )
        if self._deliveries.is_subscribed(job):  # one may have arrived before
            self._jobs.apply(job, Trigger.WEBHOOK_RECEIVED)

    async def _search_listing(self, searched: Sequence[_Unacknowledged]) -> None:
        """Search the listing for all lost tasks together."""
        try:
            listing = await self._listing(min(each.sent_at for each in searched))
            await self._match(searched, listing, read_at=time.time())
        except MusicGPTError as error:
            _log.info("The account's conversions could not be listed: %s", error)
            for each in searched:
                duration = anyio.current_time() - each.since
                if retrying.is_permanent_poll_error(error, waited=None) or duration > SETTLE_DELAY:
                    self._end_search(each, None)

    async def _match(
        self,
        searched: Sequence[_Unacknowledged],
        listing: Sequence[Conversion],
        *,
        read_at: float,
    ) -> None:
        """Adopt tasks that the listing identifies; give up jobs that it should show by now."""
        competing, acknowledged = await self._other_submissions(searched, listing, until=read_at)
        claimed = {record.task_id or "" for record in acknowledged} | self._poller.recent_task_ids()
        lost = [*(each.job.record for each in searched), *competing]
        found = reconciliation.reconcile(lost, listing, claimed=claimed, acknowledged=acknowledged)
        is_settled = not any(each.confirming for each in self._open)
        for each in searched:
            task = found.get(each.job.record.id)
            if task is not None:
                self._adopt_task(each, task.task_id, task.conversion_id, "entry in the listing")
            elif is_settled and read_at - each.sent_at > SETTLE_DELAY:
                fitting = reconciliation.candidates(each.job.record, listing, claimed=claimed)
                self._end_search(each, [task.task_id for task in fitting])

    def _end_search(self, each: _Unacknowledged, candidates: Sequence[str] | None) -> None:
        each.in_listing = False
        each.error = self._make_unknown_error(each.job, candidates)
        self._give_up_unless_searched(each)
        if each.is_open:  # it is not known whether it runs: free the slot of a dead owner
            self._jobs.apply(each.job, Trigger.RESPONSE_MISSING)

    def _give_up_unless_searched(self, each: _Unacknowledged) -> None:
        if each.job.is_response_due or each.confirming or each.awaits_webhook or each.in_listing:
            return
        if each.is_open:
            outcome = each.error or self._make_unknown_error(each.job, None)
            self._jobs.apply(each.job, Trigger.RESPONSE_LOST, outcome=outcome)

    def _make_unknown_error(
        self, job: Job, candidates: Sequence[str] | None
    ) -> SubmissionUnknownError:
        """Return the error of a lost response; `candidates` are listed tasks that it could be."""
        sent = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.record.sent_at))
        seen = ""
        if candidates is not None:
            tasks = ", ".join(candidates) or "none"
            seen = f"The account's listing shows what it could be: {tasks}. "
        return SubmissionUnknownError(
            f"{job.title} was sent whole at {sent} and no response was recorded. "
            f"{self._recovery_advice(job, seen)}"
        )

    def _recovery_advice(self, job: Job, seen: str = "") -> str:
        """Return what the user of such a job can do, and what was seen of it."""
        follow = "session.attach(task_id)"
        if self._context.store.journal is not None:
            follow = f"await session.bind({job.record.id!r}, task_id)"
        return (
            "It may be running and paid for, so it is not sent again by itself. "
            f"{seen}Look for it in the MusicGPT dashboard and follow it with {follow}, or submit "
            "it again with force=True if it is not there."
        )

    async def _listing(self, since: float) -> list[Conversion]:
        """Return the account's conversions from then on.

        Raises:
            MusicGPTError: MusicGPT has no listing, or did not give it.
        """
        url, found = self._context.endpoints.listing, list[Conversion]()
        after: str | None = None
        for _ in range(MAX_PAGES):
            query = protocol.listing_query(
                since - reconciliation.MAX_CLOCK_SKEW,
                time.time() + reconciliation.MAX_CREATION_DELAY,
                after=after,
            )
            response = await self._context.http.get(url, query)
            page, after = protocol.parse_listing(response, now=time.time(), subject="The listing")
            found += page
            if after is None:
                break
        return found

    async def _other_submissions(
        self, searched: Sequence[_Unacknowledged], listing: Sequence[Conversion], *, until: float
    ) -> tuple[list[JobRecord], list[JobRecord]]:
        """Return the other submits with an entry: those that may have one, and those that have.

        A listing shows the tasks of submits whose responses are still on their way as well. Those
        are in the journal since before they were delivered: it is read after the listing.
        """
        own_ids, listed = (
            {each.job.record.id for each in searched},
            {each.task_id for each in listing},
        )
        competing, acknowledged = list[JobRecord](), list[JobRecord]()
        async for record in self._records():
            if record.task_id is not None:
                if record.task_id in listed:
                    acknowledged.append(record)
            elif (
                record.id not in own_ids
                and records.is_unacknowledged(record)
                and (record.sent_at or 0.0) <= until
            ):
                competing.append(record)
        return competing, acknowledged

    async def _records(self) -> AsyncIterator[JobRecord]:
        if self._context.store.journal is not None:
            async for record in self._context.store.journal.records():
                yield record
