"""The outcome of each track as a line and as JSON, and the summary of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from musicgpt_async import DeadlineError, ExtractionJob, MusicGPTError, Outcome
from musicgpt_async._rules import filenames
from musicgpt_async._rules.formats import describe_formats
from musicgpt_async.cli.messages import for_shell
from musicgpt_async.cli.progress import TrackProgress
from musicgpt_async.cli.states import TrackState, state_of
from musicgpt_async.cli.text import count, credit, plain, span
from musicgpt_async.cli.track_json import describe_outcome
from musicgpt_async.models import JobRecord

# Groups of failures that a summary shows, and tracks that it names for each.
MAX_GROUPS = 12
MAX_NAMES = 3

# Advice of the command beside the library's.
ADVICE: Mapping[type[MusicGPTError], str] = {
    DeadlineError: "Run the same command again to wait for it; --deadline S waits longer.",
}


def title(outcome: Outcome) -> str:
    """Return a track's name for people."""
    return plain(_title(outcome))


def reason_of(outcome: Outcome) -> str:
    """Return why a track failed, the same for all that failed alike; empty if it did not."""
    message = outcome.error.message if outcome.error else ""
    return message.replace(_title(outcome), "…")


def source_of(outcome: Outcome) -> str:
    """Return the path or URL of a track; empty if it has none."""
    return record_of(outcome.job).source if outcome.job else str(outcome.source)


def files(outcome: Outcome) -> dict[str, dict[str, str]]:
    """Return the paths of a track's files: stem → format → path."""
    return {
        stem: {format_: str(path) for format_, path in _by_format(paths).items()}
        for stem, paths in outcome.files.items()
    }


def as_json(outcome: Outcome) -> str:
    """Return one line of JSON."""
    record = record_of(outcome.job) if outcome.job else None
    return describe_outcome(outcome, record, files(outcome)).encode()


def state_of_failure(outcome: Outcome) -> TrackState:
    """Return the state of a track with an error: what is said of it decides what to do next."""
    state = state_of(record_of(outcome.job)) if outcome.job else TrackState.FAILED
    return state if state in (TrackState.UNKNOWN, TrackState.PROCESSING) else TrackState.FAILED


def as_line(outcome: Outcome, name: str) -> str:
    """Return one line for people.

    Args:
        outcome: The track's outcome.
        name: The track's name for people.
    """
    if outcome.error is not None:
        words, state = for_shell(outcome.error.message), state_of_failure(outcome)
        return f"{state:<7} {words}" if name in words else f"{state:<7} {name}: {words}"
    there = files(outcome)
    parts = [count(sum(map(len, there.values())), "file"), describe_formats(there)]
    if outcome.extraction and outcome.extraction.cost is not None:
        parts.append(credit(outcome.extraction.cost))
    return f"done    {name} ({', '.join(filter(None, parts))})"


@attrs.define
class _Group:
    """Failures for one reason."""

    example: str
    advice: str | None
    tracks: list[str] = attrs.field(factory=list)
    number: int = 0


