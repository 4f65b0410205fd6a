from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from musicgpt_async.cli import main
from musicgpt_async.emulator import Fault

QUICK = ("--plan", "pro")


@pytest.mark.parametrize("command", ["resume", "jobs"])
def test_where_no_journal_is_nothing_is_made(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`resume` and `jobs` refuse a directory without a journal and leave none behind."""
    assert main([command, "--out", str(tmp_path / "nowhere")]) == 2
    assert "no journal" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", ["resume", "jobs", "report"])
@pytest.mark.parametrize("arguments", [[], ["stems"], ["--out", "stems"], ["stems", "-o", "stems"]])
def test_the_directory_is_named_alike_everywhere(
    command: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By itself, with --out or not at all: it is `stems`, and two different ones are refused."""
    monkeypatch.chdir(tmp_path)
    assert main([command, *arguments]) == 2
    assert re.search(r"(in|of) stems[;:]", capsys.readouterr().err)
    assert main([command, "here", "--out", "there"]) == 2
    assert "here and --out there" in capsys.readouterr().err


@pytest.mark.anyio
async def test_without_out_the_stems_are_in_stems(open_vendor: Any) -> None:
    """`extract` writes to `stems`, and `jobs` and `report` look there."""
    async with open_vendor(seconds=0.1) as (_, shell):
        track = shell.track("song.wav")
        done = await shell.run("extract", track, "-s", "bass", *QUICK)
        assert done.code == 0, done.err
        assert (shell.directory / "stems/song - bass.wav").exists()
        jobs, report = await shell.together(shell.run("jobs"), shell.run("report"))
        assert "song.wav" in jobs.out
        assert report.out == "stems/report.html\n"


@pytest.mark.anyio
async def test_jobs_tells_what_the_journal_holds(open_vendor: Any) -> None:
    """`jobs` prints a line for each job, or its JSON; `resume` then finds nothing to do."""
    async with open_vendor(seconds=0.1) as (vendor, shell):
        track = shell.track("song.wav")
        done = await shell.run("extract", track, "--out", "o", "-s", "bass", *QUICK)
        assert done.code == 0
        (submission,) = vendor.submissions
        table, as_json, resumed = await shell.together(
            shell.run("jobs", "--out", "o"),
            shell.run("jobs", "--out", "o", "--json"),
            shell.run("resume", "--out", "o", *QUICK),
        )
        assert (table.code, table.err) == (0, "")
        header, line = table.out.splitlines()
        assert header.split() == ["STATE", "TASK", "CREDITS", "FILES", "TRACK"]
        assert line.split() == [
            "done", submission.task_id, f"{submission.cost:g}", "1", "song.wav",
        ]  # fmt: skip
        (job,) = as_json.tracks
        assert job["source"] == str(track)
        assert job["stems"] == ["bass"]
        assert job["credits_charged"] == submission.cost
        assert job["files"] == {"bass": {"wav": str(shell.directory / "o/song - bass.wav")}}
        assert not job["in_work"]
        assert resumed.code == 0
        assert "nothing to resume" in resumed.err
        assert len(vendor.submissions) == 1


@pytest.mark.anyio
async def test_resume_takes_up_a_lost_track_with_the_task_that_was_found(open_vendor: Any) -> None:
    """An unknown track is shown with its id and the command that resumes it, for nothing."""
    async with open_vendor(seconds=0.1, listing=False) as (vendor, shell):
        vendor.script(Fault("submit", "drop_before_answer"))
        lost = await shell.run("extract", shell.track("song.wav"), "--out", "o", "-s", "bass")
        assert lost.code == 1
        assert re.search("^unknown song was sent whole", lost.err, re.MULTILINE)
        assert "1 track unknown:" in lost.err
        (job,) = (await shell.run("jobs", "--out", "o", "--json")).tracks
        assert job["state"] == "unknown"
        jobs = await shell.run("jobs", "--out", "o")
        assert "1 track" in jobs.err
        for said in (lost.err, jobs.out):
            assert f"`resume --found {job['id']}=TASK_ID` downloads it" in said
            assert "--force submits it again" in said
            assert "session." not in said
        assert "1 track not finished; to resume them: musicgpt-async resume --out o" in jobs.err
        (submission,) = vendor.submissions
        wrong, found = f"nobody={submission.task_id}", f"{job['id']}={submission.task_id}"
        refused = await shell.run("resume", "--out", "o", "--found", wrong, *QUICK)
        assert refused.code == 1
        assert "has no job 'nobody'" in refused.err
        resumed = await shell.run("resume", "--out", "o", "--found", found, "--json", *QUICK)
        assert resumed.code == 0, resumed.err
        assert [track["task_id"] for track in resumed.tracks] == [submission.task_id]
        assert (shell.directory / "o/song - bass.wav").exists()
        assert len(vendor.submissions) == 1
        again = await shell.run("resume", "--out", "o", "--found", found, *QUICK)
        assert again.code == 0, again.err  # the same command again, as after a Ctrl-C
        assert len(vendor.submissions) == 1


@pytest.mark.parametrize("found", ["job", "=task", "job=", " = "])
def test_what_was_found_has_to_be_a_pair(
    found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--found` without both of its halves is wrong usage, and says how it looks."""
    assert main(["resume", "--out", str(tmp_path), "--found", found]) == 2
    assert "JOB_ID=TASK_ID" in capsys.readouterr().err
