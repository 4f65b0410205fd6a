"""A pytest plugin with the emulator as a fixture, and an event loop with an accelerated clock.

pytest loads the plugin if the package is installed with its extra ``emulator``::

    @pytest.mark.musicgpt(seconds=0.1, faults=[Fault("byId", "status", status=503)])
    async def test_my_service(musicgpt_session):
        async with musicgpt_session as session:
            assert (await session.submit(("song.mp3", b"ID3..."))).stems

The fixtures are synchronous, so they work with anyio's plugin, with pytest-asyncio and with tests
that run their own loop. They set ``MUSICGPT_API_KEY``, ``MUSICGPT_BASE_URL`` and ``MUSICGPT_PLAN``,
so that a program under test that creates its own session uses the emulator too, at its full speed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

# pytest imports this module at every start, even in projects that never use it. Imports are
# therefore inside the functions that need them.
if TYPE_CHECKING:
    import asyncio

    from musicgpt_async import MusicGPTSession
    from musicgpt_async.emulator import Emulator

MARKER = "musicgpt(**settings): the emulator's settings for this test, including faults="
OWN_LIMITS = {"parallel", "polls_per_minute"}  # settings that make the plan another than pro


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def musicgpt_emulator(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Emulator]:
    """Run the emulator on a loopback port, in its own thread, with the marker's settings.

    It serves small pseudo-audio; with ``separate=True`` it separates the audio instead. Its limits
    are those of the plan pro. With other ones, ``parallel=`` or ``polls_per_minute=``, no plan is
    set, and sessions learn them.
    """
    settings: dict[str, Any] = {"seconds": 0.05, "separate": False}
    for marker in reversed(list(request.node.iter_markers("musicgpt"))):
        settings |= marker.kwargs
    _check_names(settings)
    with running_emulator(**settings) as vendor:
        monkeypatch.setenv("MUSICGPT_API_KEY", vendor.api_key)
        monkeypatch.setenv("MUSICGPT_BASE_URL", vendor.base_url)
        if settings.keys() & OWN_LIMITS:
            monkeypatch.delenv("MUSICGPT_PLAN", raising=False)
        else:
            monkeypatch.setenv("MUSICGPT_PLAN", "pro")
        yield vendor


def _check_names(settings: Iterable[str]) -> None:
    """Fail the test if the marker has a setting that the emulator does not have."""
    from musicgpt_async.emulator import Emulator  # noqa: PLC0415 - slow to import

    names = inspect.signature(Emulator).parameters
    for each in settings:
        if each not in names:
            pytest.fail(
                f"@pytest.mark.musicgpt has no setting {each!r}; it takes the arguments of "
                f"Emulator: {', '.join(names)}.",
                pytrace=False,
            )


@pytest.fixture
def musicgpt_session(musicgpt_emulator: Emulator) -> MusicGPTSession:
    """Return a session for the emulator, to be opened with ``async with musicgpt_session: …``."""
    from musicgpt_async import MusicGPTSession  # noqa: PLC0415 - pytest loads plugins before coverage

    return MusicGPTSession(musicgpt_emulator.api_key, base_url=musicgpt_emulator.base_url)


def running_emulator(**settings: Any) -> AbstractContextManager[Emulator]:
    """Run an emulator in its own thread, for tests that have no event loop or one per test.

    Args:
        settings: As for :class:`musicgpt_async.emulator.Emulator`.

    Returns:
        A context manager; the emulator runs for the duration of its block.
    """
    from musicgpt_async.emulator.threaded import run_in_thread  # noqa: PLC0415 - it needs an extra

    return run_in_thread(**settings)


def accelerated_loop(speed: float) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return an event loop factory whose clock runs ``speed`` times faster than real time.

    Every wait of the library uses the loop's clock, and so does an emulator in the same loop: one
    minute takes ``60 / speed`` seconds. Use it with ``asyncio.Runner(loop_factory=…)`` or
    anyio's ``anyio_backend`` fixture: ``("asyncio", {"loop_factory": accelerated_loop(50)})``.
    """
    from musicgpt_async.emulator.accelerated_loop import AcceleratedEventLoop  # noqa: PLC0415 - as everything here

    return lambda: AcceleratedEventLoop(speed)
