"""Messages of the library, as users of the command read them."""

from __future__ import annotations

import pytest

from musicgpt_async import AuthenticationError
from musicgpt_async.cli.messages import for_shell


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        (f"song was refused. {AuthenticationError.advice}", "Check MUSICGPT_API_KEY."),
        (
            "song was detached. It goes on at MusicGPT: session.attach('5b7a') follows it again.",
            "`resume` or `fetch 5b7a` downloads it.",
        ),
        ("Use another key, or force=True to pay for it again.", "or --force to pay"),
    ],
)
def test_advice_names_options_of_the_command(said: str, advised: str) -> None:
    """Users of the command read no Python."""
    shown = for_shell(said)
    assert advised in shown
    assert "session" not in shown.lower()
    assert "=True" not in shown
