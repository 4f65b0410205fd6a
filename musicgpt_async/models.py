"""Frozen values that users see."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, Literal

import attrs


class Stem(StrEnum):
    """The 23 parts that MusicGPT separates a track into (MusicGPT docs, Extraction).

    Each is a ``str`` and equal to its value, which serves as well wherever a stem is asked for.
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


class Preprocessing(StrEnum):
    """What MusicGPT can do to a track before it is split (MusicGPT docs, Extraction).

    Each is a ``str`` and equal to its value: against noise, echo, and the sound of the room.
    """

    DENOISE = "Denoise"
    DEECHO = "Deecho"
    DEREVERB = "Dereverb"


AudioFormat = Literal["best", "wav", "mp3", "both"]
"""Which files of a stem to download.

``"best"`` is the WAV if MusicGPT has it, else the MP3; ``"both"`` is whatever there is; ``"wav"``
and ``"mp3"`` are that format or an error.
"""


class JobState(StrEnum):
    """The state of a job; the README draws which state follows which.

    Attributes:
        QUEUED: It waits for a slot; nothing was sent.
        UPLOADING: The track is on its way; MusicGPT cannot have it whole.
        UNACKNOWLEDGED: The whole track was handed over and no answer has come yet.
        PROCESSING: Accepted: MusicGPT gave it a task_id and is working.
        COMPLETED: Finished; the links are known.
        FAILED: It ended in an error; nothing of it runs at MusicGPT.
        UNKNOWN: No answer came for a whole track: it may have been accepted.
        TIMED_OUT: Its deadline passed; MusicGPT goes on.
        DETACHED: Its handle was cancelled; if it was accepted, MusicGPT goes on.
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
    """What the account may do (MusicGPT docs, rate limits of August 2026).

    Attributes:
        parallel: Unfinished conversions at MusicGPT, at most; ``None`` to learn it.
        polls_per_minute: byId calls a minute, at most; ``None`` to learn it.
        FREE: The free plan's, and pay as you go: 1 conversion, 20 calls a minute.
        PLUS: The plus plan's: 3 conversions, 200 calls a minute.
        PRO: The pro plan's: 10 conversions, 500 calls a minute.
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


@attrs.frozen(kw_only=True)
class StemLinks:
    """The links of one stem's files (MusicGPT docs, webhooks).

    Attributes:
        mp3: URL of the MP3, ``None`` if MusicGPT gave none.
        wav: URL of the WAV, ``None`` if MusicGPT gave none.
    """

    mp3: str | None = None
    wav: str | None = None


@attrs.frozen(kw_only=True)
class Acceptance:
    """MusicGPT's answer to a submit (MusicGPT docs, Extraction).

    Attributes:
        task_id: MusicGPT's name for the job.
        conversion_id: MusicGPT's name for the conversion within it.
        eta: Seconds until it is expected to finish, ``None`` if MusicGPT does not know (-1).
        credit_estimate: Credits that it will probably cost.
    """

    task_id: str
    conversion_id: str | None = None
    eta: float | None = None
    credit_estimate: float | None = None


@attrs.frozen(kw_only=True)
class Extraction:
    """A finished job (MusicGPT docs, status check).

    Attributes:
        task_id: MusicGPT's name for the job.
        conversion_id: MusicGPT's name for the conversion within it.
        stems: Stem name → its links, in MusicGPT's order.
        cost: Credits charged, ``None`` if MusicGPT did not say.
        duration: Seconds of audio, ``None`` if MusicGPT did not say.
        raw: MusicGPT's own JSON, for what this class does not name.
    """

    task_id: str
    conversion_id: str | None = None
    stems: Mapping[str, StemLinks] = attrs.field(factory=dict)
    cost: float | None = None
    duration: float | None = None
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False, eq=False)


@attrs.frozen(kw_only=True)
class StemFile:
    """One downloaded file, as the journal remembers it.

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
    """All that has to be remembered of a job, so that another process can take it up.

    Attributes:
        id: The library's own name for the job.
        fingerprint: Equal for the same track with the same options.
        source: Absolute path or URL; empty for bytes and streams, which cannot be read again.
        label: The caller's name for the track.
        title: The track's name in files, where neither label nor source tells it after a restart.
        stems: Names asked for.
        preprocessing: Options asked for.
        eco_mode: Whether the faster separation was asked for.
        token: The webhook token of this job.
        state: Its state.
        size: Bytes of the track.
        sha256: Digest of the track, taken while it was sent.
        task_id: MusicGPT's name for it.
        conversion_id: MusicGPT's name for the conversion.
        candidate_task_id: A task that a webhook named for it before MusicGPT was asked about it.
        eta: Seconds that MusicGPT expected.
        credit_estimate: Credits that MusicGPT expected to charge.
        sent_at: When the whole track was handed over, in seconds since the epoch.
        accepted_at: When the answer came, in seconds since the epoch.
        links: Stem name → links.
        cost: Credits charged.
        duration: Seconds of audio.
        directory: Where the stems go; ``None`` if no download was asked for.
        format: Which files of each stem were asked for.
        requested_stems: Which stems were asked for; empty for all that MusicGPT made.
        layout: Names of the files in the directory; ``None`` for the session's own.
        files: What has been downloaded.
        error: The sentence of the error it ended in.
        created_at: Seconds since the epoch.
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
