"""One run of a session: its output, its end and its exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

from musicgpt_async import (
    APIError,
    AuthenticationError,
    ConfigurationError,
    CreditLimitError,
    EndpointNotFoundError,
    ForbiddenError,
    InsufficientCreditsError,
    Journal,
    Limits,
    MusicGPTError,
    MusicGPTSession,
    Outcome,
    WebhookReceiver,
)
from musicgpt_async._io.api_key import (
    KEY_FILE_VARIABLE,
    KEY_VARIABLE,
    KEYRING_SERVICE,
    KEYRING_USER,
    find_key,
)
from musicgpt_async._rules import plans
from musicgpt_async._rules.records import was_delivered
from musicgpt_async.cli import output, streams
from musicgpt_async.cli.display import make_screen
from musicgpt_async.cli.interrupts import Interrupts
from musicgpt_async.cli.messages import for_shell
from musicgpt_async.cli.namesakes import Namesakes
from musicgpt_async.cli.poll_usage import PollUsage
from musicgpt_async.cli.progress import ProgressModel
from musicgpt_async.cli.screen import Totals
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.text import count, credit, plain, span
from musicgpt_async.cli.usage import UsageError
from musicgpt_async.events import Accepted, Event
from musicgpt_async.journal import Lease

LEASE_SECONDS = 10.0  # seconds after which another process takes over the jobs of a killed one

# Errors that every further track would end in, too.
FATAL_ERRORS = (
    AuthenticationError,
    CreditLimitError,
    EndpointNotFoundError,
    ForbiddenError,
    InsufficientCreditsError,
)

# What MusicGPT says to a wrong key (MusicGPT docs, errors).
KEY_ERRORS = (AuthenticationError, ForbiddenError)

Outcomes = Callable[[MusicGPTSession, "Run"], AsyncGenerator[Outcome, None]]


class Run:
    """One session from its opening to its summary.

    Args:
        settings: The command's options.
        total: Number of tracks, if known.

    Attributes:
        summary: The sum of the outcomes so far.
        should_stop: Whether further tracks would be refused too.
    """

    def __init__(self, settings: Settings, *, total: int = 0) -> None:
        self.summary: output.Summary = output.Summary(total=total, began=time.time())
        self.should_stop: bool = False
        self._settings = settings
        self._interrupts = Interrupts()
        self._namesakes = Namesakes()
        self._progress = ProgressModel(find_source=self._find_source)
        self._poll_usage = PollUsage()
        self._rejection: APIError | None = None  # of the key
        self._last_reason = ""  # of the track that failed last
        self._session: MusicGPTSession | None = None
        self._screen = make_screen(
            self._progress,
            self._totals,
            self._namesakes,
            quiet=settings.quiet,
            shares_terminal=settings.json and sys.stdout.isatty(),
        )
        self._journal: Journal | None = None
        self._failure: Exception | None = None

    async def execute(self, outcomes: Outcomes) -> int:
        """Process the outcomes, report them, and return the exit code.

        Raises:
            UsageError: The run could not start.
        """
        with self._interrupts.listening():
            async with AsyncExitStack() as stack:
                session = self._session = await self._open(stack)
                async with self._screen.shown(verbose=self._settings.verbose):
                    await self._work(session, outcomes)
                    self._print_summary(session)
        return self._exit_code()

    @property
    def has_journal(self) -> bool:
        """Whether the run is remembered in a journal."""
        return self._journal is not None

    def say(self, text: str, style: str = "") -> None:
        """Show a line unless the run is quiet."""
        if not self._settings.quiet:
            self._screen.say(text, style)

    async def _open(self, stack: AsyncExitStack) -> MusicGPTSession:
        settings = self._settings
        try:
            api_key = settings.api_key or await anyio.to_thread.run_sync(_find_key)
            receiver = WebhookReceiver(settings.webhook) if settings.webhook else None
            await anyio.to_thread.run_sync(make_directory, settings.out)
            self._journal = await self._open_journal(stack)
            session = MusicGPTSession(
                api_key,
                base_url=settings.base_url,
                limits=make_limits(settings.known_plan, settings.jobs),
                webhooks=receiver,
                journal=self._journal,
                deadline=settings.deadline,
                max_credits=settings.max_credits,
                layout=settings.layout,
            )
            if receiver is not None:
                await stack.enter_async_context(receiver.serve(*settings.listen))
            await stack.enter_async_context(session)
            await self._report_other_owners()
        except MusicGPTError as error:
            raise UsageError(error.message) from error
        return session

    async def _open_journal(self, stack: AsyncExitStack) -> Journal | None:
        if not self._settings.keeps_journal:
            return None
        place = self._settings.journal_place
        try:
            journal = Journal(place, site=self._settings.site, lease=LEASE_SECONDS)
            return await stack.enter_async_context(journal)
        except ConfigurationError as error:
            if self._settings.shared_journal is not None:
                raise
            self._screen.say(f"This run keeps no journal: {plain(error.message)}", "yellow")
            return None

    async def _report_other_owners(self) -> None:
        if self._settings.shared_journal is not None:  # others are expected there
            return
        if number := len(await self.held_by_others()):
            self.say(
                f"Another process works on {count(number, 'track')} of this journal; "
                f"if it has died, this run resumes them within {LEASE_SECONDS:g} s."
            )

    async def held_by_others(self) -> dict[str, Lease]:
        """Return the jobs of the journal that another process holds, or held until it died."""
        if self._journal is None:
            return {}
        owners = await self._journal._owners()
        return {id_: lease for id_, lease in owners.items() if lease.is_live and not lease.is_own}

    async def _work(self, session: MusicGPTSession, outcomes: Outcomes) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_events, session.events())
            with anyio.CancelScope() as scope:
                tasks.start_soon(self._cancel_on_interrupt, scope)
                await self._collect_outcomes(session, outcomes)
            with anyio.CancelScope(shield=True):
                is_over = self._interrupts.first is None and self._failure is None
                await session.aclose(drain=is_over)
            tasks.cancel_scope.cancel()

    async def _cancel_on_interrupt(self, scope: anyio.CancelScope) -> None:
        await self._interrupts.wait()
        self._screen.say("Stopping. Press Ctrl-C again to quit immediately.")
        scope.cancel()

    async def _collect_outcomes(self, session: MusicGPTSession, outcomes: Outcomes) -> None:
        try:
            async with aclosing(outcomes(session, self)) as each:
                async for outcome in each:
                    await self._on_outcome(outcome)
        except (MusicGPTError, UsageError, streams.OutputError) as error:
            self._failure = error

    async def _on_outcome(self, outcome: Outcome) -> None:
        self.summary.add(outcome)
        self._say_outcome(outcome)
        self.should_stop = self.should_stop or isinstance(outcome.error, FATAL_ERRORS)
        if self._settings.json:
            await streams.run_in_thread(partial(streams.write_result, output.as_json(outcome)))

    def _say_outcome(self, outcome: Outcome) -> None:
        if isinstance(outcome.error, KEY_ERRORS) and self._has_nothing:
            self._rejection = self._rejection or outcome.error  # said once, at the end
            return
        title, source = output.title(outcome), output.source_of(outcome)
        self._namesakes.add(title, source)
        line = output.as_line(outcome, self._namesakes.name(title, source))
        if outcome.error is None:
            self._last_reason = ""
            self.say(line, "green")
            return
        reason = output.reason_of(outcome)
        if reason == self._last_reason:
            state = output.state_of_failure(outcome)
            line = f"{state:<7} {self._namesakes.name(title, source)} (same reason)"
        self._last_reason = reason
        # The summary says in one line what stopped a thousand tracks.
        is_reported = self.should_stop and isinstance(outcome.error, FATAL_ERRORS)
        if not is_reported or self._settings.quiet:
            self._screen.say(line, "red")

    def _find_source(self, job_id: str) -> str:
        runtime = self._session and self._session._runtime  # noqa: SLF001 - the command shows what the engine knows
        job = runtime and runtime._jobs.recall(job_id)  # noqa: SLF001 - the same
        return job.record.source if job else ""

    @property
    def _has_nothing(self) -> bool:
        """Whether MusicGPT has accepted no track of this run, and none is done."""
        return not self.summary.done and not (self._session and self._session.credits_estimated)

    async def _follow_events(self, events: AsyncIterator[Event]) -> None:
        last_trouble = ""
        async for event in events:
            self._progress.handle(event)
            self._poll_usage.handle(event)
            if self._screen.shows_progress:
                continue
            trouble = self._progress.trouble
            if trouble and trouble != last_trouble:
                self.say(trouble)
                last_trouble = trouble
            elif isinstance(event, Accepted):
                self.say(_format_accepted(event))
                last_trouble = ""

    def _totals(self) -> Totals:
        return Totals(
            done=self.summary.done,
            failed_by_state=dict(self.summary.failed_by_state),
            total=self.summary.total,
            seconds=time.time() - self.summary.began,
            credits=self._session.credits_estimated if self._session else 0.0,
        )

    def _print_summary(self, session: MusicGPTSession) -> None:
        if self._rejection is not None and self._has_nothing:
            self._screen.say(_format_rejection(self._rejection), "red")
            return
        if self._rejection is not None:  # the first refusals were held back
            self._screen.say(f"failed  {for_shell(self._rejection.message)}", "red")
        if self._failure is not None and not getattr(self._failure, "is_closed", False):
            self._screen.say(for_shell(str(self._failure)), "red")
        seconds = time.time() - self.summary.began
        if self.summary.total:
            for line in self.summary.lines(seconds=seconds, estimated=session.credits_estimated):
                self.say(line)
        advice = self._poll_usage.advice(self._settings.known_plan, seconds)
        if advice and not self._settings.webhook:
            self.say(advice)
        if self._interrupts.first is not None or self._failure is not None:
            for line in self._unfinished_lines():
                self._screen.say(line)
            if self._journal is not None and self.summary.ended < self.summary.total:
                self._screen.say("To continue with all: run the same command again.")

    def _unfinished_lines(self) -> list[str]:
        jobs = [job for job in self._progress.detached if was_delivered(output.record_of(job))]
        finished = [track for track in self._progress.active.values() if track.is_finished]
        return output.unfinished_lines(
            jobs,
            finished,
            resume=None if self._journal is None else self._settings.resume_command,
            fetch=self._settings.fetch_command,
        )

    def _exit_code(self) -> int:
        if self._interrupts.first is not None:
            return self._interrupts.exit_code
        if self._rejection is not None and self._has_nothing:
            return 2
        return 1 if self._failure or self.summary.failed else 0


def _find_key() -> str:
    """Return the API key of the environment or the keyring.

    Raises:
        UsageError: There is none.
    """
    if key := find_key(keyring=True).key:
        return key
    raise UsageError(
        f"There is no API key: set {KEY_VARIABLE}, or {KEY_FILE_VARIABLE} to a file that holds it, "
        f"or run `keyring set {KEYRING_SERVICE} {KEYRING_USER}`. To try the command without a key: "
        "`musicgpt-async emulate`."
    )


def make_limits(plan: str | None, jobs: int | None) -> Limits | None:
    """Return the known limits of the account; the session learns the rest."""
    limits = plans.make_limits(plan)
    return limits if jobs is None else attrs.evolve(limits or Limits(), parallel=jobs)


def make_directory(path: Path) -> None:
    """Make the output directory if it does not exist.

    Raises:
        UsageError: It cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The directory {path} cannot be made: {error.strerror}.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"The directory {path} may not be written to.")


def _format_rejection(error: APIError) -> str:
    own_words = f": {plain(error.vendor_message)}" if error.vendor_message else ""
    return (
        f"MusicGPT rejected the API key ({error.status}{own_words}); nothing was submitted. "
        f"Check {KEY_VARIABLE}."
    )


def _format_accepted(event: Accepted) -> str:
    parts = [f"task {event.task_id}"]
    if event.eta is not None:
        parts.append(f"expected to take {span(event.eta)}")
    if event.credit_estimate is not None:
        parts.append(f"about {credit(event.credit_estimate)}")
    return f"accepted {plain(event.title)} ({', '.join(parts)})"
