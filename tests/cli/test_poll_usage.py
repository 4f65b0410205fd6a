from __future__ import annotations

import pytest

from musicgpt_async.cli.poll_usage import PollUsage
from musicgpt_async.events import Polled, Throttled


@pytest.mark.parametrize(
    ("polls", "refused", "plan", "seconds", "words"),
    [
        (40, 0, None, 120, "MUSICGPT_PLAN=plus or pro"),
        (10, 1, None, 120, "MUSICGPT_PLAN=plus or pro"),
        (40, 0, "free", 120, "--webhook URL"),
        (40, 0, "pro", 120, None),
        (10, 0, None, 120, None),
        (20, 1, None, 30, None),
    ],
)
def test_advice_is_given_if_polls_made_the_batch_slow(
    polls: int, refused: int, plan: str | None, seconds: float, words: str | None
) -> None:
    """A batch of a minute that used up its polls shows how to get more, and no other does."""
    usage = PollUsage()
    for _ in range(polls):
        usage.handle(Polled(job_id="1", title="a", status="PROCESSING"))
    for _ in range(refused):
        usage.handle(Throttled(job_id="1", title="a", call="poll", retry_after=None))
    advice = usage.advice(plan, seconds)
    assert (words in advice) if words and advice else (advice is words is None)
