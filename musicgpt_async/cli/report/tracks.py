"""The tracks of an output directory, from its journal or from the names of its files."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import attrs

from musicgpt_async import JobState, Stem
from musicgpt_async._rules.records import is_unfinished
from musicgpt_async.cli.attempts import track_key
from musicgpt_async.cli.namesakes import Namesakes
from musicgpt_async.cli.sources import is_audio, is_url
from musicgpt_async.cli.track_json import title_of
from musicgpt_async.models import JobRecord

Stems = Mapping[str, tuple[Path, ...]]

# The song among the sounds of a track; no stem is called so.
SONG = "song"
# What a stem is a part of: played together, the two would sound doubled.
WHOLES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("male_vocal", "female_vocal", "lead_vocal", "back_vocal"), ("vocals",)),
    **dict.fromkeys(
        ("acoustic_guitar", "electric_guitar", "rhythm_guitar", "solo_guitar"),
        ("guitar", "instrumental"),
    ),
    **dict.fromkeys(
        ("kick_drum", "snare_drum", "toms", "hi_hat", "ride", "crash"), ("drums", "instrumental")
    ),
    **dict.fromkeys(
        ("guitar", "drums", "piano", "keys", "strings", "winds", "bass"), ("instrumental",)
    ),
}
# Formats of a stem, the one to draw and to play first: it needs no decoder that adds silence.
FORMATS = (".wav", ".flac", ".mp3")
MAX_ATTEMPTS = 20  # of one track that are kept; earlier ones are only summed up
_OF_A_TRACK = re.compile(rf"(?P<track>.+) - (?P<stem>{'|'.join(Stem)})(?P<number> \(\d+\))?")
_IN_A_FOLDER = re.compile(rf"(?P<stem>{'|'.join(Stem)})(?P<number> \(\d+\))?")


class TrackStatus(StrEnum):
    """The outcome of a track."""

    DONE = "done"
    FAILED = "failed"
    UNFINISHED = "unfinished"


@attrs.frozen(kw_only=True)
class ReportTrack:
    """One track of the report.

    Attributes:
        title: Its name for people.
        outcome: Its outcome.
        song: Path of the song that was split, if it is on this machine.
        stems: Stem → its files that are here, the one to play first.
        missing: Stems whose files were here once.
        written_at: When the last stem was written, in seconds since the epoch.
        record: Its record in the journal.
        earlier: Attempts before the last one.
    """

    title: str
    outcome: TrackStatus
    song: Path | None = None
    stems: Stems = attrs.field(factory=dict)
    missing: tuple[str, ...] = ()
    written_at: float | None = None
    record: JobRecord | None = None
    earlier: tuple[JobRecord, ...] = ()

    @property
    def anchor(self) -> str:
        """The id of the track on the page, the same each time that the page is made."""
        record = self.record
        parts = [self.title]
        if record is not None:
            parts = [record.source or record.id, *sorted(record.stems), *record.preprocessing]
        return f"track-{hashlib.sha256(repr(parts).encode(errors='replace')).hexdigest()[:12]}"

    @property
    def played(self) -> tuple[Path, ...]:
        """The files that are drawn and played, one for each sound."""
        song = () if self.song is None else (self.song,)
        return (*song, *(files[0] for files in self.stems.values()))

    def is_doubled(self, sound: str) -> bool:
        """Return whether what is heard in one sound is heard in others of the track, too."""
        if sound == SONG:
            return bool(self.stems)
        return any(whole in self.stems for whole in WHOLES.get(sound, ()))


@attrs.define
class LeftOut:
    """Sums over the tracks and attempts that the page does not show.

    Attributes:
        charged: Credits charged.
        estimated: Credits estimated, for attempts whose charge is not known.
    """

    charged: float = 0.0
    estimated: float = 0.0
    _tracks: dict[int, tuple[TrackStatus, float]] = attrs.field(factory=dict)

    @property
    def outcomes(self) -> Counter[TrackStatus]:
        """How many tracks had which outcome."""
        return Counter(outcome for outcome, _ in self._tracks.values())

    @property
    def seconds(self) -> float:
        """Seconds of audio."""
        return sum(seconds for _, seconds in self._tracks.values())

    def __len__(self) -> int:
        return len(self._tracks)

    def add_attempt(self, record: JobRecord) -> None:
        """Count what an attempt cost."""
        if record.cost is None:
            self.estimated += record.credit_estimate or 0.0
        else:
            self.charged += record.cost

    def add_track(self, key: Hashable, outcome: TrackStatus, seconds: float) -> None:
        """Count a track."""
        # Only its hash: a hundred thousand paths would take much more memory.
        self._tracks[hash(key)] = (outcome, seconds)

    def remove_track(self, key: Hashable) -> None:
        """Count a track no longer, since a later attempt is shown."""
        self._tracks.pop(hash(key), None)


class Attempts:
    """Groups the records of a journal by track, and keeps the last tracks.

    Args:
        last: Tracks to keep; the others are counted only.
    """

    def __init__(self, last: int) -> None:
        self.left_out: LeftOut = LeftOut()
        self._last = last
        self._kept: dict[Hashable, list[JobRecord]] = {}

    def add(self, record: JobRecord) -> None:
        """Add a record; the oldest come first."""
        key = track_key(record)
        attempts = self._kept.pop(key, [])
        self._kept[key] = [*attempts, record]  # again at the end
        self.left_out.remove_track(key)
        if len(attempts) >= MAX_ATTEMPTS:
            self.left_out.add_attempt(self._kept[key].pop(0))
        if len(self._kept) > self._last:
            self._leave_out(next(iter(self._kept)))

    def _leave_out(self, key: Hashable) -> None:
        attempts = self._kept.pop(key)
        for each in attempts:
            self.left_out.add_attempt(each)
        self.left_out.add_track(key, _outcome(attempts[-1]), attempts[-1].duration or 0.0)

    def tracks(self, directory: Path) -> list[ReportTrack]:
        """Return the kept tracks, looking for their files.

        Args:
            directory: Current directory of the journal; it may have been moved.
        """
        namesakes = Namesakes()
        for *_, record in self._kept.values():
            namesakes.add(title_of(record), record.source)
        return [_of_attempts(each, directory, namesakes) for each in self._kept.values()]


def _of_attempts(
    records: Sequence[JobRecord], directory: Path, namesakes: Namesakes
) -> ReportTrack:
    """Return the last attempt, with the files of the last one that left any."""
    record = records[-1]
    with_files = next((each for each in reversed(records) if each.files), record)
    files: dict[str, list[Path]] = {}
    for file in with_files.files:
        path = _relocate(Path(file.path), with_files.directory, directory)
        files.setdefault(file.stem, []).extend([path] if path.is_file() else [])
    return ReportTrack(
        title=namesakes.distinguish(title_of(record), record.source),
        outcome=_outcome(record),
        song=_song(record),
        stems=_order(files),
        missing=tuple(stem for stem, paths in files.items() if not paths),
        written_at=max(
            (p.stat().st_mtime for paths in files.values() for p in paths), default=None
        ),
        record=record,
        earlier=tuple(records[:-1]),
    )


def _outcome(record: JobRecord) -> TrackStatus:
    if record.state is JobState.FAILED:
        return TrackStatus.FAILED
    is_done = record.state is JobState.COMPLETED and not is_unfinished(record)
    return TrackStatus.DONE if is_done else TrackStatus.UNFINISHED


def _song(record: JobRecord) -> Path | None:
    path = Path(record.source)
    return path if record.source and not is_url(record.source) and path.is_file() else None


def _relocate(path: Path, was: str | None, directory: Path) -> Path:
    """Return the path of a file after its directory was moved or copied."""
    if was is not None and path.is_relative_to(was):
        moved = directory / path.relative_to(was)
        if moved.is_file():
            return moved
    return path


def _order(files: Mapping[str, Sequence[Path]]) -> Stems:
    """Return stems that have files, in MusicGPT's own order."""
    known = list(Stem)
    places = {stem: known.index(Stem(stem)) if stem in known else len(known) for stem in files}
    return {
        stem: tuple(sorted(files[stem], key=_rank))
        for stem in sorted(files, key=lambda each: (places[each], each))
        if files[stem]
    }


