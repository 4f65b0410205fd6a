"""Detection of dead processes, without false positives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from musicgpt_async._io import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="is read from Linux's /proc")

CODE = """
from musicgpt_async._io import processes
print(processes.process_identity(), flush=True)
input()
"""


@contextmanager
def another() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run another process and yield its identity; it has ended at the end of the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def changed(name: str, **parts: object) -> str:
    """Return a name with other parts."""
    words = dict(zip(("host", "machine", "pid", "start", "random"), name.split(":"), strict=True))
    return ":".join(str(word) for word in {**words, **parts}.values())


def test_a_process_is_dead_once_it_was_killed() -> None:
    """A living process is not dead; killed with SIGKILL it is."""
    with another() as (process, name):
        assert processes.dead_processes([name, processes.process_identity()]) == []
        process.kill()
        process.wait()
        assert processes.dead_processes([name, processes.process_identity()]) == [name]


def test_a_later_process_with_the_same_id_is_another_one() -> None:
    """The id alone does not make a process alive: it may have been given again."""
    name = processes.process_identity()
    start = int(name.split(":")[3])
    assert processes.dead_processes([changed(name, start=start - 1)]) == [
        changed(name, start=start - 1)
    ]


@pytest.mark.parametrize(
    "parts",
    [{"machine": "another boot.1"}, {"machine": ""}, {"start": ""}, {"pid": "-1"}, {"pid": "x"}],
    ids=str,
)
def test_a_process_that_cannot_be_seen_is_not_dead(parts: dict[str, str]) -> None:
    """On another machine, after another boot or in another container it may well be alive."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = changed(processes.process_identity(), pid=gone.pid)
    assert processes.dead_processes([name]) == [name]
    assert processes.dead_processes([changed(name, **parts)]) == []


def test_names_of_no_process_are_nobodys() -> None:
    """A text that is not an identity is not a dead process."""
    assert processes.dead_processes(["", "host:1:abcd", "a:b:c", f"host:{os.getpid()}:abcd"]) == []


def test_psutil_tells_the_same() -> None:
    """Without /proc, psutil knows who is dead, and a later process with the same id."""
    table = processes.PsutilProcesses(pytest.importorskip("psutil"))
    own = processes.process_identity(table)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        start = table.start_of(process.pid)
        other = changed(own, pid=process.pid, start=start)
        later = changed(own, pid=process.pid, start=int(start or 0) - 5)
        assert processes.dead_processes([own, other, later], table) == [later]
        process.kill()
        process.wait()
        assert processes.dead_processes([own, other], table) == [other]
