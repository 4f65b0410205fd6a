"""Real workers on a real PostgreSQL: processes that are killed, stopped and refused."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest
from factories.postgres import PostgresServer
from factories.postgres_fixtures import POSTGRES
from factories.watching import until
from psycopg.rows import dict_row

from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

# What a task queue's database is asked for is the same in all versions.
one_version = pytest.mark.parametrize("postgres_url", POSTGRES[-1:], indirect=True)
QUICK = ("--plan", "pro")


def paid(vendor: Emulator) -> Counter[str | None]:
    """Return how often each file was submitted."""
    return Counter(each.upload.file_name for each in vendor.submissions)


def stems(folder: Path) -> set[str]:
    """Return the names of the whole files below a folder."""
    return {path.name for path in folder.glob("*.wav")}


def tasks_of(url: str) -> list[dict[str, Any]]:
    """Return the tasks that are left."""
    sql = "SELECT * FROM procrastinate_jobs WHERE task_name = 'musicgpt:extract' ORDER BY id"
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return connection.execute(sql).fetchall()


def states(url: str) -> list[str]:
    """Return the states of the tasks that are left."""
    return [task["status"] for task in tasks_of(url)]


@pytest.mark.long
async def test_a_killed_worker_costs_nothing_twice(open_vendor: Any, postgres_url: str) -> None:
    """20 tasks, 3 workers, one SIGKILLed: each track is paid for once, and its stems are there.

    The files get another time of change meanwhile, as another machine's copies of them have: what
    says that a track is the same one is the key of its task. The killed worker has one task at a
    time: of two responses that are lost together, the listing cannot say which is which.
    """
    async with open_vendor(seconds=1.0) as (vendor, shell), AsyncExitStack() as stack:
        tracks = [shell.track(f"in/{number}.wav") for number in range(20)]
        made = await shell.run("enqueue", "in", "--database", postgres_url, "-s", "bass")
        assert made.code == 0, made.err
        assert made.err.startswith("20 tasks enqueued: 20 in musicgpt@")
        command = ("worker", "--database", postgres_url, "--out", "o", "--stalled-after", "3")
        command += (*QUICK, "--concurrency")
        killed = await stack.enter_async_context(shell.start(*command, "1"))
        await killed.says("accepted")
        workers = [await stack.enter_async_context(shell.start(*command, "4")) for _ in range(2)]
        for track in tracks:
            os.utime(track, (1, 1))
        killed.process.kill()
        await until(lambda: len(stems(shell.directory / "o")) == 20)
        with anyio.fail_after(150):
            while states(postgres_url):
                await anyio.sleep(0.2)
        for worker in workers:
            worker.interrupt(signal.SIGTERM)
            ended = await worker.ended()
            assert ended.code == 128 + signal.SIGTERM, ended.err
        assert paid(vendor) == Counter(track.name for track in tracks)
        assert stems(shell.directory / "o") == {f"{track.stem} - bass.wav" for track in tracks}


@one_version
async def test_a_stopped_worker_gives_its_tasks_back(open_vendor: Any, postgres_url: str) -> None:
    """SIGTERM detaches the tracks and exits with 143; the next worker pays nothing and ends."""
    async with open_vendor(seconds=3.0) as (vendor, shell):
        for name in ("one", "two"):
            shell.track(f"in/{name}.wav")
        await shell.run("enqueue", "in", "--database", postgres_url, "-s", "bass")
        command = ("worker", "--database", postgres_url, "--out", "o", *QUICK)
        async with shell.start(*command) as running:
            await running.says("accepted", times=2)
            running.interrupt(signal.SIGTERM)
            ended = await running.ended()
        assert ended.code == 128 + signal.SIGTERM
        assert "2 tracks still processing at MusicGPT" in ended.err
        assert "musicgpt-async worker" in ended.err
        assert "Traceback" not in ended.err
        assert states(postgres_url) == ["todo"] * 2
        ended = await shell.run(*command, "--until-empty", "--json")
        assert ended.code == 0, ended.err
        assert {each["track"] for each in ended.tracks} == {"one", "two"}
        assert all(each["ok"] for each in ended.tracks)
        assert set(paid(vendor).values()) == {1}
        assert states(postgres_url) == []


@one_version
async def test_what_the_vendor_fails_is_not_tried_again(
    open_vendor: Any, postgres_url: str
) -> None:
    """The task has failed for good; `enqueue` pays for it again on demand alone."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        vendor.script(Fault("job", "fails", message="not music"))
        track = shell.track("in/song.wav")
        enqueue = ("enqueue", "in", "--database", postgres_url, "-s", "bass")
        work = ("worker", "--database", postgres_url, "--out", "o", "--until-empty", *QUICK)
        await shell.run(*enqueue)
        failed = await shell.run(*work)
        assert failed.code == 1
        assert "not music" in failed.err
        assert "1 task failed and not tried again" in failed.err
        assert states(postgres_url) == ["failed"]
        table, as_json = await shell.together(
            shell.run("jobs", "--database", postgres_url),
            shell.run("jobs", "--database", postgres_url, "--json"),
        )
        assert "Tasks: 0 waiting, 0 running, 1 failed." in table.err
        assert table.out.splitlines()[-1].split() == ["failed", str(track)]
        job, task = as_json.tracks
        assert (job["state"], job["source"]) == ("failed", str(track))
        assert (task["state"], task["source"], task["attempts"]) == ("failed", str(track), 1)

        assert "1 task enqueued" in (await shell.run(*enqueue)).err
        assert (await shell.run(*work)).code == 1
        assert len(vendor.submissions) == 1
        await shell.run(*enqueue, "--retry-failed")
        again = await shell.run(*work)
        assert again.code == 0, again.err
        assert len(vendor.submissions) == 2
        assert states(postgres_url) == []


