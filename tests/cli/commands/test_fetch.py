"""`fetch`: tasks that were submitted elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories.watching import until

from musicgpt_async import MusicGPTSession
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

QUICK = ("--plan", "pro")
UNKNOWN = "00000000-0000-0000-0000-000000000000"


async def submit(vendor: Emulator, name: str, stem: str) -> str:
    """Submit a track as another program does, and return its task."""
    async with MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as session:
        job = session.submit((name, name.encode() * 99), stems=[stem])
        accepted = await job.accepted()
        job.cancel()
        return accepted.task_id


async def test_tasks_of_another_program_are_downloaded_and_journalled(open_vendor: Any) -> None:
    """Each task is waited for and downloaded once; the same command again downloads nothing."""
    async with open_vendor(seconds=0.5) as (vendor, shell):
        tasks = [await submit(vendor, "a.wav", "bass"), await submit(vendor, "b.wav", "vocals")]
        fetched = await shell.run("fetch", *tasks, tasks[0], "--out", "o", "--json", *QUICK)
        assert fetched.code == 0, fetched.err
        assert "2 tracks done" in fetched.err
        assert {track["task_id"] for track in fetched.tracks} == set(tasks)
        there = {path.name for path in (shell.directory / "o").glob("*.wav")}
        assert there == {f"{tasks[0]} - bass.wav", f"{tasks[1]} - vocals.wav"}
        downloads = sum("/files" in request.path for request in vendor.requests)
        again = await shell.run("fetch", *tasks, "--out", "o", *QUICK)
        assert again.code == 0, again.err
        assert sum("/files" in request.path for request in vendor.requests) == downloads
        table = await shell.run("jobs", "--out", "o", "--json")
        assert [(job["task_id"], job["state"]) for job in table.tracks] == [
            (task, "done") for task in tasks
        ]
        assert len(vendor.submissions) == 2


async def test_an_interrupted_fetch_is_resumed(open_vendor: Any) -> None:
    """What Ctrl-C left running is in the journal, and `resume` downloads it."""
    async with open_vendor(seconds=3.0) as (vendor, shell):
        task = await submit(vendor, "a.wav", "bass")
        async with shell.start("fetch", task, "--out", "o", *QUICK) as running:
            await until(lambda: vendor.polls >= 2)
            running.interrupt()
            ended = await running.ended()
        assert ended.code == 130
        assert "resume --out o" in ended.err
        resumed = await shell.run("resume", "--out", "o", *QUICK)
        assert resumed.code == 0, resumed.err
        assert (shell.directory / f"o/{task} - bass.wav").exists()


async def test_an_unknown_task_is_one_line_and_stops_no_other(open_vendor: Any) -> None:
    """A task that does not exist fails alone, is not journalled, and ends with 1."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        task = await submit(vendor, "a.wav", "bass")
        fetched = await shell.run("fetch", UNKNOWN, task, "--out", "o", "--quiet", *QUICK)
        assert fetched.code == 1
        assert fetched.err.count("\n") == 1
        assert f"failed  MusicGPT does not know the task {UNKNOWN}; check the id" in fetched.err
        assert (shell.directory / f"o/{task} - bass.wav").exists()
        table = await shell.run("jobs", "--out", "o", "--json")
        assert [job["task_id"] for job in table.tracks] == [task]


async def test_a_task_that_failed_at_the_vendor_fails_here(open_vendor: Any) -> None:
    """The vendor's own words are shown, and nothing is submitted again."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        vendor.script(Fault("job", "fails", message="Cannot decode"))
        task = await submit(vendor, "a.wav", "bass")
        for _ in range(2):
            fetched = await shell.run("fetch", task, "--out", "o", *QUICK)
            assert fetched.code == 1
            assert "Cannot decode" in fetched.err
        assert len(vendor.submissions) == 1


async def test_without_a_journal_it_still_downloads(open_vendor: Any) -> None:
    """Where a journal cannot be kept, the task is attached to and downloaded all the same."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        task = await submit(vendor, "a.wav", "bass")
        missing = shell.directory / "missing"
        missing.mkdir()
        (missing / "sqlalchemy.py").write_text("raise ModuleNotFoundError(name='sqlalchemy')")
        fetched = await shell.run("fetch", task, "--out", "o", *QUICK, PYTHONPATH=str(missing))
        assert fetched.code == 0, fetched.err
        assert (shell.directory / f"o/{task} - bass.wav").exists()


@pytest.mark.parametrize(("arguments", "words"), [([" "], "not a task id"), ([], "TASK")])
async def test_what_is_no_task_is_wrong_usage(
    arguments: list[str], words: str, tmp_path: Path, shell: Any
) -> None:
    """A blank id, or none, is refused before anything is asked."""
    ended = await shell.run("fetch", *arguments, "--out", "o", MUSICGPT_API_KEY="k")
    assert ended.code == 2
    assert words in ended.err
    assert not (tmp_path / "o").exists()
