"""Sessions with an emulator, and a track for them to send."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from musicgpt_async import Limits, MusicGPTSession
from musicgpt_async.emulator import Emulator
from musicgpt_async.journal import Journal

SOUND = b"ID3" + b"\x00" * 3000
TRACK = ("song.mp3", SOUND)


def connected(
    vendor: Emulator, journal: Journal | str | Path | None = None, **options: Any
) -> MusicGPTSession:
    """Return a session for the emulator."""
    options = {"limits": Limits.PRO, "journal": journal, **options}
    return MusicGPTSession(vendor.api_key, base_url=vendor.base_url, **options)


def free_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
