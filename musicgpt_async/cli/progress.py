"""The state of the active tracks, gathered from a session's events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import attrs

from musicgpt_async import ExtractionJob, JobDetachedError
from musicgpt_async.cli.states import TrackState
from musicgpt_async.cli.text import plain, size, span
from musicgpt_async.events import (
    Accepted,
    Completed,
    Downloaded,
    Downloading,
    Event,
    Failed,
    Polled,
    Queued,
    Throttled,
    Uploading,
)

# Shown if nothing moves because the account's slots are taken, or MusicGPT is overloaded.
QUEUED_BY_LIMIT = "queued: MusicGPT accepts no more tracks of this account for now"
# Shown once this many polls in a row have failed; one or two are normal.
UNANSWERED, MAX_FAILED_POLLS = "MusicGPT does not answer status requests; they are repeated", 3
LATE = "longer than expected"
READY = "ready, waiting for a slot"  # but for the end of its upload
# A track is late after its estimate and this: estimates are rough, and polls are seconds apart.
LATE_FACTOR, LATE_MARGIN = 1.25, 5.0  # of the estimate; seconds
SPEED_WINDOW = 0.5  # seconds over which a speed is measured, so that it can be read


@attrs.define
class Meter:
    """Measures bytes a second."""

    speed: float = 0.0
    _moved: int = 0
    _at: float | None = None

    def measure(self, moved: int, now: float) -> None:
        """Update the speed from the bytes transferred so far, which can decrease."""
        if self._at is None or moved < self._moved:
            self._moved, self._at = moved, now
        elif now - self._at >= SPEED_WINDOW:
            latest = (moved - self._moved) / (now - self._at)
            self.speed = latest if not self.speed else (self.speed + latest) / 2
            self._moved, self._at = moved, now


@attrs.define
class TrackProgress:
    """One active track.

    Attributes:
        title: Safe to print.
        task_id: MusicGPT's id for it.
        state: A word or two.
        done: Fraction of the state's work done, ``None`` if unknown.
        since: When it was accepted.
        eta: Seconds that MusicGPT expected from then on.
        downloaded: (stem, format) → bytes received and in total, while it is downloaded.
        is_ready: Whether its upload waits for a slot to be completed.
    """

    title: str
    source: str = ""
    task_id: str | None = None
    state: TrackState = TrackState.UPLOADING
    done: float | None = None
    since: float | None = None
    eta: float | None = None
    downloaded: dict[tuple[str, str], tuple[int, int]] = attrs.field(factory=dict)
    meter: Meter = attrs.field(factory=Meter)
    is_ready: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether MusicGPT has finished it, so that only the download is left."""
        return self.state is TrackState.DOWNLOADING

    def is_late(self, now: float) -> bool:
        """Return whether it takes longer than MusicGPT estimated."""
        if self.since is None or self.eta is None or self.is_finished:
            return False
        return now - self.since > LATE_FACTOR * self.eta + LATE_MARGIN

    def detail(self, now: float) -> str:
        """Return a speed or a time, or what it waits for, for people."""
        if self.is_ready:
            return READY
        if self.since is None or self.is_finished:
            return f"{size(self.meter.speed)}/s" if self.meter.speed else ""
        if self.is_late(now):
            return LATE
        expected = f" of ~{span(self.eta)}" if self.eta else ""
        return f"{span(now - self.since)}{expected}"

    def share(self, now: float) -> float | None:
        """Return the fraction of the current state's work that is done, if it is known."""
        if self.is_late(now):
            return None
        if self.since is not None and not self.is_finished:
            return min((now - self.since) / self.eta, 0.99) if self.eta else None
        return self.done


class ProgressModel:
    """All active tracks.

    Args:
        clock: Returns monotonic seconds.
        find_source: Returns the path or URL of a job's track, empty if it has none.

    Attributes:
        active: Job id → track, from its upload to its last file, oldest first.
        detached: Handles that were detached.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        find_source: Callable[[str], str] = lambda _: "",
    ) -> None:
        self.active: dict[str, TrackProgress] = {}
        self.detached: list[ExtractionJob] = []
        self._clock = clock
        self._find_source = find_source
        self._refused = False
        self._failed_polls = 0

    @property
    def trouble(self) -> str:
        """What holds the batch up, as text; empty if nothing does."""
        if self._failed_polls >= MAX_FAILED_POLLS:
            return UNANSWERED
        return QUEUED_BY_LIMIT if self._refused and not self.active else ""

    def handle(self, event: Event) -> None:
        """Update the state from an event."""
        match event:
            case Queued() | Throttled(call="submit"):
                # Queued, for the first time or again: not active.
                self.active.pop(event.job_id, None)
                self._refused = self._refused or isinstance(event, Throttled)
            case Uploading():
                self._uploading(event)
            case Accepted():
                track = self._get_track(event, TrackState.PROCESSING)
                track.since, track.eta = self._clock(), event.eta
                self._refused, self._failed_polls = False, 0
            case Polled(status=""):
                self._failed_polls += 1
            case Polled():
                self._failed_polls = 0
                track = self._get_track(event, TrackState.PROCESSING)
                track.since = track.since or self._clock()
            case Completed():
                if event.job_id in self.active:  # else it was finished before, and is only checked
                    self._get_track(event, TrackState.DOWNLOADING)
            case Downloading():
                self._downloading(event)
            case Failed() | Downloaded():
                self._ended(event)

    def _get_track(self, event: Event, state: TrackState) -> TrackProgress:
        track = self.active.get(event.job_id)
        if track is None:
            source = self._find_source(event.job_id)
            track = self.active[event.job_id] = TrackProgress(plain(event.title), source)
        track.task_id = event.task_id
        if track.is_finished and state is not TrackState.DOWNLOADING:
            return track  # a poll that was in flight when the job ended
        if state != track.state:
            track.state, track.done, track.meter, track.is_ready = state, None, Meter(), False
        return track

    def _uploading(self, event: Uploading) -> None:
        track = self._get_track(event, TrackState.UPLOADING)
        track.since, track.is_ready = None, event.is_waiting_for_slot
        track.meter.measure(event.sent, self._clock())
        track.done = event.sent / event.total if event.total else None

    def _downloading(self, event: Downloading) -> None:
        track = self._get_track(event, TrackState.DOWNLOADING)
        total = event.total or event.received
        track.downloaded[event.stem, event.format] = (event.received, total)
        received = sum(there for there, _ in track.downloaded.values())
        track.meter.measure(received, self._clock())
        track.done = received / max(1, sum(_totals(track.downloaded)))

    def _ended(self, event: Failed | Downloaded) -> None:
        self.active.pop(event.job_id, None)
        if isinstance(event, Failed) and isinstance(event.error, JobDetachedError):
            job = event.error.job
            if isinstance(job, ExtractionJob):
                self.detached.append(job)


def _totals(downloaded: Mapping[tuple[str, str], tuple[int, int]]) -> list[int]:
    return [total for _, total in downloaded.values()]
