"""Partial files: full disks, other processes, cancellation, and users who remove files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from factories.downloads import LONG, MIB, Get, Host, ignore, is_empty_directory, mp3
from factories.watching import held, until

from musicgpt_async._io.download import Downloader
from musicgpt_async._io.partial_file import PartialFile, matches
from musicgpt_async._io.response_body import iter_chunks
from musicgpt_async.errors import DownloadError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_backoff")]


async def test_a_target_that_cannot_be_written_is_an_error(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A directory in its place, a file as its directory, a name too long: clear, and no litter."""
    (tmp_path / "dir.mp3").mkdir()
    (tmp_path / "file").touch()
    before = set(tmp_path.iterdir())
    async with serve(Host(mp3(100))) as server:
        for target in (
            tmp_path / "dir.mp3",
            tmp_path / "file" / "a.mp3",
            tmp_path / ("x" * 300 + ".mp3"),
        ):
            with pytest.raises(DownloadError, match="cannot be written"):
                await get(server.url, target)
    assert set(tmp_path.iterdir()) == before
    assert not held(tmp_path)


_FULL = """
import asyncio, resource, sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from musicgpt_async._io.download import Downloader
from musicgpt_async._io.http import Transport
from musicgpt_async._io.response_body import iter_chunks
from musicgpt_async.errors import DownloadError

async def main(url, target):
    transport = Transport("key", request_timeout=30, downloads=1, is_allowed=lambda _: True)
    transport.open()
    with ThreadPoolExecutor(2) as executor:
        downloader = Downloader(stream=transport.stream, executor=executor, allow_loopback=True,
                                digests=True, read_chunks=partial(iter_chunks, read_timeout=30))
        try:
            fetched = await downloader.download(url, Path(target), content_key="a task",
                                                progress=lambda *_: None)
            print(fetched.size, fetched.sha256)
        except DownloadError as error:
            print(error)
    await transport.close()

if sys.argv[3] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
asyncio.run(main(*sys.argv[1:3]))
"""


async def _in_a_child(url: str, target: Path, limit: int) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _FULL,
        url,
        str(target),
        str(limit),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_a_file_beyond_the_limit_leaves_nothing(serve: Any, tmp_path: Path) -> None:
    """If the system accepts no more bytes, the error says so and no partial file remains."""
    host = Host(mp3(3 * MIB))
    async with serve(host) as server:
        said = await _in_a_child(server.url, tmp_path / "a.mp3", MIB + 100)
    assert "cannot be written: File too large" in said
    assert is_empty_directory(tmp_path)
    assert len(host.requests) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a mebibyte."""
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False, capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("this user may mount nothing")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


async def test_a_full_disk_says_so_and_keeps_no_half_file(serve: Any, small_disk: Path) -> None:
    """The error advises to free some space, and the partial file's own space is freed."""
    host = Host(mp3(3 * MIB))
    async with serve(host) as server:
        said = await _in_a_child(server.url, small_disk / "a.mp3", 0)
    assert "the disk is full; free some space" in said
    assert is_empty_directory(small_disk)
    assert len(host.requests) == 1


async def test_what_killed_processes_left_is_removed(serve: Any, get: Get, tmp_path: Path) -> None:
    """Old temporary files of this target go, but for those that another process is writing."""
    names = (".a.mp3.0123abcd.part", ".b.mp3.0123abcd.part", "a.mp3.part", ".a.mp3.part2")
    for name in (*names, ".a.mp3.4567abcd.part"):
        (tmp_path / name).touch()
    with (tmp_path / ".a.mp3.4567abcd.part").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with serve(Host(mp3(100))) as server:
            await get(server.url, tmp_path / "a.mp3")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names[1:], ".a.mp3.4567abcd.part", "a.mp3"}


def test_what_was_left_of_a_complete_file_is_removed(tmp_path: Path) -> None:
    """A file that is there is not downloaded again, and temporary files of it go."""
    target, content = tmp_path / "a.mp3", mp3(100)
    target.write_bytes(content)
    (tmp_path / ".a.mp3.0123abcd.part").touch()
    assert not matches(target, len(content), "other")
    assert len(list(tmp_path.iterdir())) == 2
    assert matches(target, len(content), hashlib.sha256(content).hexdigest())
    assert list(tmp_path.iterdir()) == [target]