@one_version
async def test_what_may_pass_is_tried_again_later(open_vendor: Any, postgres_url: str) -> None:
    """A file that is away costs nothing: its task waits for another try."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        track = shell.track("in/song.wav")
        await shell.run("enqueue", "in", "--database", postgres_url, "-s", "bass")
        track.unlink()
        worker = ("worker", "--database", postgres_url, "--out", "o", "--until-empty", *QUICK)
        ended = await shell.run(*worker)
        assert ended.code == 0
        assert "again   song in 0:10: " in ended.err
        (task,) = tasks_of(postgres_url)
        assert (task["status"], task["attempts"]) == ("todo", 1)
        assert vendor.submissions == []


@one_version
async def test_a_wrong_key_ends_the_worker_and_fails_no_task(
    open_vendor: Any, postgres_url: str
) -> None:
    """What is wrong with the account is no track's failure: exit code 1, and all tasks wait."""
    async with open_vendor(seconds=0.1) as (_, shell):
        for number in range(3):
            shell.track(f"in/{number}.wav")
        await shell.run("enqueue", "in", "--database", postgres_url)
        ended = await shell.run(
            "worker", "--database", postgres_url, "--out", "o", *QUICK, MUSICGPT_API_KEY="wrong"
        )
        assert ended.code == 1
        assert "Check MUSICGPT_API_KEY" in ended.err
        assert states(postgres_url) == ["todo"] * 3


@one_version
async def test_paths_wait_for_their_site_and_urls_do_not(
    open_vendor: Any, postgres_url: str
) -> None:
    """A worker of another site takes the URL and leaves the path to workers that have it."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        track = shell.track("in/song.wav")
        url = "https://example.com/other.mp3"
        await shell.run("enqueue", track, url, "--database", postgres_url, "--site", "here")
        worker = ("worker", "--database", postgres_url, "--out", "o", "--until-empty", *QUICK)
        there = await shell.run(*worker, "--site", "there", "--json")
        assert [each["source"] for each in there.tracks] == [url]
        (task,) = tasks_of(postgres_url)
        assert (task["queue_name"], task["args"]["source"]) == ("musicgpt@here", str(track))
        here = await shell.run(*worker, "--site", "here", "--json")
        assert [each["source"] for each in here.tracks] == [str(track)]
        assert len(vendor.submissions) == 2


@one_version
async def test_a_name_that_is_no_unicode_comes_back_as_it_was(
    open_vendor: Any, postgres_url: str
) -> None:
    """PostgreSQL stores no invalid Unicode; the task of such a file is worked on all the same."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        (shell.directory / "in").mkdir()
        Path(os.fsdecode(os.fsencode(shell.directory) + b"/in/\xff 1%.wav")).write_bytes(b"~" * 999)
        made = await shell.run("enqueue", "in", "--database", postgres_url, "-s", "bass")
        assert made.code == 0, made.err
        worker = ("worker", "--database", postgres_url, "--out", "o", "--until-empty", *QUICK)
        ended = await shell.run(*worker)
        assert ended.code == 0, ended.err
        assert len(vendor.submissions) == 1


@pytest.mark.parametrize("postgres_server", POSTGRES[-1:], indirect=True)
async def test_a_worker_outlives_a_crash_of_its_database(
    open_vendor: Any, postgres_server: PostgresServer
) -> None:
    """It says that it tries again, takes tasks when that is back, and pays nothing twice."""
    url = postgres_server.url()
    async with open_vendor(seconds=0.1) as (vendor, shell):
        out = shell.directory / "o"
        async with shell.start("worker", "--database", url, "--out", "o", *QUICK) as running:
            first, second = shell.track("first.wav"), shell.track("second.wav")
            await shell.run("enqueue", first, "--database", url, "-s", "bass")
            await until(lambda: stems(out) == {"first - bass.wav"})
            with anyio.fail_after(150):
                while states(url):
                    await anyio.sleep(0.2)
            await anyio.to_thread.run_sync(postgres_server.stop, "immediate")
            await running.says("Trying again in 1 s.")
            await anyio.to_thread.run_sync(postgres_server.start)
            await shell.run("enqueue", second, "--database", url, "-s", "bass")
            await until(lambda: stems(out) == {"first - bass.wav", "second - bass.wav"})
            running.interrupt(signal.SIGTERM)
            ended = await running.ended()
        assert ended.code == 128 + signal.SIGTERM, ended.err
        assert paid(vendor) == Counter(["first.wav", "second.wav"])
