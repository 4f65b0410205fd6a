"""Public, immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, Literal, TypeAlias

import attrs


class Stem(StrEnum):
    """The 23 stems that MusicGPT can extract (MusicGPT docs, Extraction).

    Each member is a ``str`` that equals its value; plain strings are accepted everywhere too.
    """

    VOCALS = "vocals"
    MALE_VOCAL = "male_vocal"
    FEMALE_VOCAL = "female_vocal"
    LEAD_VOCAL = "lead_vocal"
    BACK_VOCAL = "back_vocal"
    GUITAR = "guitar"
    ACOUSTIC_GUITAR = "acoustic_guitar"
    ELECTRIC_GUITAR = "electric_guitar"
    RHYTHM_GUITAR = "rhythm_guitar"
    SOLO_GUITAR = "solo_guitar"
    DRUMS = "drums"
    KICK_DRUM = "kick_drum"
    SNARE_DRUM = "snare_drum"
    TOMS = "toms"
    HI_HAT = "hi_hat"
    RIDE = "ride"
    CRASH = "crash"
    PIANO = "piano"
    KEYS = "keys"
    STRINGS = "strings"
    WINDS = "winds"
    BASS = "bass"
    INSTRUMENTAL = "instrumental"


StemName: TypeAlias = Literal[
    "vocals",
    "male_vocal",
    "female_vocal",
    "lead_vocal",
    "back_vocal",
    "guitar",
    "acoustic_guitar",
    "electric_guitar",
    "rhythm_guitar",
    "solo_guitar",
    "drums",
    "kick_drum",
    "snare_drum",
    "toms",
    "hi_hat",
    "ride",
    "crash",
    "piano",
    "keys",
    "strings",
    "winds",
    "bass",
    "instrumental",
]
"""A stem by its name: type checkers report one that does not exist. ``Stem(text)`` makes a
stem of any other text, or raises."""


class Preprocessing(StrEnum):
    """Options that process a track before the extraction (MusicGPT docs, Extraction).

    They reduce noise, echo and reverb. Each member is a ``str`` that equals its value.
    """

    DENOISE = "Denoise"
    DEECHO = "Deecho"
    DEREVERB = "Dereverb"


PreprocessingName: TypeAlias = Literal["Denoise", "Deecho", "Dereverb"]
"""A preprocessing option by its name, as ``StemName`` is a stem by its name."""

AudioFormat = Literal["best", "wav", "mp3", "both"]
"""The files of a stem to download.

``"best"`` is the WAV if it is available, else the MP3; ``"both"`` is every available file;
``"wav"`` and ``"mp3"`` are that format or an error.
"""


class JobState(StrEnum):
    """The state of a job; the documentation has a diagram of the transitions.

    Attributes:
        QUEUED: Waiting for a slot; nothing was sent.
        UPLOADING: The track is being sent; MusicGPT cannot have all of it.
        UNACKNOWLEDGED: The track was delivered; the response has not arrived yet.
        PROCESSING: MusicGPT accepted the track, returned a task_id and is processing it.
        COMPLETED: Finished; the links are known.
        FAILED: Ended with an error; nothing is running at MusicGPT.
        UNKNOWN: The track was delivered and the response lost: it may have been accepted.
        TIMED_OUT: The deadline passed; MusicGPT continues to process it.
        DETACHED: The handle was cancelled; if it was accepted, MusicGPT continues to process it.
    """

    QUEUED = "queued"
    UPLOADING = "uploading"
    UNACKNOWLEDGED = "unacknowledged"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    TIMED_OUT = "timed_out"
    DETACHED = "detached"


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of an account (MusicGPT docs, rate limits of August 2026).

    Attributes:
        parallel: Maximum number of unfinished conversions, or ``None`` to learn it.
        polls_per_minute: Maximum number of byId calls per minute, or ``None`` to learn it.
        FREE: The free plan, and pay as you go: 1 conversion, 20 calls per minute.
        PLUS: The plus plan: 3 conversions, 200 calls per minute.
        PRO: The pro plan: 10 conversions, 500 calls per minute.
    """

    parallel: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    polls_per_minute: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )

    FREE: ClassVar[Limits]
    PLUS: ClassVar[Limits]
    PRO: ClassVar[Limits]


Limits.FREE = Limits(parallel=1, polls_per_minute=20)
Limits.PLUS = Limits(parallel=3, polls_per_minute=200)
Limits.PRO = Limits(parallel=10, polls_per_minute=500)


def _hide_signature(url: str | None) -> str:
    """Return a URL's repr without its query: who has the signature can download the file."""
    path, query, _ = (url or "").partition("?")
    return repr(f"{path}?…" if query else url)


