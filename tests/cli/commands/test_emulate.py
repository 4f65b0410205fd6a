from __future__ import annotations

import re
import signal
import socket
from typing import Any

import anyio
import pytest

from musicgpt_async.cli import main

pytestmark = pytest.mark.anyio


async def test_it_prints_how_to_reach_it_and_ends_cleanly(shell: Any) -> None:
    """The first lines are exports that an `extract` can work with; SIGINT ends it with 0."""
    async with shell.start("emulate", "--seconds", "0.1", "--pretend", "--key", "a key") as running:
        told = b""
        with anyio.fail_after(60):
            while told.count(b"\n") < 2:
                told += await running.process.stdout.receive()
        exports = dict(re.findall(r"^export (\w+)='?(.*?)'?$", told.decode(), re.MULTILINE))
        assert list(exports) == ["MUSICGPT_BASE_URL", "MUSICGPT_API_KEY"]
        assert exports["MUSICGPT_API_KEY"] == "a key"
        track = shell.track("song.wav")
        done = await shell.run(
            "extract", track, "--out", "o", "--plan", "pro", "--no-journal", **exports
        )
        assert done.code == 0, done.err
        running.interrupt()
        ended = await running.ended()
    assert ended.code == 0
    assert "1 submit accepted" in ended.err
    assert "Traceback" not in ended.err


async def test_it_ends_cleanly_when_it_is_terminated(shell: Any) -> None:
    """SIGTERM ends it with 0, too."""
    async with shell.start("emulate", "--pretend") as running:
        with anyio.fail_after(60):
            await running.process.stdout.receive()
        running.interrupt(signal.SIGTERM)
        ended = await running.ended()
    assert ended.code == 0
    assert "0 submits accepted" in ended.err


async def test_a_taken_port_is_said(shell: Any) -> None:
    """A port in use is wrong usage, in one line."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = await shell.run("emulate", "--pretend", "--port", str(server.getsockname()[1]))
    assert ended.code == 2
    assert ended.err.count("\n") == 1


async def test_requests_are_logged_and_faults_come_from_the_command_line(shell: Any) -> None:
    """Each request is a line on stderr; of two submits the second is paid and never answered."""
    dropped, busy = "submit:drop_before_answer:after=1", "byId:status:status=503,times=2"
    faults = ("--fault", dropped, "--fault", busy)
    async with shell.start("emulate", "--seconds", "0", "--pretend", *faults) as running:
        told = b""
        with anyio.fail_after(60):
            while told.count(b"\n") < 2:
                told += await running.process.stdout.receive()
        exports = dict(re.findall(r"^export (\w+)='?(.*?)'?$", told.decode(), re.MULTILINE))
        tracks = [shell.track(name) for name in ("one.wav", "two.wav")]
        lost = await shell.run("extract", *tracks, "--plan", "pro", "-s", "bass", **exports)
        running.interrupt()
        ended = await running.ended()
    assert lost.code in (0, 1), lost.err  # the account's listing may bring the task in
    assert re.search(r"^\d\d:\d\d:\d\d POST \S+/Extraction: closed ", ended.err, re.MULTILINE)
    assert ended.err.count(": 503\n") == 2, ended.err
    assert "Traceback" not in ended.err
    assert "2 submits accepted" in ended.err


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("submit", "TARGET:KIND"),
        ("submit:explode", "drop_before_answer"),
        ("file:not_success", "not 'file'"),
        ("submit:status:stauts=503", "retry_after"),
        ("submit:status:status=many", "many"),
    ],
)
def test_a_fault_that_does_not_exist_is_refused(
    fault: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt target, kind, option or value is one line that names the right ones."""
    assert main(["emulate", "--fault", fault]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


async def test_without_its_extra_it_names_it_and_the_option(shell: Any) -> None:
    """A user of the shell reads what to install, and the option that does without."""
    missing = shell.directory / "missing"
    missing.mkdir()
    (missing / "soundfile.py").write_text("raise ModuleNotFoundError(name='soundfile')")
    ended = await shell.run("emulate", PYTHONPATH=str(missing))
    assert (ended.code, ended.out) == (2, "")
    assert 'pip install "musicgpt-async[emulator]"' in ended.err
    assert "--pretend" in ended.err
    assert "Emulator(" not in ended.err
