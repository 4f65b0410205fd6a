"""Temporary files whose name is taken, and names that are long in bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from factories.downloads import LONG, Get, Host, mp3

from musicgpt_async._io.partial_file import _sibling
from musicgpt_async.errors import DownloadError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_backoff")]

KEY = "a task"  # what the `get` fixture downloads


def temporary(target: Path) -> Path:
    """Return the name of the temporary file, which is predictable."""
    return _sibling(target, hashlib.sha256(KEY.encode()).hexdigest()[:8])


async def test_a_planted_link_is_not_followed(serve: Any, get: Get, tmp_path: Path) -> None:
    """A link under the temporary name would have its target emptied and written over."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    temporary(tmp_path / "out" / "a.mp3").symlink_to(victim)
    async with serve(Host(mp3(1000))) as server:
        with pytest.raises(DownloadError, match="cannot be written"):
            await get(server.url, tmp_path / "out" / "a.mp3")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "out" / "a.mp3").exists()


async def test_a_planted_pipe_is_refused(serve: Any, get: Get, tmp_path: Path) -> None:
    """What is not a regular file is said so, and nothing waits for its other end."""
    os.mkfifo(temporary(tmp_path / "a.mp3"))
    async with serve(Host(mp3(1000))) as server:
        with anyio.fail_after(LONG), pytest.raises(DownloadError, match="not a regular file"):
            await get(server.url, tmp_path / "a.mp3")


async def test_a_link_among_leftovers_hurts_nothing(serve: Any, get: Get, tmp_path: Path) -> None:
    """Cleaning up what a killed process left does not follow links either."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".a.mp3.01234567.part").symlink_to(victim)
    async with serve(Host(mp3(1000))) as server:
        await get(server.url, tmp_path / "a.mp3")
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("letter", ["é", "歌", "🎵", "x"])
async def test_the_longest_name_has_a_temporary_name_too(
    letter: str, serve: Any, get: Get, tmp_path: Path
) -> None:
    """Names are bounded in bytes: what fits the disk as a name fits it while it is written."""
    name = letter * ((255 - len(".mp3")) // len(letter.encode())) + ".mp3"
    host = Host(mp3(1000))
    async with serve(host) as server:
        await get(server.url, tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == [name]
