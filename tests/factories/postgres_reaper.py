"""Stops the PostgreSQL servers of a run of the tests when it ends, however it ends.

Run with the directory of the servers, it continues in the background. The run holds a lock on the
file ``run.lock`` there, which the system releases when pytest ends, also when pytest is killed.
"""

import fcntl
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

STOP_TIMEOUT = 30.0  # seconds


def main(directory: Path) -> None:
    """Wait for the end of the run, then stop every server and delete the directory."""
    if os.fork():
        return
    os.setsid()
    with (directory / "run.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    for pid_file in directory.glob("*.data/postmaster.pid"):
        with suppress(OSError, ValueError):
            stop(int(pid_file.read_text().split("\n", 1)[0]), pid_file)
    shutil.rmtree(directory, ignore_errors=True)


def stop(pid: int, pid_file: Path) -> None:
    """Stop a server as a crash would, and wait until it has ended."""
    os.kill(pid, signal.SIGQUIT)
    deadline = time.monotonic() + STOP_TIMEOUT
    while pid_file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if pid_file.exists():
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
