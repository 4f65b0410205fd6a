"""`extract`, with and without `--dry-run`, and `resume`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

from musicgpt_async import (
    ConfigurationError,
    ExtractionJob,
    JobState,
    Journal,
    MusicGPTError,
    MusicGPTSession,
    Outcome,
    SourceError,
)
from musicgpt_async._io import sources as audio
from musicgpt_async._rules import filenames, fingerprint, pricing
from musicgpt_async._rules.formats import DEFAULT_FORMAT
from musicgpt_async._rules.records import may_be_submitted_again
from musicgpt_async.cli import output, streams
from musicgpt_async.cli.durations import read_duration
from musicgpt_async.cli.journals import has_journal, require_journal
from musicgpt_async.cli.run import Run
from musicgpt_async.cli.settings import Settings
from musicgpt_async.cli.sources import TrackRequest, TrackSources, iter_lazily, why_not_audio
from musicgpt_async.cli.states import TrackState, state_of
from musicgpt_async.cli.text import count, dollars, plain, size, span
from musicgpt_async.cli.track_json import TrackJSON, describe_error
from musicgpt_async.cli.usage import UsageError
from musicgpt_async.events import Downloaded, Event, Failed


async def extract(
    settings: Settings, sources: TrackSources, *, force: bool, retry_failed: bool
) -> int:
    """Submit every track, wait for it and download its stems; return the exit code.

    Raises:
        UsageError: The run could not start.
    """
    total = await anyio.to_thread.run_sync(sources.validate)

    async def outcomes(session: MusicGPTSession, run: Run) -> AsyncGenerator[Outcome, None]:
        format_ = settings.format or DEFAULT_FORMAT
        refused: list[Outcome] = []
        tracks = iter_lazily(
            sources.tracks(),
            stopped=lambda: run.should_stop,
            refuse=None if force else lambda *words: refused.append(_refusal(*words)),
        )
        batch = session.extract_many(
            tracks, settings.out, force=force, retry_failed=retry_failed, format=format_
        )
        async with aclosing(batch) as each:  # type: ignore[type-var]  # it is a generator
            async for outcome in each:
                while refused:
                    yield refused.pop(0)
                yield outcome
        for outcome in refused:
            yield outcome

    return await Run(settings, total=total).execute(outcomes)


def _refusal(source: str, reason: str) -> Outcome:
    """Return the outcome of a file that is not audio."""
    words = f"{Path(source).name} was not sent: {reason} (--force sends it)."
    return Outcome(source=source, error=SourceError(words))


async def resume(settings: Settings, *, found: Mapping[str, str]) -> int:
    """Resume the unfinished jobs of a journal; return the exit code.

    Args:
        settings: The command's options.
        found: Ids of jobs whose responses were lost, and the tasks that the user found for them.

    Raises:
        UsageError: There is no journal, or the run could not start.
    """
    await anyio.to_thread.run_sync(require_journal, settings)
    return await Run(settings).execute(partial(_iterate_resumed, settings, found))


async def _iterate_resumed(
    settings: Settings, found: Mapping[str, str], session: MusicGPTSession, run: Run
) -> AsyncGenerator[Outcome, None]:
    events = session.events()
    await _wait_for_leases(run)
    bound = [
        await session.bind(job_id, task_id, format=settings.format)
        for job_id, task_id in found.items()
    ]
    jobs = {job.id: job for job in [*bound, *await session.resume(format=settings.format)]}
    elsewhere = [job_id for job_id, job in jobs.items() if not output.is_for_this_machine(job)]
    for job_id in elsewhere:
        del jobs[job_id]
    run.summary.total = len(jobs)
    if elsewhere:  # leaving the session waits until MusicGPT has finished them
        run.say(f"{count(len(elsewhere), 'track')} to be downloaded on the machine that sent them.")
    if others := len(await run.held_by_others()):
        run.say(f"{count(others, 'track')} left to another process, which works on them.")
    elif not jobs and not elsewhere:
        run.say("There is nothing to resume.")
    async with aclosing(iterate_outcomes(jobs, events, settings)) as each:
        async for outcome in each:
            yield outcome


async def iterate_outcomes(
    jobs: dict[str, ExtractionJob], events: AsyncIterator[Event], settings: Settings
) -> AsyncGenerator[Outcome, None]:
    """Yield the outcome of each job as it is downloaded or fails.

    Args:
        jobs: By their ids; emptied as they end.
        events: The session's, from before the jobs were made.
        settings: The command's options.
    """
    downloads = set[asyncio.Task[None]]()
    for job in jobs.values():
        if output.record_of(job).directory is None:  # else the session itself downloads it
            downloads.add(asyncio.create_task(_download(job, settings)))
    while jobs and (event := await anext(events, None)) is not None:
        if event.job_id not in jobs:
            continue
        if isinstance(event, Downloaded):
            files = {stem: dict(paths) for stem, paths in event.files.items()}
            job = jobs.pop(event.job_id)
            yield Outcome(source=job.source, job=job, files=files)
        elif isinstance(event, Failed):
            job = jobs.pop(event.job_id)
            yield Outcome(source=job.source, job=job, error=event.error)


async def _wait_for_leases(run: Run) -> None:
    """Wait until the leases of a dead process have expired; a living one renews them."""
    leases = await run.held_by_others()
    if leases:
        await anyio.sleep(max(lease.seconds_left for lease in leases.values()) + 0.1)


async def _download(job: ExtractionJob, settings: Settings) -> None:
    with suppress(MusicGPTError):  # reported by the session's events
        await job.download(settings.out, format=settings.format or DEFAULT_FORMAT)


async def dry_run(
    settings: Settings, sources: TrackSources, *, force: bool, retry_failed: bool
) -> int:
    """List what would be sent and what it is expected to cost; return the exit code.

    Raises:
        UsageError: The run could not start.
    """
    try:
        plan = settings.known_plan
    except ConfigurationError as error:
        raise UsageError(error.message) from error
    await anyio.to_thread.run_sync(sources.validate)
    known = {} if force else await _read_known_states(settings, retry_failed=retry_failed)
    sent, price, unpriced = 0, 0.0, 0
    with ThreadPoolExecutor(1) as executor:
        for request in sources.tracks():
            track = await _look_at(request, known, plan, executor)
            if not force:
                reason = await anyio.to_thread.run_sync(why_not_audio, request.source)
                track = attrs.evolve(track, refusal=reason)
            streams.write_result(track.as_json() if settings.json else str(track))
            if track.would_submit:
                sent += 1
                price += track.price or 0.0
                unpriced += track.price is None
    streams.say(
        f"{count(sent, 'track')} would be submitted, {_expected(price, sent, unpriced, plan)}; "
        "nothing was sent."
    )
    return 0


def _expected(price: float, sent: int, unpriced: int, plan: str | None) -> str:
    """Return what the tracks are expected to cost in total."""
    rates = f"{plan or 'pay as you go'}, prices of {pricing.PRICES_AS_OF}"
    if not sent:
        return "for nothing"
    if unpriced == sent:
        return "at an unknown price, since their durations are unknown"
    unknown = f"; {unpriced:,} more of unknown duration" if unpriced else ""
    return f"for about {dollars(price)} ({rates}{unknown})"


@attrs.frozen
class _DryTrack:
    """One track that would be submitted.

    Attributes:
        request: What was asked for.
        length: Bytes; ``None`` for a URL.
        duration: Seconds; ``None`` if unknown.
        price: Dollars; ``None`` if unknown.
        state: The state of the journal's job for it.
        refusal: Why its first bytes are not audio.
    """

    request: TrackRequest
    length: int | None
    duration: float | None
    price: float | None
    state: TrackState | None
    refusal: str | None = None

    @property
    def would_submit(self) -> bool:
        """Whether it would be sent."""
        return self.state is None and self.refusal is None

    def __str__(self) -> str:
        request = self.request
        options = [*(request.stems or ("default stems",)), *request.preprocessing]
        options += ["eco mode"] if request.eco_mode else []
        parts = [
            plain(request.source),
            "URL" if self.length is None else size(self.length),
            "unknown duration" if self.duration is None else span(self.duration),
            "unknown price" if self.price is None else f"about {dollars(self.price)}",
            ", ".join(options),
        ]
        notes = [f"{self.state} already"] if self.state else []
        notes += [f"not sent: {self.refusal}"] if self.refusal else []
        return "  ".join([*parts, *(f"[{note}]" for note in notes)])

    def as_json(self) -> str:
        """Return the same as one line of JSON."""
        request = self.request
        track = TrackJSON(
            track=request.label or filenames.title_of(request.source),
            source=request.source,
            ok=self.state is TrackState.DONE,
            state=self.state,
            label=request.label,
            stems=request.stems,
            preprocessing=request.preprocessing,
            eco_mode=request.eco_mode,
            size=self.length,
            duration=self.duration,
            error=None if self.refusal is None else describe_error(None, self.refusal),
        )
        price = None if self.price is None else round(self.price, 4)
        return track.encode(price=price, would_submit=self.would_submit)


async def _look_at(
    request: TrackRequest,
    known: dict[str, TrackState],
    plan: str | None,
    executor: ThreadPoolExecutor,
) -> _DryTrack:
    track = audio.parse_source(request.source, label=request.label)
    async with audio.open_track(track, executor) as content:
        fingerprint_ = fingerprint.compute_fingerprint(
            track.location,
            content.version if content else "",
            stems=request.stems,
            preprocessing=request.preprocessing,
            eco_mode=request.eco_mode,
        )
    if request.key is not None:
        fingerprint_ = fingerprint.compute_key_fingerprint(request.key)
    duration = None
    if isinstance(track.content, Path):
        duration = await anyio.to_thread.run_sync(read_duration, track.content)
    return _DryTrack(
        request,
        length=content.size if content else None,
        duration=duration,
        price=pricing.estimate_price(request.stems, duration, plan),
        state=known.get(fingerprint_),
    )


async def _read_known_states(settings: Settings, *, retry_failed: bool) -> dict[str, TrackState]:
    """Return the states of the journal's jobs, by fingerprint."""
    if not settings.keeps_journal or not await anyio.to_thread.run_sync(has_journal, settings):
        return {}
    async with Journal(settings.journal_place) as journal:
        return {
            record.fingerprint: state_of(record)
            async for record in journal.records()
            if not may_be_submitted_again(record)
            or (record.state is JobState.FAILED and record.task_id is not None and not retry_failed)
        }
