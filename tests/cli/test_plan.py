"""The command and the account's plan."""

from __future__ import annotations

from typing import Any

import pytest

from musicgpt_async.cli.run import make_limits
from musicgpt_async.models import Limits

pytestmark = pytest.mark.anyio


async def test_the_command_heeds_the_plan_of_the_environment(open_vendor: Any) -> None:
    """A plan that does not exist is refused before anything is sent; `--plan` goes first."""
    async with open_vendor(seconds=0.0) as (vendor, shell):
        track = shell.track("song.mp3")
        command = ("extract", "--out", "stems", track)
        wrong = await shell.run(*command, MUSICGPT_PLAN="premium")
        assert wrong.code == 2
        assert "MUSICGPT_PLAN" in wrong.err
        assert not vendor.submissions
        assert (await shell.run(*command, "--plan", "pro", MUSICGPT_PLAN="premium")).code == 0
        assert len(vendor.submissions) == 1


async def test_the_plan_of_the_environment_holds_the_account_to_its_slots(
    open_vendor: Any,
) -> None:
    """With `plus` three tracks run at once and none is refused, though nothing was learned yet."""
    async with open_vendor(seconds=0.5, parallel=3) as (vendor, shell):
        tracks = [shell.track(f"{number}.mp3") for number in range(6)]
        ended = await shell.run("extract", "--out", "stems", *tracks, MUSICGPT_PLAN="plus")
        assert ended.code == 0
        assert vendor.most_unfinished == 3
        assert not vendor.throttled


def test_jobs_change_the_parallel_of_a_plan() -> None:
    """`--jobs` beside a plan keeps the plan's polls."""
    assert make_limits("pro", 2) == Limits(parallel=2, polls_per_minute=500)
    assert make_limits("plus", None) == Limits.PLUS
    assert make_limits(None, 4) == Limits(parallel=4)
    assert make_limits(None, None) is None
