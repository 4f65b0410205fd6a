"""Generate valid audio files of any size without content, quickly and without numpy."""

import hashlib
import struct
from pathlib import Path

SMALLEST = 2048
"""The minimum size of a file in bytes: decoders need a few frames to open an MP3."""

_BLOCK = 1 << 20
_RATE = 44_100
_FRAME = bytes.fromhex("fffb9000") + bytes(413)  # MPEG-1 layer III, 128 kbit/s: silence


def write(path: Path, *, seed: str, size: int) -> None:
    """Write a WAV or MP3 file of exactly `size` bytes; the suffix of `path` selects the format.

    The content depends on the seed alone. A WAV contains noise, mono, 16 bit; an MP3 contains
    silence, with the seed as its title.
    """
    size = max(size, SMALLEST)
    with path.open("wb") as file:
        if path.suffix == ".mp3":
            frames = max(1, (size - 256) // len(_FRAME))
            file.write(_tag(seed, size - frames * len(_FRAME)))
            for _ in range(frames):
                file.write(_FRAME)
            return
        file.write(_wav_header(size))
        block = hashlib.shake_128(seed.encode()).digest(min(size, _BLOCK))
        left = size - 44
        while left > 0:
            left -= file.write(block[: min(left, len(block))])


def _wav_header(size: int) -> bytes:
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _RATE, _RATE * 2, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", size - 8, b"WAVE") + fmt
        + struct.pack("<4sI", b"data", size - 44)
    )  # fmt: skip


def _tag(title: str, size: int) -> bytes:
    """Return an ID3v2.3 tag that is padded to `size` bytes."""
    text = b"\x00" + title.encode("latin-1", "replace")[:128]
    frame = struct.pack(">4sIH", b"TIT2", len(text), 0) + text
    length = size - 10
    synchsafe = bytes(length >> shift & 0x7F for shift in (21, 14, 7, 0))
    return (b"ID3\x03\x00\x00" + synchsafe + frame).ljust(size, b"\x00")
