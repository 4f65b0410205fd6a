"""The pytest plugin, in the runs of people who use it: child processes with tests of theirs."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from factories.pages import ROOT, blocks
from factories.sessions import TRACK

from musicgpt_async import Limits, MusicGPTSession
from musicgpt_async.emulator import Emulator
from musicgpt_async.testing import accelerated_loop, running_emulator

PAGE = ROOT / "docs" / "testing.md"

ANYIO_ON_ASYNCIO = """
    import pytest

    @pytest.fixture
    def anyio_backend():
        return "asyncio"
"""


class Project:
    """A directory with the tests of another project."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.write("pytest.ini", "[pytest]\nfilterwarnings = error")

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        (self._directory / name).write_text(textwrap.dedent(text), "utf-8")

    def run(self, *options: str) -> str:
        """Run pytest in the project, by default without pytest-asyncio; return its output."""
        command = [sys.executable, "-m", "pytest", "--strict-markers", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *(options or ("-p", "no:asyncio"))],
            cwd=self._directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    return Project(tmp_path)


def _documented_test() -> str:
    (block,) = blocks(PAGE, "python", "In your own tests")
    return block.code


def test_the_documented_test_runs_under_anyio(project: Project) -> None:
    """The example, pasted into a project whose tests run by anyio's plugin."""
    project.write("conftest.py", ANYIO_ON_ASYNCIO)
    project.write("test_app.py", _documented_test())
    said = project.run()
    assert "2 passed" in said, said


@pytest.mark.skipif(
    importlib.util.find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed"
)
def test_the_documented_test_runs_under_pytest_asyncio(project: Project) -> None:
    """The same example where tests run by pytest-asyncio."""
    project.write("test_app.py", _documented_test().replace("mark.anyio", "mark.asyncio"))
    scope = "asyncio_default_fixture_loop_scope=function"  # it warns where this is not said
    said = project.run("-p", "no:anyio", "-o", scope)
    assert "2 passed" in said, said


def test_each_test_has_a_vendor_of_its_own_that_its_program_finds(project: Project) -> None:
    """No loop is needed; the nearest marker counts; the environment is put back."""
    project.write(
        "test_app.py",
        """
        import asyncio, os
        import pytest
        from musicgpt_async import MusicGPTSession
        from musicgpt_async.emulator import Fault

        pytestmark = pytest.mark.musicgpt(credits=7, seconds=0.2)
        keys = []

        async def program():
            async with MusicGPTSession() as session:
                return await session.submit(("song.mp3", b"ID3" + bytes(3000)))

        @pytest.mark.parametrize("_", range(2))
        def test_program(musicgpt_emulator, _):
            assert asyncio.run(program()).stems
            assert len(musicgpt_emulator.submissions) == 1
            assert 0 < musicgpt_emulator.credits < 7
            assert musicgpt_emulator.submissions[0].seconds == 0.2

        @pytest.mark.musicgpt(credits=70)
        def test_nearest(musicgpt_emulator):
            assert musicgpt_emulator.credits == 70

        def test_the_emulator_has_stopped():
            assert "MUSICGPT_API_KEY" not in os.environ
            assert "MUSICGPT_BASE_URL" not in os.environ
        """,
    )
    said = project.run()
    assert "4 passed" in said, said


def test_a_setting_that_does_not_exist_is_named(project: Project) -> None:
    """A slip in the marker is an error of that test that names it and what there is."""
    project.write(
        "test_app.py",
        """
        import pytest

        @pytest.mark.musicgpt(secnds=1)
        def test_slip(musicgpt_session):
            pass
        """,
    )
    said = project.run()
    assert "1 error" in said, said
    assert "no setting 'secnds'" in said
    assert "seconds, eta" in said
    assert "Traceback" not in said
    assert "testing.py" not in said


