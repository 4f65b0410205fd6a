"""Standard streams that are closed, full or lost: what was paid for is in the journal."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from factories.watching import until

from musicgpt_async.emulator import Emulator, Fault, FaultContext

pytestmark = pytest.mark.anyio

HANG = 60
COMMAND = (sys.executable, "-m", "musicgpt_async.cli")
ARGUMENTS = ("--out", "o", "--plan", "pro", "-s", "bass")


@asynccontextmanager
async def redirected(
    shell: Any, redirection: str, *arguments: str, **streams: Any
) -> AsyncIterator[Any]:
    """Start the command through a shell that redirects its streams."""
    process = await anyio.open_process(
        ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *arguments],
        cwd=shell.directory,
        env=shell.environment,
        **{"stdin": None, "stdout": None, "stderr": None, **streams},
    )
    try:
        with anyio.fail_after(HANG):
            yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.aclose()


def is_slow(occasion: FaultContext) -> bool:
    """Whether a submit is the second track's."""
    return occasion.upload is not None and occasion.upload.file_name == "b.wav"


@pytest.fixture
async def in_flight(open_vendor: Any) -> AsyncIterator[tuple[Emulator, Any]]:
    """A vendor without a listing that answers the second track's submit after the first is done."""
    slow = Fault("submit", "slow_answer", seconds=2.5, when=is_slow)
    async with open_vendor(seconds=0.2, faults=[slow], listing=False) as (vendor, shell):
        shell.track("in/a.wav")
        shell.track("in/b.wav")
        yield vendor, shell


async def journal_of(shell: Any) -> dict[str, dict[str, Any]]:
    """What the journal holds: track → job."""
    ended = await shell.run("jobs", "--out", "o", "--json")
    return {Path(job["source"]).name: job for job in map(json.loads, ended.out.splitlines())}


async def check_paid(vendor: Emulator, shell: Any, *, number: int) -> None:
    """What the vendor took is in the journal with its task, and is not paid for twice."""
    jobs = await journal_of(shell)
    tasks = {each.upload.file_name: each.task_id for each in vendor.submissions}
    assert len(tasks) == len(vendor.submissions) == number
    assert {name: jobs[name]["task_id"] for name in tasks} == tasks
    again = await shell.run("extract", "in", "-q", *ARGUMENTS)
    assert again.code == 0, again.err
    assert len(vendor.submissions) == 2
    assert len(list((shell.directory / "o").glob("*.wav"))) == 2


@pytest.mark.parametrize("redirection", [">/dev/full", ">/dev/full 2>&1"])
async def test_a_full_disk_ends_it_as_an_interrupt_does(redirection: str, in_flight: Any) -> None:
    """The first result cannot be written: the submit in flight gets its answer, and is noted."""
    vendor, shell = in_flight
    async with redirected(shell, redirection, "extract", "in", "--json", *ARGUMENTS) as process:
        assert await process.wait() == 1
    await check_paid(vendor, shell, number=2)


async def test_a_reader_that_leaves_ends_it_as_an_interrupt_does(in_flight: Any) -> None:
    """``extract --json … 2>&1 | head -1``: nothing that was paid for is lost."""
    vendor, shell = in_flight
    reader, writer = os.pipe()
    async with redirected(
        shell, "", "extract", "in", "--json", *ARGUMENTS, stdout=writer, stderr=writer
    ) as process:
        os.close(writer)
        line = await anyio.to_thread.run_sync(os.read, reader, 1)
        os.close(reader)
        assert line
        assert await process.wait() == 1
    await check_paid(vendor, shell, number=2)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
async def test_progress_that_cannot_be_shown_ends_the_showing_alone(
    redirection: str, in_flight: Any
) -> None:
    """The progress ends, and all tracks are completed."""
    vendor, shell = in_flight
    async with redirected(shell, redirection, "extract", "in", *ARGUMENTS) as process:
        assert await process.wait() == 0
    assert len(list((shell.directory / "o").glob("*.wav"))) == 2
    await check_paid(vendor, shell, number=2)


async def test_a_reader_of_the_progress_may_leave(in_flight: Any) -> None:
    """``extract … 2>&1 | head -1`` without results: the run continues to its end."""
    vendor, shell = in_flight
    reader, writer = os.pipe()
    async with redirected(
        shell, "", "extract", "in", *ARGUMENTS, stdout=writer, stderr=writer
    ) as process:
        os.close(writer)
        await anyio.to_thread.run_sync(os.read, reader, 1)
        os.close(reader)
        assert await process.wait() == 0
    await check_paid(vendor, shell, number=2)


async def test_closed_results_are_done_without(in_flight: Any) -> None:
    """With stdout closed from the start, as for a daemon, ``--json`` is silent and all is done."""
    vendor, shell = in_flight
    async with redirected(shell, ">&-", "extract", "in", "--json", *ARGUMENTS) as process:
        assert await process.wait() == 0
    await check_paid(vendor, shell, number=2)


