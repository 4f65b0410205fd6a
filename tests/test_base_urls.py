"""Six forms of the base URL on vendors of both generations: where each call goes, and what if not.

==============  =============  =============================  =============================
the base is     on generation  submit, status, webhook,       doctor
                               listing
==============  =============  =============================  =============================
``…/v1``        1, 2           all work                       answers
``…/v2``        2              all work (status on ``/v1``)   answers
no version      2              all work (``/v2``, ``/v1``)    answers
``…/v2``        1              the submit is refused, unpaid  is not the API
no version      1              the submit is refused, unpaid  is not the API
==============  =============  =============================  =============================
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from musicgpt_async import (
    EndpointNotFoundError,
    Limits,
    MusicGPTSession,
    NotFoundError,
    ProtocolError,
    SubmissionUnknownError,
    WebhookReceiver,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

TRACK = ("song.mp3", b"ID3" + b"\x00" * 2000)
# Two hosts, three suffixes: the emulator replaces both hosts, a prefix acts as a proxy.
FORMS = [(prefix, version) for prefix in ("", "/gateway/7") for version in ("/v1", "/v2", "")]


def emulated(generation: Any, prefix: str = "", **settings: Any) -> Emulator:
    """Run an emulator below a proxy's prefix."""
    return Emulator(
        generation=generation,
        path=f"{prefix}/api/public",
        seconds=0.1,
        separate=False,
        stem_bytes=4096,
        **settings,
    )


def base_url(vendor: Emulator, version: str) -> str:
    """The base URL in one of its forms."""
    return vendor.base_url.removesuffix("/v1") + version


def works(generation: int, version: str) -> bool:
    """Whether a form is a base of the generation."""
    return generation == 2 or version == "/v1"


GOOD = [
    (generation, *form) for generation in (1, 2) for form in FORMS if works(generation, form[1])
]


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize(("prefix", "version"), FORMS)
async def test_submit_status_and_download(
    generation: int, prefix: str, version: str, tmp_path: Path
) -> None:
    """A base of the generation brings the stems; any other is found out by the first call."""
    async with (
        emulated(generation, prefix) as vendor,
        MusicGPTSession(
            vendor.api_key, base_url=base_url(vendor, version), limits=Limits.PRO
        ) as session,
    ):
        if works(generation, version):
            files = await session.extract(TRACK, tmp_path, stems=["bass"])
            assert files["bass"].is_file()
            paths = {each.path.removeprefix(f"{prefix}/api/public") for each in vendor.requests}
            assert f"{version or '/v2'}/Extraction" in paths
            assert "/v1/byId" in paths
        else:
            jobs = [session.submit((f"{n}.mp3", b"x" * 100)) for n in range(3)]
            for job in jobs:
                with pytest.raises(EndpointNotFoundError, match="MUSICGPT_BASE_URL"):
                    await job
            assert not vendor.submissions


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("version", ["/v1", "/v2", ""])
async def test_the_status_of_an_unknown_task(generation: int, version: str) -> None:
    """The status is on `/v1` for every form: a task that is unknown is not a missing route."""
    async with (
        emulated(generation) as vendor,
        MusicGPTSession(vendor.api_key, base_url=base_url(vendor, version)) as session,
    ):
        with pytest.raises(NotFoundError):
            await session.attach("nobody").wait(60)


async def test_the_status_below_a_base_that_is_not_the_api() -> None:
    """A route that does not exist ends an attached task with the words for it."""
    async with emulated(1) as vendor:
        base = f"{vendor.url}/somewhere/v1"
        async with MusicGPTSession(vendor.api_key, base_url=base) as session:
            with pytest.raises(EndpointNotFoundError, match="somewhere/v1/byId"):
                await session.attach("t").wait(60)


@pytest.mark.parametrize(("generation", "prefix", "version"), GOOD)
async def test_webhook(generation: int, prefix: str, version: str) -> None:
    """With every form of the base URL, a delivery wakes the job, so that one poll is enough."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    receiver = WebhookReceiver(f"http://127.0.0.1:{port}/hook")
    async with (
        receiver.serve("127.0.0.1", port),
        emulated(generation, prefix) as vendor,
        MusicGPTSession(
            vendor.api_key,
            base_url=base_url(vendor, version),
            limits=Limits.PRO,
            webhooks=receiver,
        ) as session,
    ):
        await session.submit(TRACK).wait(30)
        assert len(vendor.deliveries) == 1
        assert vendor.submissions[0].polls == 1


@pytest.mark.parametrize(("generation", "prefix", "version"), GOOD)
async def test_listing(generation: int, prefix: str, version: str, tmp_path: Path) -> None:
    """A lost response is found in the listing, queried exactly as MusicGPT's node does."""
    journal = tmp_path / "journal.sqlite"
    lost = Fault("submit", "drop_before_answer")
    async with emulated(generation, prefix, listing="strict", faults=[lost]) as vendor:

        def opened() -> MusicGPTSession:
            base = base_url(vendor, version)
            return MusicGPTSession(
                vendor.api_key, base_url=base, journal=journal, limits=Limits.PRO
            )

        track = tmp_path / "song.mp3"
        track.write_bytes(TRACK[1])
        async with opened() as session:
            with pytest.raises(SubmissionUnknownError):
                await session.submit(track)
        async with opened() as session:
            (job,) = await session.resume()
            await job.wait(60)
            assert job.task_id == vendor.submissions[0].task_id
        assert len(vendor.submissions) == 1


async def test_a_308_to_the_newer_host_is_refused_with_its_address() -> None:
    """Neither the track nor the key follows; the words say which base URL to set."""

    async def moved(request: web.Request) -> web.Response:
        place = f"https://api.wav.com{request.path}"
        return web.Response(status=308, headers={"Location": place})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", moved)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}/api/public/v1"
        async with MusicGPTSession("key", base_url=base) as session:
            with pytest.raises(ProtocolError) as caught:
                await session.submit(TRACK)
    finally:
        await runner.cleanup()
    assert caught.value.status == 308
    assert "MUSICGPT_BASE_URL=https://api.wav.com/api/public/v1" in str(caught.value)