@attrs.define
class Summary:
    """The summary of many tracks, in constant memory.

    Attributes:
        total: Number of tracks.
        began: Seconds since the epoch.
        done: Tracks whose stems are on disk.
        earlier: Those of them that an earlier run had submitted.
        failed_by_state: How many tracks ended in an error, and in which state.
        charged: Credits for tracks that this run submitted.
        charged_earlier: Credits for those that an earlier run had submitted.
        compared: Estimate and charge of the tracks of this run that have both.
    """

    total: int
    began: float
    done: int = 0
    earlier: int = 0
    failed_by_state: Counter[TrackState] = attrs.field(factory=Counter)
    charged: float = 0.0
    charged_earlier: float = 0.0
    compared: tuple[float, float] = (0.0, 0.0)
    _groups: dict[Any, _Group] = attrs.field(factory=dict)

    @property
    def failed(self) -> int:
        """Tracks that ended in an error."""
        return self.failed_by_state.total()

    @property
    def ended(self) -> int:
        """Tracks that are done or failed."""
        return self.done + self.failed

    def add(self, outcome: Outcome) -> None:
        """Count one track."""
        cost = (outcome.extraction.cost if outcome.extraction else None) or 0.0
        accepted = record_of(outcome.job).accepted_at if outcome.job else None
        is_earlier = accepted is not None and accepted < self.began
        if is_earlier:
            self.charged_earlier += cost
        else:
            self.charged += cost
            self._compare(outcome)
        if outcome.error is not None:
            self.failed_by_state[state_of_failure(outcome)] += 1
            self._group(outcome.error, title(outcome))
        else:
            self.done += 1
            self.earlier += is_earlier

    def _compare(self, outcome: Outcome) -> None:
        """Sum up charges whose estimate is known: only they can be compared."""
        estimate = outcome.job.credit_estimate if outcome.job else None
        cost = outcome.extraction.cost if outcome.extraction else None
        if estimate is not None and cost is not None:
            self.compared = (self.compared[0] + estimate, self.compared[1] + cost)

    def _group(self, error: MusicGPTError, track: str) -> None:
        key = (type(error), error.status, error.vendor_message)
        if key not in self._groups and len(self._groups) >= MAX_GROUPS:
            key = (MusicGPTError, None, "and others")
        advice = next((words for kind, words in ADVICE.items() if isinstance(error, kind)), None)
        group = self._groups.setdefault(key, _Group(for_shell(error.message), advice))
        group.number += 1
        if len(group.tracks) < MAX_NAMES:
            group.tracks.append(track)

    def lines(self, *, seconds: float, estimated: float) -> list[str]:
        """Return the summary.

        Args:
            seconds: Since the beginning.
            estimated: Credits that MusicGPT expected to charge for the submitted tracks.
        """
        found = [f"{count(self.done, 'track')} done in {span(seconds)}{self._format_earlier()}"]
        if self.failed:
            states = self.failed_by_state.most_common()
            found.append(", ".join(f"{count(n, 'track')} {state}" for state, n in states) + ":")
            groups = sorted(self._groups.values(), key=lambda group: -group.number)
            found += [line for group in groups for line in _format_group(group)]
        if left := self.total - self.ended:
            found.append(f"{count(left, 'track')} not done")
        found.append(
            f"{credit(self.charged)} charged, {credit(estimated)} estimated{self._difference()}"
        )
        return found

    def _difference(self) -> str:
        """Return how the charges differ from their estimates."""
        estimate, charge = self.compared
        if not estimate or not charge:
            return ""
        percent = round(100 * (charge / estimate - 1))
        if not percent:
            return " (charged as estimated)"
        return f" (charged {abs(percent)} % {'more' if percent > 0 else 'less'} than estimated)"

    def _format_earlier(self) -> str:
        if not self.earlier:
            return ""
        cost = f", {credit(self.charged_earlier)}" if self.charged_earlier else ""
        return f" ({self.earlier:,} of them submitted by an earlier run{cost})"


def unfinished_lines(
    jobs: Sequence[ExtractionJob],
    finished: Sequence[TrackProgress],
    *,
    resume: str | None,
    fetch: str,
) -> list[str]:
    """Return what an interrupted run leaves at MusicGPT, line by line.

    Args:
        jobs: Handles that were detached after their upload was delivered.
        finished: Tracks that MusicGPT has finished and whose stems are not all downloaded.
        resume: The command that resumes them; ``None`` without a journal.
        fetch: The command that downloads them without one, but for their ids.
    """
    found = []
    if jobs:
        found.append(f"{count(len(jobs), 'track')} still processing at MusicGPT:")
        in_order = sorted(jobs, key=lambda job: record_of(job).created_at)
        found += [f"  {_task(job.task_id)}  {plain(job.title)}" for job in in_order]
    if finished:
        found.append(
            f"{count(len(finished), 'track')} finished at MusicGPT and not fully downloaded:"
        )
        found += [f"  {_task(track.task_id)}  {track.title}" for track in finished]
    if found and resume:
        found.append(f"To resume just these: {resume}")
    elif found:
        found.append(f"There is no journal; to download them: {fetch} TASK_ID …")
    return found


def record_of(job: ExtractionJob) -> JobRecord:
    """Return the record of a job."""
    return job._job.record  # noqa: SLF001 - the command shows what the engine knows


def is_for_this_machine(job: ExtractionJob) -> bool:
    """Return whether a resumed job's stems are downloaded here, and not where it was submitted."""
    status = job._job.downloads()  # noqa: SLF001 - as above
    return record_of(job).directory is None or status.requested > 0 or status.end is not None


def _task(task_id: str | None) -> str:
    return f"task {task_id}" if task_id else "(no response: it may have been accepted)"


def _format_group(group: _Group) -> list[str]:
    names = group.tracks[1:]
    found = [f"  {group.number:,} x {group.example}"]
    if names:
        more = ", …" if group.number > len(group.tracks) else ""
        found.append(f"      also: {', '.join(names)}{more}")
    return [*found, f"      {group.advice}"] if group.advice else found


def _title(outcome: Outcome) -> str:
    return outcome.job.title if outcome.job else filenames.title_of(str(outcome.source))


def _by_format(paths: Path | Mapping[str, Path]) -> Mapping[str, Path]:
    return {paths.suffix[1:]: paths} if isinstance(paths, Path) else paths