async def test_a_closed_stream_never_becomes_the_journal(in_flight: Any) -> None:
    """The descriptors of closed streams are not given to the files that are opened next."""
    _, shell = in_flight
    async with redirected(shell, "<&- >&- 2>&-", "extract", "in", *ARGUMENTS) as process:
        links = [f"/proc/{process.pid}/fd/{fd}" for fd in range(3)]
        await until((shell.directory / "o" / ".musicgpt-async.sqlite").exists)
        await until(lambda: all(os.path.exists(link) for link in links))
        assert {os.readlink(link) for link in links} == {"/dev/null"}
        assert await process.wait() == 0


@pytest.mark.parametrize("is_live", [True, False])
async def test_a_terminal_that_is_closed_ends_it_as_an_interrupt_does(
    is_live: bool, in_flight: Any
) -> None:
    """SIGHUP detaches, and the bars that cannot be painted any more stop nothing."""
    vendor, shell = in_flight
    master, slave = pty.openpty()
    shell.environment["TERM"] = "xterm-256color" if is_live else "dumb"
    async with redirected(
        shell, "", "extract", "in", *ARGUMENTS, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        await until(lambda: len(vendor.submissions) == 2)
        os.close(master)
        for _ in range(2):  # a shell and the kernel each send one
            process.send_signal(signal.SIGHUP)
            await anyio.sleep(0.05)
        assert await process.wait() == 128 + signal.SIGHUP
    await check_paid(vendor, shell, number=2)


async def test_a_stopped_terminal_does_not_hold_up_the_end(in_flight: Any) -> None:
    """While a terminal is stopped (Ctrl-S) the run continues, and the session is closed."""
    vendor, shell = in_flight
    master, slave = pty.openpty()
    async with redirected(
        shell, "", "extract", "in", *ARGUMENTS, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        await until(lambda: vendor.submissions)
        termios.tcflow(slave, termios.TCOOFF)
        os.close(slave)
        assert await process.wait() == 0
    os.close(master)
    await check_paid(vendor, shell, number=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "--out", "o"),
        ("--help",),
        ("report", "o"),
        ("extract", "in", "--dry-run", "--out", "x"),
    ],
)
async def test_other_results_that_cannot_be_written_are_one_sentence(
    arguments: tuple[str, ...], in_flight: Any
) -> None:
    """A full disk is said in a sentence, with exit code 1; a closed pipe needs no words."""
    _, shell = in_flight
    assert (await shell.run("extract", "in/a.wav", "-q", *ARGUMENTS)).code == 0
    async with redirected(shell, ">/dev/full", *arguments, stderr=-1) as process:
        assert process.stderr
        err = b"".join([chunk async for chunk in process.stderr])
        assert await process.wait() == 1
    assert err.count(b"\n") == 1
    assert b"No space left" in err
    reader, writer = os.pipe()
    os.close(reader)
    async with redirected(shell, "", *arguments, stdout=writer, stderr=-1) as process:
        os.close(writer)
        assert process.stderr
        err = b"".join([chunk async for chunk in process.stderr])
        assert await process.wait() == 1
    assert b"Traceback" not in err
    assert b"Broken" not in err


async def test_an_interrupt_during_imports_shows_no_traceback(shell: Any, tmp_path: Path) -> None:
    """Ctrl-C just after the command was typed is code 130 and nothing else."""
    (tmp_path / "slow").mkdir()
    slow = "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    (tmp_path / "slow" / "cyclopts.py").write_text(slow)
    environment = {"PYTHONPATH": str(tmp_path / "slow")}
    async with shell.start("jobs", "--out", "o", **environment) as running:
        await running.says("importing")
        running.interrupt()
        ended = await running.ended()
    assert (ended.code, ended.err.strip()) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("http://a.example/\x01b",), "control character"),
        (("--list", "deep.jsonl"), "nested too deeply"),
        (("--list", "control.csv"), "control character"),
        ((os.fsdecode(b"nothere\xff.wav"),), "There is no file"),
    ],
)
async def test_odd_input_is_one_sentence(
    arguments: tuple[str, ...], words: str, shell: Any
) -> None:
    """A list that is nested too deeply, a URL with a control character, a name that is no UTF-8."""
    (shell.directory / "deep.jsonl").write_text('{"source": ' + "[" * 100_000 + "\n")
    (shell.directory / "control.csv").write_text("source\nhttp://a.example/\x01b\n")
    ended = await shell.run("extract", *arguments, "--out", "o", "--dry-run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert words in ended.err


async def test_a_report_takes_names_that_are_not_utf8(shell: Any) -> None:
    """The page is written, and its players lead to the files all the same."""
    out = os.fsencode(shell.directory / "o")
    os.makedirs(out)
    for stem in (b"vocals", b"bass"):
        with open(out + b"/bad\xff - " + stem + b".wav", "wb") as file:
            file.write(b"RIFF" + bytes(100))
    ended = await shell.run("report", "o")
    assert (ended.code, ended.err) == (0, "")
    assert "bad%FF%20-%20bass.wav" in (shell.directory / "o" / "report.html").read_text("utf-8")
