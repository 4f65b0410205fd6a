"""The names of the API: stems, preprocessing options and conversion types."""

from collections.abc import Mapping

STEMS = (
    "vocals", "male_vocal", "female_vocal", "lead_vocal", "back_vocal",
    "guitar", "acoustic_guitar", "electric_guitar", "rhythm_guitar", "solo_guitar",
    "drums", "kick_drum", "snare_drum", "toms", "hi_hat", "ride", "crash",
    "piano", "keys", "strings", "winds", "bass", "instrumental",
)  # fmt: skip
"""The 23 stems that a submit may request (MusicGPT docs, Extraction)."""

DEFAULT_STEMS = ("drums", "bass", "piano", "guitar")
"""The stems of a submit that names none."""

PREPROCESSING = ("Denoise", "Deecho", "Dereverb")
"""The preprocessing options, as MusicGPT spells them."""

CONVERSION_TYPES = (
    "MUSIC_AI", "TEXT_TO_SPEECH", "VOICE_CONVERSION", "COVER", "EXTRACTION", "DENOISING",
    "DEECHO", "DEREVERB", "SOUND_GENERATOR", "AUDIO_TRANSCRIPTION", "AUDIO_SPEED_CHANGER",
    "AUDIO_MASTERING", "AUDIO_CUTTER", "REMIX", "FILE_CONVERT", "KEY_BPM_EXTRACTION",
    "AUDIO_TO_MIDI", "EXTEND", "INPAINT", "SING_OVER_INSTRUMENTAL", "LYRICS_GENERATOR",
    "STEMS_SEPARATION", "VOCAL_EXTRACTION",
)  # fmt: skip
"""The 23 conversion types that byId accepts (MusicGPT docs, status check)."""

SONG = "song"
"""The name of the submitted audio in `STEM_GROUPS`; it is not a stem."""

STEM_GROUPS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    SONG: (("vocals", "instrumental"),),
    "instrumental": (("drums", "bass", "guitar", "piano", "keys", "strings", "winds"),),
    "drums": (("kick_drum", "snare_drum", "toms", "hi_hat", "ride", "crash"),),
    "guitar": (("acoustic_guitar", "electric_guitar", "rhythm_guitar", "solo_guitar"),),
    "vocals": (("lead_vocal", "back_vocal"), ("male_vocal", "female_vocal")),
}
"""Groups of stems by the signal that they add up to, sample by sample."""
