"""`doctor`: what is in order, what is not, and what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import anyio.to_thread
import attrs

from musicgpt_async import (
    APIError,
    AuthenticationError,
    ConfigurationError,
    EndpointNotFoundError,
    ForbiddenError,
    MusicGPTError,
    ProtocolError,
    ServerError,
    TransportError,
    WebhookReceiver,
)
from musicgpt_async._io.api_key import KEY_VARIABLE, find_key
from musicgpt_async._io.http import Transport, map_exceptions
from musicgpt_async._rules import hosts, payloads, protocol
from musicgpt_async._rules.endpoints import DEFAULT_BASE_URL, Endpoints
from musicgpt_async.cli import streams
from musicgpt_async.cli.commands.journal_checks import check_journal
from musicgpt_async.cli.text import plain
from musicgpt_async.cli.usage import UsageError
from musicgpt_async.cli.versions import version_lines
from musicgpt_async.session import BASE_URL_VARIABLE
from musicgpt_async.webhooks import SERVICE

# No task has this id: a poll of it costs nothing and shows whether the key is valid.
NO_TASK = "00000000-0000-0000-0000-000000000000"
TIMEOUT = 15.0  # seconds
KEYS_AT = "get one in the MusicGPT API dashboard"
NO_KEY = f"{KEYS_AT} and export it, or try `musicgpt-async emulate`"


@attrs.frozen
class CheckResult:
    """What one check found."""

    subject: str
    ok: bool
    advice: str = ""

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "BAD "
        return plain(f"{mark}  {self.subject}{f' → {self.advice}' if self.advice else ''}")


async def examine(webhook: str | None, listen: tuple[str, int], journal: str | None = None) -> int:
    """Check everything and say what was found; return the exit code.

    Raises:
        UsageError: The webhook URL is none.
    """
    for line in await anyio.to_thread.run_sync(version_lines):
        streams.write_result(plain(line))
    results = []
    async for result in _run_checks(webhook, listen, journal):
        streams.write_result(str(result))
        results.append(result)
    return 0 if all(result.ok for result in results) else 1


async def _run_checks(
    webhook: str | None, listen: tuple[str, int], journal: str | None
) -> AsyncIterator[CheckResult]:
    found = await anyio.to_thread.run_sync(partial(find_key, keyring=True))
    key = found.key
    yield (
        CheckResult(f"{found.origin} is set", ok=True)
        if key
        else CheckResult(f"{KEY_VARIABLE} is not set", ok=False, advice=NO_KEY)
    )
    base_url = os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
    async for result in _check_api(base_url, key):
        yield result
    if journal is not None:
        async for check in check_journal(journal):
            yield CheckResult(check.subject, ok=not check.advice, advice=check.advice)
    if webhook is not None:
        async for result in _check_webhook(
            webhook, listen, is_rehearsal=hosts.is_loopback(base_url)
        ):
            yield result


async def _check_api(base_url: str, key: str) -> AsyncIterator[CheckResult]:
    try:
        url = hosts.validate_base_url(base_url)
    except ConfigurationError as error:
        yield CheckResult("the API's address", ok=False, advice=error.message)
        return
    transport = Transport(
        key or "none", request_timeout=TIMEOUT, downloads=1, is_allowed=lambda _: False
    )
    transport.open()
    try:
        async for result in _calls(transport, url, Endpoints.of(url), has_key=bool(key)):
            yield result
    finally:
        await transport.close()


async def _calls(
    transport: Transport, url: str, endpoints: Endpoints, *, has_key: bool
) -> AsyncIterator[CheckResult]:
    began = time.monotonic()
    refusal = await _refusal(transport, endpoints.status, protocol.status_query(NO_TASK))
    took = f"{(time.monotonic() - began) * 1000:.0f} ms"
    answered = _check_response(url, refusal, took)
    if answered.ok:
        # A GET costs nothing; a route that takes POST alone answers it with 405, or refuses it.
        missing = await _refusal(transport, endpoints.submit, {})
        if isinstance(missing, EndpointNotFoundError):
            answered = _not_the_api(url, missing)
    yield answered
    if answered.ok and has_key:
        yield _check_key(refusal)


async def _refusal(
    transport: Transport, url: str, query: Mapping[str, str]
) -> MusicGPTError | None:
    """Return what the API says to a call that is about no task, or why it could not be asked."""
    try:
        response = await transport.get(url, query)
        if response.status == 404 and not payloads.is_object(response.body):
            return ProtocolError(
                f"{url} is answered with status 404 and words that are not the API's.", status=404
            )
        protocol.parse_response(response, now=time.time(), subject="A look at a task that is none")
    except MusicGPTError as error:
        return error
    return None


def _check_response(url: str, refusal: MusicGPTError | None, took: str) -> CheckResult:
    if isinstance(refusal, TransportError):
        return CheckResult(f"{url} does not answer", ok=False, advice=refusal.message)
    if isinstance(refusal, ServerError):
        return CheckResult(f"{url} is unwell", ok=False, advice=refusal.message)
    if isinstance(refusal, (EndpointNotFoundError, ProtocolError)):
        return _not_the_api(url, refusal)
    return CheckResult(f"{url} answers in {took}", ok=True)


def _not_the_api(url: str, refusal: MusicGPTError) -> CheckResult:
    return CheckResult(
        f"{url} is not the API", ok=False, advice=f"check {BASE_URL_VARIABLE}: {refusal}"
    )


def _check_key(refusal: MusicGPTError | None) -> CheckResult:
    if isinstance(refusal, AuthenticationError):
        return CheckResult("the key is not accepted", ok=False, advice=f"check it, or {KEYS_AT}")
    if isinstance(refusal, ForbiddenError):
        return CheckResult("the key is wrong, or may not do this", ok=False, advice=refusal.message)
    if refusal is None or isinstance(refusal, APIError):
        return CheckResult("the key is accepted", ok=True)
    return CheckResult("the key could not be checked", ok=False, advice=refusal.message)


async def _check_webhook(
    public_url: str, listen: tuple[str, int], *, is_rehearsal: bool
) -> AsyncIterator[CheckResult]:
    try:
        receiver = WebhookReceiver(public_url)
    except ConfigurationError as error:
        raise UsageError(error.message) from error
    if _is_private(public_url) and not is_rehearsal:
        advice = "the vendor cannot reach it; use an address that the whole internet can"
        yield CheckResult(f"{public_url} is in a private network", ok=False, advice=advice)
        return
    async with AsyncExitStack() as stack:
        try:
            root = await stack.enter_async_context(receiver.serve(*listen))
        except ConfigurationError as error:
            yield CheckResult("the webhook receiver", ok=False, advice=error.message)
            return
        yield CheckResult(f"the webhook receiver listens on {root}", ok=True)
        yield await _check_endpoint(receiver, root)


def _is_private(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return not hosts.is_public(ip_address(host))
    except ValueError:  # a name
        return hosts.is_loopback(url)


async def _check_endpoint(receiver: WebhookReceiver, root: str) -> CheckResult:
    """Ask at the public URL, and post to it as the vendor will."""
    url = receiver.public_url
    try:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT), trust_env=True
        ) as http:
            with map_exceptions(url):
                wrong = await _check_health(http, receiver, root) or await _check_post(
                    http, receiver
                )
    except TransportError as error:
        return CheckResult(
            f"{url} cannot be reached from here",
            ok=False,
            advice=f"{error.message} It has to lead to {root}",
        )
    return wrong or CheckResult(f"{url} leads to this receiver", ok=True)


async def _check_health(
    http: aiohttp.ClientSession, receiver: WebhookReceiver, root: str
) -> CheckResult | None:
    url = receiver.public_url
    async with http.get(url, allow_redirects=False) as response:
        if redirect := _check_redirect(url, response):
            return redirect
        if response.status in (502, 503, 504):
            advice = f"the proxy there does not reach {root}; point it at that"
            return CheckResult(
                f"{url} answers with status {response.status}", ok=False, advice=advice
            )
        line = await _json(response)
    if line.get("service") != SERVICE:
        advice = f"something else answers there (status {response.status}); point it at {root}"
        return CheckResult(f"{url} is not ours", ok=False, advice=advice)
    if line.get("instance") != receiver._instance:
        advice = f"another receiver answers there; end it, or point the URL at {root}"
        return CheckResult(f"{url} is not this process's", ok=False, advice=advice)
    return None


async def _check_post(http: aiohttp.ClientSession, receiver: WebhookReceiver) -> CheckResult | None:
    """Post to a job that is none: only the receiver itself answers 404 with its own words."""
    url = receiver._url_for("doctor")
    async with http.post(url, json={}, allow_redirects=False) as response:
        if redirect := _check_redirect(url, response):
            return redirect
        if response.status == 404 and "error" in await _json(response):
            return None
        return CheckResult(
            f"a POST to {url} is answered with status {response.status}",
            ok=False,
            advice="let POST requests below the URL through to the receiver",
        )


def _check_redirect(url: str, response: aiohttp.ClientResponse) -> CheckResult | None:
    if not 300 <= response.status < 400:
        return None
    target = hosts.without_query(response.headers.get("Location", "nowhere"))
    advice = "a redirect loses what is posted; use the address it leads to, or end the redirect"
    host = f" (host {urlsplit(target).hostname})" if "://" in target else ""
    return CheckResult(f"{url} redirects to {target}{host}", ok=False, advice=advice)


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        found = await response.json(content_type=None)
    except (ValueError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
