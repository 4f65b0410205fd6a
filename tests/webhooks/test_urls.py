"""Tokens and the URLs made from them."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from factories.endpoints import PUBLIC_URL, Endpoint, listen

from musicgpt_async.errors import ConfigurationError
from musicgpt_async.webhooks import WebhookReceiver

pytestmark = pytest.mark.anyio


def test_tokens_are_unguessable_or_derived() -> None:
    """Without a secret each token is new; with one it is the same for a job after a restart."""
    assert len({WebhookReceiver(PUBLIC_URL)._token_for("job") for _ in range(3)}) == 3
    first, again = (WebhookReceiver(PUBLIC_URL, secret=s) for s in ("s3cret", b"s3cret"))
    assert first._token_for("job") == again._token_for("job")
    assert first._token_for("job") != first._token_for("job2")
    assert first._token_for("job") != WebhookReceiver(PUBLIC_URL, secret="x")._token_for("job")
    assert "job" not in first._token_for("job")


async def test_a_delivery_between_restart_and_resume_is_kept() -> None:
    """With a secret, a new process accepts a delivery for a job that it has not resumed yet."""
    token = WebhookReceiver(PUBLIC_URL, secret="s3cret")._token_for("job")
    receiver, got = WebhookReceiver(PUBLIC_URL, secret="s3cret"), []
    other = WebhookReceiver(PUBLIC_URL, secret="another")._token_for("job")
    async with receiver.serve(port=0) as root, aiohttp.ClientSession() as client:
        opened = Endpoint(receiver, root, token, got, client)
        assert (await opened.send("POST", "/TOKEN", b'{"task_id": "t"}'))[0] == 200
        assert (await opened.send("POST", f"/{other}", b"{}"))[0] == 404
        listen(receiver._queue, token, got)
    assert got == [{"task_id": "t"}]


def test_the_receiver_shows_no_secret() -> None:
    """Its repr has the URL, not the secret."""
    assert repr(WebhookReceiver(PUBLIC_URL, secret="s3cret")) == f"WebhookReceiver('{PUBLIC_URL}')"


@pytest.mark.parametrize(
    ("public_url", "url"),
    [
        ("https://x.example", "https://x.example/T"),
        ("https://x.example/", "https://x.example/T"),
        ("http://127.0.0.1:8080/a/b/", "http://127.0.0.1:8080/a/b/T"),
        ("https://[::1]:1/@me", "https://[::1]:1/@me/T"),
    ],
)
def test_urls_are_joined_with_one_slash(public_url: str, url: str) -> None:
    """A job's URL is the public URL, one slash and the token."""
    assert WebhookReceiver(public_url)._url_for("T") == url


@pytest.mark.parametrize(
    "public_url",
    [
        *("", "x.example", "/hooks", "ftp://x.example", "https://", "https:///hooks", "https:x"),
        *("https://x.example?a", "https://x.example/?", "https://x.example/#a", "https://a b.c"),
        *("https://u:p@x.example", "https://x.example/\n", "https://x:99999", "https://[", None),
    ],
)
def test_an_unusable_public_url_is_refused(public_url: Any) -> None:
    """A URL to which MusicGPT cannot post is refused, with an example of a valid one."""
    with pytest.raises(ConfigurationError, match=r"must look like https://example.com/musicgpt"):
        WebhookReceiver(public_url)


def test_an_empty_secret_is_refused() -> None:
    """An empty secret would make tokens that can be derived by anyone."""
    with pytest.raises(ConfigurationError, match="secret is empty"):
        WebhookReceiver(PUBLIC_URL, secret="")