def test_a_program_uses_the_emulator_at_its_full_speed(project: Project) -> None:
    """Its sessions have the limits of the emulator; other limits are left to be learned."""
    project.write(
        "test_app.py",
        """
        import os
        import pytest

        def test_default(musicgpt_emulator):
            assert os.environ["MUSICGPT_PLAN"] == "pro"

        @pytest.mark.musicgpt(polls_per_minute=20)
        def test_other_limits(monkeypatch, request):
            monkeypatch.setenv("MUSICGPT_PLAN", "pro")
            request.getfixturevalue("musicgpt_emulator")
            assert "MUSICGPT_PLAN" not in os.environ
        """,
    )
    said = project.run()
    assert "2 passed" in said, said


def test_an_hour_at_the_vendor_takes_no_hour(project: Project) -> None:
    """With accelerated loops, anyio's tests and plain runners outrun the emulator's clock."""
    project.write(
        "test_app.py",
        """
        import asyncio, time
        import pytest
        from musicgpt_async import MusicGPTSession
        from musicgpt_async.emulator import Emulator
        from musicgpt_async.testing import accelerated_loop

        @pytest.fixture
        def anyio_backend():
            return "asyncio", {"loop_factory": accelerated_loop(600)}

        async def job():
            async with Emulator(seconds=900, separate=False) as vendor:
                async with MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as session:
                    return await session.submit(("song.mp3", b"ID3" + bytes(3000)))

        @pytest.mark.anyio
        async def test_with_anyio():
            began = time.monotonic()
            assert (await job()).stems
            assert time.monotonic() - began < 900 / 10

        def test_with_a_runner():
            with asyncio.Runner(loop_factory=accelerated_loop(600)) as runner:
                assert runner.run(job()).stems
        """,
    )
    said = project.run()
    assert "2 passed" in said, said


def test_the_plugin_costs_projects_nothing_that_do_not_use_it() -> None:
    """Loading it imports neither the emulator nor what the emulator needs."""
    code = """
    import sys
    import musicgpt_async.testing
    heavy = [name for name in sys.modules if name.startswith(("musicgpt_async.emulator", "numpy"))]
    assert heavy == [], heavy
    """
    program = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_vendor_in_a_thread_leaves_nothing_behind() -> None:
    """Several loops use it one after the other; its thread and ports are released at the end."""

    async def job(vendor: Emulator) -> str:
        async with MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, limits=Limits.PRO
        ) as session:
            return (await session.submit(TRACK)).task_id

    before = set(threading.enumerate())
    with running_emulator(seconds=0.05, separate=False) as vendor:
        port = int(vendor.url.rpartition(":")[2])
        tasks = [asyncio.run(job(vendor)) for _ in range(2)]
    assert [submission.task_id for submission in vendor.submissions] == tasks
    assert set(threading.enumerate()) <= before
    with socket.socket() as again:
        assert again.connect_ex(("127.0.0.1", port)) != 0


def test_an_emulator_that_cannot_start_says_so() -> None:
    """An error in the emulator's thread is raised in the caller's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)), running_emulator(separate=False, port=port):
            pytest.fail("it stands on a port that is taken")


def test_a_hasty_loop_sleeps_its_share() -> None:
    """A loop's second is real time by its speed, never less, and its own clock says a second."""

    async def second() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(10)
        return loop.time() - began

    began = time.monotonic()
    with asyncio.Runner(loop_factory=accelerated_loop(100)) as runner:
        told = runner.run(second())
    real = time.monotonic() - began
    assert told >= 10
    assert 0.1 <= real < 10


def test_work_takes_no_longer_on_a_hasty_loop() -> None:
    """A machine that is busy for a moment brings no timeout of many seconds about."""

    async def work() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        time.sleep(0.05)  # noqa: ASYNC251 - it simulates work, or a process that is delayed
        return loop.time() - began

    with asyncio.Runner(loop_factory=accelerated_loop(1000)) as runner:
        assert 0.05 <= runner.run(work()) < 25
