"""Which files of each stem to download, and when all of them are there.

Two choices take what the vendor has: ``"best"`` is one file of each stem, WAV before MP3, and
``"both"`` is every file there is. ``"wav"`` and ``"mp3"`` are strict: a stem without that file is
an error. Which formats MusicGPT makes depends on its generation, and a WAV may come after the job
is completed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import get_args

from musicgpt_async.errors import InvalidOptionError
from musicgpt_async.models import AudioFormat, JobRecord, StemLinks

DEFAULT_FORMAT: AudioFormat = "best"
# Seconds to wait before asking once more for links that were not there at completion.
LATE_LINKS_DELAY = 2.0

_BY_QUALITY = ("wav", "mp3")


def check_format(name: str) -> AudioFormat:
    """Return a format that can be asked for.

    Raises:
        InvalidOptionError: It does not exist.
    """
    known: tuple[AudioFormat, ...] = get_args(AudioFormat)
    for each in known:
        if name == each:
            return each
    raise InvalidOptionError(f"There is no format {name!r}; choose one of {', '.join(known)}.")


def select_formats(links: StemLinks, choice: AudioFormat) -> tuple[str, ...]:
    """Return the formats of a stem to download; empty if the vendor has none that was asked for."""
    there = tuple(each for each in _BY_QUALITY if getattr(links, each) is not None)
    if choice == "best":
        return there[:1]
    return there if choice == "both" else tuple(each for each in there if each == choice)


def is_lacking(links: StemLinks, choice: AudioFormat) -> bool:
    """Return whether a link that comes later would add to what is downloaded, or better it."""
    asked = {"best": ("wav",), "both": _BY_QUALITY}.get(choice, (choice,))
    return any(getattr(links, each) is None for each in asked)


def is_downloaded(record: JobRecord) -> bool:
    """Return whether every file that was asked for is among those downloaded."""
    stems = [stem for stem in record.links if stem in (record.requested_stems or record.links)]
    # A job without links is not finished: there is nothing that could have been downloaded.
    return bool(stems) and all(_has_stem(record, stem) for stem in stems)


def _has_stem(record: JobRecord, stem: str) -> bool:
    have = {file.format for file in record.files if file.stem == stem}
    choice = record.format or DEFAULT_FORMAT
    if choice == "best" and "wav" in have:
        return True  # its link may have come after the record's were written
    needed = select_formats(record.links[stem], choice)
    return bool(needed) and have.issuperset(needed)


def describe_formats(files: Mapping[str, Collection[str]]) -> str:
    """Return which formats were downloaded, for people: ``"WAV"``, ``"WAV and MP3"``."""
    found = {format_ for formats in files.values() for format_ in formats}
    return " and ".join(each.upper() for each in _BY_QUALITY if each in found)
