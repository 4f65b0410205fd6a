"""`MUSICGPT_PLAN`: what the account may do, said once for sessions and commands."""

from __future__ import annotations

import pytest

from musicgpt_async import ConfigurationError, Limits, MusicGPTSession

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("plan", "limit"), [("free", 1), ("plus", 3), ("pro", 10), (" PRO ", 10), ("", 1)]
)
def test_a_session_takes_its_limits_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, plan: str, limit: int
) -> None:
    """The three plans by name, in any case; without one learning begins at 1."""
    monkeypatch.setenv("MUSICGPT_PLAN", plan)
    assert MusicGPTSession("key").slots == (0, limit)


def test_explicit_limits_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """`limits=` takes precedence over the environment."""
    monkeypatch.setenv("MUSICGPT_PLAN", "nonsense")
    assert MusicGPTSession("key", limits=Limits(parallel=7)).slots == (0, 7)


@pytest.mark.parametrize("plan", ["premium", "free,plus", "10"])
def test_a_plan_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    """The error names the variable and the plans."""
    monkeypatch.setenv("MUSICGPT_PLAN", plan)
    with pytest.raises(ConfigurationError, match=r"MUSICGPT_PLAN.*free, plus, pro"):
        MusicGPTSession("key")