@attrs.frozen(kw_only=True)
class StemLinks:
    """The links of one stem's files (MusicGPT docs, webhooks).

    Attributes:
        mp3: URL of the MP3, or ``None`` if there is none.
        wav: URL of the WAV, or ``None`` if there is none.
    """

    mp3: str | None = attrs.field(default=None, repr=_hide_signature)
    wav: str | None = attrs.field(default=None, repr=_hide_signature)


@attrs.frozen(kw_only=True)
class Acceptance:
    """MusicGPT's response to an accepted submit (MusicGPT docs, Extraction).

    Attributes:
        task_id: MusicGPT's id of the task.
        conversion_id: MusicGPT's id of the conversion within the task.
        eta: Estimated seconds until the end, or ``None`` if MusicGPT does not know (-1).
        credit_estimate: Estimated cost in credits.
    """

    task_id: str
    conversion_id: str | None = None
    eta: float | None = None
    credit_estimate: float | None = None


@attrs.frozen(kw_only=True)
class Extraction:
    """A finished job (MusicGPT docs, status check).

    Attributes:
        task_id: MusicGPT's id of the task.
        conversion_id: MusicGPT's id of the conversion within the task.
        stems: Links by stem name, in MusicGPT's order.
        cost: Credits charged, or ``None`` if MusicGPT did not report it.
        duration: Seconds of audio, or ``None`` if MusicGPT did not report it.
        raw: The JSON object, for fields that this class does not have.
    """

    task_id: str
    conversion_id: str | None = None
    stems: Mapping[str, StemLinks] = attrs.field(factory=dict)
    cost: float | None = None
    duration: float | None = None
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False, eq=False)


@attrs.frozen(kw_only=True)
class StemFile:
    """A downloaded file, as the journal stores it.

    Attributes:
        stem: The stem's name.
        format: ``"wav"`` or ``"mp3"``.
        path: Its path.
        size: Bytes.
        sha256: Hexadecimal digest of its content.
    """

    stem: str
    format: str
    path: str
    size: int
    sha256: str


@attrs.frozen(kw_only=True)
class JobRecord:
    """The persisted state of a job, from which another process can resume it.

    Attributes:
        id: The library's own id of the job.
        fingerprint: Equal for the same track with the same options.
        source: Absolute path or URL; empty for bytes and streams, which cannot be read again.
        label: The caller's name for the track.
        title: The track's name in files, if it cannot be derived from the label or the source.
        stems: Stems of the submit.
        preprocessing: Preprocessing options of the submit.
        eco_mode: Whether the submit requests the faster separation.
        token: The secret in the job's webhook URL.
        state: The job's state.
        size: Bytes of the track.
        sha256: Digest of the track, computed while it was sent.
        task_id: MusicGPT's id of the task.
        conversion_id: MusicGPT's id of the conversion within the task.
        candidate_task_id: A task that a webhook named for the job and byId has not confirmed yet.
        eta: MusicGPT's estimate in seconds from acceptance.
        credit_estimate: MusicGPT's estimate of the cost in credits.
        sent_at: Time of the delivery, in seconds since the epoch.
        accepted_at: Time of the response, in seconds since the epoch.
        links: Links by stem name.
        cost: Credits charged.
        duration: Seconds of audio.
        directory: Output directory, or ``None`` if no download was requested.
        format: Requested files of each stem.
        requested_stems: Stems to download; empty for all that MusicGPT produced.
        layout: Layout of file names in the directory, or ``None`` for the session's.
        files: The downloaded files.
        error: The message of the error with which the job ended.
        created_at: Time of the submit, in seconds since the epoch.
    """

    id: str
    fingerprint: str
    source: str
    label: str | None = None
    title: str | None = None
    stems: tuple[str, ...] = ()
    preprocessing: tuple[str, ...] = ()
    eco_mode: bool = False
    token: str | None = attrs.field(default=None, repr=False)
    state: JobState = JobState.QUEUED
    size: int | None = None
    sha256: str | None = None
    task_id: str | None = None
    conversion_id: str | None = None
    candidate_task_id: str | None = None
    eta: float | None = None
    credit_estimate: float | None = None
    sent_at: float | None = None
    accepted_at: float | None = None
    links: Mapping[str, StemLinks] = attrs.field(factory=dict)
    cost: float | None = None
    duration: float | None = None
    directory: str | None = None
    format: AudioFormat | None = None
    requested_stems: tuple[str, ...] = ()
    layout: str | None = None
    files: tuple[StemFile, ...] = ()
    error: str | None = None
    created_at: float = 0.0
