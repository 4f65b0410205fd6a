"""Moments of a job's life at which its process is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
from factories.runs import FOREVER, LONG, STEMS, asked

from musicgpt_async.emulator import Emulator, Fault


@attrs.frozen
class Moment:
    """A moment of a job's life at which its process is killed."""

    name: str
    faults: tuple[Fault, ...]
    has_come: Callable[[Emulator, Path], bool]
    size: int = 20_000
    seconds: float = 0.1


def on(word: str, number: int = 1) -> Callable[[Emulator, Path], bool]:
    """Return whether so many requests have come."""
    return lambda vendor, _: asked(vendor, word) >= number


MOMENTS = [
    Moment(
        "before the hand-over",
        (Fault("submit", "stall_read", at=0.1, **FOREVER),),
        on("Extraction"),
        size=LONG,
    ),
    Moment(
        "handed over and unanswered",
        (Fault("submit", "stall_answer", **FOREVER),),
        lambda vendor, _: len(vendor.submissions) == 1,
    ),
    Moment("accepted", (), on("byId"), seconds=3.0),
    Moment(
        "completed and not downloaded", (Fault("file", "stall_answer", **FOREVER),), on("/files", 2)
    ),
    Moment(
        "half downloaded",
        (Fault("file", "stall", when=lambda o: o.file == "drums.wav", **FOREVER),),
        lambda vendor, folder: (
            asked(vendor, "drums.wav") == 1 and (folder / "stems" / "song - bass.wav").exists()
        ),
    ),
    Moment(
        "done",
        (),
        lambda _, folder: len([*(folder / "stems").glob("*.wav")]) == len(STEMS),
    ),
]
