"""What the vendor sells: stem names, how they make up a song, and preprocessing options."""

from collections.abc import Mapping

STEMS = (
    "vocals", "male_vocal", "female_vocal", "lead_vocal", "back_vocal",
    "guitar", "acoustic_guitar", "electric_guitar", "rhythm_guitar", "solo_guitar",
    "drums", "kick_drum", "snare_drum", "toms", "hi_hat", "ride", "crash",
    "piano", "keys", "strings", "winds", "bass", "instrumental",
)  # fmt: skip
"""The 23 stems that may be asked for (MusicGPT docs, Extraction)."""

DEFAULT_STEMS = ("drums", "bass", "piano", "guitar")
"""What is extracted when no stem is named."""

PREPROCESSING = ("Denoise", "Deecho", "Dereverb")
"""The preprocessing options, spelt as the vendor spells them."""

CONVERSION_TYPES = (
    "MUSIC_AI", "TEXT_TO_SPEECH", "VOICE_CONVERSION", "COVER", "EXTRACTION", "DENOISING",
    "DEECHO", "DEREVERB", "SOUND_GENERATOR", "AUDIO_TRANSCRIPTION", "AUDIO_SPEED_CHANGER",
    "AUDIO_MASTERING", "AUDIO_CUTTER", "REMIX", "FILE_CONVERT", "KEY_BPM_EXTRACTION",
    "AUDIO_TO_MIDI", "EXTEND", "INPAINT", "SING_OVER_INSTRUMENTAL", "LYRICS_GENERATOR",
    "STEMS_SEPARATION", "VOCAL_EXTRACTION",
)  # fmt: skip
"""The 23 conversion types that byId may be asked for (MusicGPT docs, status check)."""

SONG = "song"
"""The name of the whole in `STEM_GROUPS`: no stem, but what was sent."""

STEM_GROUPS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    SONG: (("vocals", "instrumental"),),
    "instrumental": (("drums", "bass", "guitar", "piano", "keys", "strings", "winds"),),
    "drums": (("kick_drum", "snare_drum", "toms", "hi_hat", "ride", "crash"),),
    "guitar": (("acoustic_guitar", "electric_guitar", "rhythm_guitar", "solo_guitar"),),
    "vocals": (("lead_vocal", "back_vocal"), ("male_vocal", "female_vocal")),
}
"""Which stems add up to which: every tuple of a whole sums to it, sample by sample."""