def _rank(path: Path) -> int:
    ending = path.suffix.lower()
    return FORMATS.index(ending) if ending in FORMATS else len(FORMATS)


def from_files(directory: Path) -> list[ReportTrack]:
    """Return the tracks whose stems are below a directory.

    They are named ``{track} - {stem}.{ext}``, or ``{track}/{stem}.{ext}``.
    """
    found: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    others: dict[Path, Path] = {}
    for path in _audio_below(directory):
        if (key := _parse_name(path, directory)) is not None:
            place, title, stem = key
            found.setdefault((place, title), {}).setdefault(stem, []).append(path)
        else:
            others.setdefault(path.with_suffix(""), path)
    return [
        ReportTrack(
            title=title,
            outcome=TrackStatus.DONE,
            song=others.get(place / title),
            stems=_order(stems),
        )
        for (place, title), stems in found.items()
    ]


def _audio_below(directory: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(directory):
        subfolders[:] = sorted(each for each in subfolders if not each.startswith("."))
        yield from (Path(folder, file) for file in sorted(files) if is_audio(Path(file)))


def _parse_name(path: Path, directory: Path) -> tuple[Path, str, str] | None:
    """Return the folder of the song, the track's name and the stem's."""
    if match := _OF_A_TRACK.fullmatch(path.stem):
        return path.parent, match["track"] + (match["number"] or ""), match["stem"]
    if path.parent != directory and (match := _IN_A_FOLDER.fullmatch(path.stem)):
        folder = path.parent
        return folder.parent, folder.name + (match["number"] or ""), match["stem"]
    return None
