"""A pytest plugin: the emulator as a fixture, and time that runs as fast as a test wants.

It is found by pytest as soon as the package is installed with its extra ``emulator``::

    @pytest.mark.musicgpt(seconds=0.1, faults=[Fault("byId", "status", status=503)])
    async def test_my_service(musicgpt_session):
        async with musicgpt_session as session:
            assert (await session.submit(("song.mp3", b"ID3..."))).stems

The fixtures are plain ones, so they work with anyio's plugin, with pytest-asyncio and with tests
that run a loop themselves. They set ``MUSICGPT_API_KEY`` and ``MUSICGPT_BASE_URL``, so that a
program under test that makes a session of its own talks to the emulator too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

# pytest imports this module at every start, in projects that never use it too: what it needs is
# imported where it is used.
if TYPE_CHECKING:
    import asyncio

    from musicgpt_async import MusicGPTSession
    from musicgpt_async.emulator import Emulator

MARKER = "musicgpt(**settings): the emulator's settings for this test, faults= among them"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def musicgpt_emulator(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Emulator]:
    """The emulator on a loopback port, in a thread of its own, with the marker's settings.

    It does not separate unless it is told ``separate=True``: it serves small pseudo-audio.
    """
    settings: dict[str, Any] = {"seconds": 0.05, "separate": False}
    for marker in reversed(list(request.node.iter_markers("musicgpt"))):
        settings |= marker.kwargs
    with running_emulator(**settings) as vendor:
        monkeypatch.setenv("MUSICGPT_API_KEY", vendor.api_key)
        monkeypatch.setenv("MUSICGPT_BASE_URL", vendor.base_url)
        yield vendor


@pytest.fixture
def musicgpt_session(musicgpt_emulator: Emulator) -> MusicGPTSession:
    """A session with the emulator, to be opened by the test: ``async with musicgpt_session: …``."""
    from musicgpt_async import MusicGPTSession  # noqa: PLC0415 - pytest loads plugins before coverage

    return MusicGPTSession(musicgpt_emulator.api_key, base_url=musicgpt_emulator.base_url)


def running_emulator(**settings: Any) -> AbstractContextManager[Emulator]:
    """Run an emulator in a thread of its own, for tests that have no loop or one for each test.

    Args:
        settings: As for :class:`musicgpt_async.emulator.Emulator`.

    Returns:
        A context manager; the emulator stands for as long as its block lasts.
    """
    from musicgpt_async.emulator.threaded import running  # noqa: PLC0415 - it needs an extra

    return running(**settings)


def accelerated_loop(speed: float) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return a factory of event loops whose clocks run ``speed`` times as fast as the real one.

    All that the library waits for runs on the loop's clock, and so does the emulator in the same
    loop: a vendor's minute takes ``60 / speed`` seconds. For ``asyncio.Runner(loop_factory=…)`` or
    anyio's ``anyio_backend`` fixture: ``("asyncio", {"loop_factory": accelerated_loop(50)})``.
    """
    from musicgpt_async.emulator.accelerated_loop import AcceleratedEventLoop  # noqa: PLC0415 - as everything here

    return lambda: AcceleratedEventLoop(speed)