@asynccontextmanager
async def _child(url: str, target: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process that downloads; it has ended at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FULL, url, str(target), "0", stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _opened_by(process: asyncio.subprocess.Process, folder: Path) -> None:
    """Wait until a process has a temporary file in a folder open."""

    def files() -> list[str]:
        with contextlib.suppress(OSError):  # a descriptor may be closed during the listing
            return [str(each.readlink()) for each in Path(f"/proc/{process.pid}/fd").iterdir()]
        return []

    await until(lambda: any(each.startswith(f"{folder}/.a.mp3.") for each in files()))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("first", ["completes it", "is killed"])
async def test_two_processes_make_one_file_of_one_download(
    first: str, serve: Any, tmp_path: Path
) -> None:
    """The second process waits for the first: it finds the complete file, or starts over."""
    host, half, go_on = Host(mp3(3 * MIB)), anyio.Event(), anyio.Event()
    folder = tmp_path / "stems"

    async def in_two_halves(peer: Any, _: Any) -> None:
        headers = {"Content_Type": "audio/mpeg", "Content_Length": str(len(host.data))}
        await peer.answer(200, host.data[:MIB], **headers)
        half.set()
        await go_on.wait()
        await peer.say(host.data[MIB:])

    host.plan = [in_two_halves]
    async with serve(host) as server, _child(server.url, folder / "a.mp3") as one:
        with anyio.fail_after(LONG):
            await half.wait()
            async with _child(server.url, folder / "a.mp3") as other:
                await _opened_by(other, folder)
                [part] = folder.iterdir()  # they have one temporary file between them
                assert len(host.requests) == 1
                if first == "is killed":
                    one.kill()
                go_on.set()
                said = [(await each.communicate())[0].decode().split() for each in (one, other)]
    assert not part.exists()
    assert [path.name for path in folder.iterdir()] == ["a.mp3"]
    assert (folder / "a.mp3").read_bytes() == host.data
    assert len(host.requests) == (1 if first == "completes it" else 2)
    assert said[1] == [str(len(host.data)), hashlib.sha256(host.data).hexdigest()]


async def test_other_content_for_the_same_name_is_not_waited_for(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A stalled download does not delay another job; each writes its own file."""
    host = Host(mp3(MIB))
    async with stalling(serve) as (stuck, sent), serve(host) as server:
        task = asyncio.create_task(get(stuck.url, tmp_path / "a.mp3", content_key="one task"))
        await sent.wait()
        await get(server.url, tmp_path / "a.mp3", content_key="another task")
        assert (tmp_path / "a.mp3").read_bytes() == host.data
        assert len(list(tmp_path.glob(".*.part"))) == 1
        task.cancel()
        await asyncio.wait([task])
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp3"]


async def test_a_wait_for_another_process_may_be_cancelled(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """Cancelling the wait leaves the other process's temporary file unchanged."""
    async with stalling(serve) as (server, sent):
        task = asyncio.create_task(get(server.url, tmp_path / "a.mp3"))
        await sent.wait()
        [part] = tmp_path.iterdir()
        with anyio.move_on_after(0.3) as scope:
            await get(server.url, tmp_path / "a.mp3")
        assert scope.cancelled_caught
        assert server.connections == 1
        assert part.exists()
        task.cancel()
        await asyncio.wait([task])


# Cancelling.


@asynccontextmanager
async def stalling(serve: Any) -> AsyncIterator[tuple[Any, anyio.Event]]:
    """A host that sends the first mebibytes and no more."""
    sent = anyio.Event()
    data = mp3(8 * MIB)

    async def half(peer: Any) -> None:
        await peer.request()
        await peer.answer(200, data[: 2 * MIB], Content_Length=str(len(data)))
        sent.set()
        await anyio.sleep(LONG)

    async with serve(half) as server:
        yield server, sent


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancelling_leaves_no_part(how: str, serve: Any, get: Get, tmp_path: Path) -> None:
    """A cancelled download leaves no partial file and no open descriptor."""
    async with stalling(serve) as (server, _):
        written = anyio.Event()

        async def download() -> None:
            await get(server.url, tmp_path / "a.mp3", progress=lambda *_: written.set())

        if how == "task":
            task = asyncio.create_task(download())
            await written.wait()
            assert list(tmp_path.glob(".*.part"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(download)
                await written.wait()
                assert list(tmp_path.glob(".*.part"))
                group.cancel_scope.cancel()
        await until(lambda: is_empty_directory(tmp_path))


class _Slow(ThreadPoolExecutor):
    """Threads that finish their work and report it only when they are let."""

    def __init__(self) -> None:
        super().__init__(1)
        self.worked, self.free = threading.Event(), threading.Event()

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def slowly() -> Any:
            try:
                return call(*args, **kwargs)
            finally:
                self.worked.set()
                self.free.wait(LONG)

        return super().submit(slowly)


async def test_cancelling_while_the_part_is_made_leaves_none(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A download cancelled in its first moment leaves no empty part and no descriptor."""
    async with serve(Host(mp3(100))) as server:
        with _Slow() as threads:
            task = asyncio.create_task(get(server.url, tmp_path / "a.mp3", executor=threads))
            await until(threads.worked.is_set)
            task.cancel()
            await anyio.lowlevel.checkpoint()
            threads.free.set()
            with pytest.raises(asyncio.CancelledError):
                await task
    try:
        await until(lambda: is_empty_directory(tmp_path), within=2)
    finally:
        for fd in held(tmp_path):
            os.close(int(fd))


# Waiting downloads, closed sessions, and users who remove files.


@asynccontextmanager
async def dripping(
    serve: Any, data: bytes, iter_chunks: int
) -> AsyncIterator[tuple[Any, anyio.Event]]:
    """A host that sends a file in pieces, the last one only when it is let."""
    let = anyio.Event()

    async def drip(peer: Any) -> None:
        await peer.request()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        await peer.say(head.encode())
        step = len(data) // iter_chunks
        for start in range(0, len(data) - step, step):
            await peer.say(data[start : start + step])
            await anyio.sleep(0.1)
        await let.wait()
        await peer.say(data[step * (iter_chunks - 1) :])

    async with serve(drip) as server:
        yield server, let


async def test_a_file_waits_for_its_turn_as_long_as_it_takes(
    serve: Any, lanes: Any, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """A file that waits behind one of three timeouts' duration does not time out."""
    data = mp3(16_000)
    async with (
        dripping(serve, data, 16) as (server, let),
        lanes(downloads=1, request_timeout=0.5) as transport,
        anyio.create_task_group() as both,
    ):
        let.set()
        downloader = Downloader(
            stream=transport.stream,
            executor=executor,
            allow_loopback=True,
            digests=False,
            read_chunks=partial(iter_chunks, read_timeout=0.5),
        )
        for name in ("a", "b"):
            url, target = f"{server.url}/{name}.mp3", tmp_path / f"{name}.mp3"
            both.start_soon(partial(downloader.download, url, target, progress=ignore))
        await until(lambda: server.connections)
        # Cancelled while waiting: a request that was created too early would never be awaited.
        with anyio.move_on_after(0.2):
            await downloader.download(f"{server.url}/c.mp3", tmp_path / "c.mp3", progress=ignore)
    assert server.most_open == 1
    assert [(tmp_path / f"{name}.mp3").read_bytes() == data for name in "ab"] == [True, True]


async def test_a_download_whose_threads_are_gone_frees_its_file(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A session that closes amid a download leaves no lock for its successor to wait at."""
    data = mp3(16_000)
    target = tmp_path / "a.mp3"
    async with dripping(serve, data, 2) as (server, let):
        threads = ThreadPoolExecutor(1)
        first = asyncio.create_task(get(f"{server.url}/a.mp3", target, executor=threads))
        await until(lambda: list(tmp_path.glob(".*.part")))
        threads.shutdown(wait=True)
        let.set()
        with pytest.raises(Exception, match=r"shutdown|closed"):
            await first
        assert not list(tmp_path.iterdir())
        with anyio.fail_after(30):
            await get(f"{server.url}/a.mp3", target)
    assert target.read_bytes() == data


@pytest.mark.skipif(os.name == "nt", reason="nobody can remove a file in use")
async def test_a_temporary_file_that_is_taken_away_never_gets_the_final_name(
    serve: Any, get: Get, tmp_path: Path
) -> None:
    """A temporary file that was removed and created again by others is not renamed."""
    data = mp3(16_000)
    target = tmp_path / "a.mp3"
    async with dripping(serve, data, 2) as (server, let):
        first = asyncio.create_task(get(f"{server.url}/a.mp3", target))
        await until(lambda: list(tmp_path.glob(".*.part")))
        (part,) = tmp_path.glob(".*.part")
        part.unlink()
        part.write_bytes(b"half")
        let.set()
        with pytest.raises(DownloadError, match="was removed"):
            await first
    assert not target.exists()


def test_a_large_directory_is_not_listed_for_each_file(tmp_path: Path) -> None:
    """Looking for leftovers takes a bounded share of the time, however many stems there are."""
    listings = 0

    def count(event: str, _: tuple[object, ...]) -> None:
        nonlocal listings
        listings += event == "os.scandir"

    for number in range(10_000):
        (tmp_path / f"{number}.wav").touch()
    sys.addaudithook(count)  # it stays, and costs nothing
    for number in range(100):
        PartialFile.create(tmp_path / f"{number}.wav", "key", digest=False).discard()
    assert 1 <= listings <= 50
