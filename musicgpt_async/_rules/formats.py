"""Select the audio formats to download for each stem, and check that all of them are on disk.

``"best"`` selects one file for each stem, WAV before MP3; ``"both"`` selects every available file.
``"wav"`` and ``"mp3"`` are strict: a stem without that file is an error. The formats that MusicGPT
produces depend on the generation of its API, and a WAV link may appear after the job has completed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import get_args

from musicgpt_async.errors import InvalidOptionError
from musicgpt_async.models import AudioFormat, JobRecord, StemLinks

DEFAULT_FORMAT: AudioFormat = "best"
# Seconds to wait before polling again for links that were missing at completion.
LATE_LINKS_DELAY = 2.0

_BY_QUALITY = ("wav", "mp3")


def check_format(name: str) -> AudioFormat:
    """Return a name as an audio format.

    Raises:
        InvalidOptionError: No such format exists.
    """
    known: tuple[AudioFormat, ...] = get_args(AudioFormat)
    for each in known:
        if name == each:
            return each
    raise InvalidOptionError(f"There is no format {name!r}; choose one of {', '.join(known)}.")


def select_formats(links: StemLinks, choice: AudioFormat) -> tuple[str, ...]:
    """Return the formats of a stem to download; empty if none that was requested is available."""
    there = tuple(each for each in _BY_QUALITY if getattr(links, each) is not None)
    if choice == "best":
        return there[:1]
    return there if choice == "both" else tuple(each for each in there if each == choice)


def is_lacking(links: StemLinks, choice: AudioFormat) -> bool:
    """Return whether a link that appears later would add a file or improve the best one."""
    asked = {"best": ("wav",), "both": _BY_QUALITY}.get(choice, (choice,))
    return any(getattr(links, each) is None for each in asked)


def is_downloaded(record: JobRecord) -> bool:
    """Return whether every requested file was downloaded."""
    stems = [stem for stem in record.links if stem in (record.requested_stems or record.links)]
    # A job without links is not downloaded: `all()` of nothing would be true.
    return bool(stems) and all(_has_stem(record, stem) for stem in stems)


def _has_stem(record: JobRecord, stem: str) -> bool:
    have = {file.format for file in record.files if file.stem == stem}
    choice = record.format or DEFAULT_FORMAT
    if choice == "best" and "wav" in have:
        return True  # the WAV link may have appeared after the record's links were saved
    needed = select_formats(record.links[stem], choice)
    return bool(needed) and have.issuperset(needed)


def describe_formats(files: Mapping[str, Collection[str]]) -> str:
    """Return the downloaded formats as text: ``"WAV"`` or ``"WAV and MP3"``."""
    found = {format_ for formats in files.values() for format_ in formats}
    return " and ".join(each.upper() for each in _BY_QUALITY if each in found)
