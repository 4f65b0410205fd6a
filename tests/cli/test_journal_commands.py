from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from musicgpt_async.cli import main

QUICK = ("--plan", "pro")


@pytest.mark.parametrize("command", ["resume", "jobs"])
def test_where_no_journal_is_nothing_is_made(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`resume` and `jobs` refuse a directory without a journal and leave none behind."""
    assert main([command, "--out", str(tmp_path / "nowhere")]) == 2
    assert "no journal" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


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
        assert table.code == 0
        header, line = table.out.splitlines()
        assert header.split() == ["STATE", "TASK", "CREDITS", "FILES", "TRACK"]
        assert line.split() == [
            "completed", submission.task_id, f"{submission.cost:g}", "1", "song.wav",
        ]  # fmt: skip
        (job,) = as_json.tracks
        assert job["source"] == str(track)
        assert job["stems"] == ["bass"]
        assert job["credits_charged"] == submission.cost
        assert job["files"] == [str(shell.directory / "o/song - bass.wav")]
        assert not job["in_work"]
        assert resumed.code == 0
        assert "nothing to take up" in resumed.err
        assert len(vendor.submissions) == 1
