"""Which sessions share an account."""

from __future__ import annotations

from musicgpt_async._rules.accounts import compute_account


def test_an_account_is_a_key_at_an_api() -> None:
    """The same key at the same address is one account; another key or another address is not."""
    account = compute_account("key", "https://api.example")
    assert account == compute_account("key", "https://api.example")
    others = {compute_account("ke", "yhttps://api.example"), compute_account("key", "https://b")}
    assert account not in others
    assert len(others) == 2
    assert "key" not in account
