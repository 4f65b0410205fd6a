"""Identities of processes: this one's own, and which local ones have exited.

An identity is ``host:machine:pid:start:random``. The machine is its boot, on Linux also its pid
namespace, so that containers are kept apart; the start time distinguishes a process from a later
one with the same pid. They are read from Linux's ``/proc``, elsewhere by psutil; without either no
process is considered dead.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

_PROC = Path("/proc")
_BOOT = _PROC / "sys/kernel/random/boot_id"
# Index of the start time among the fields after the name, in clock ticks (proc_pid_stat(5)).
_START_FIELD = 19


class ProcessTable(Protocol):
    """What a system says about its processes."""

    def machine(self) -> str:
        """Return what processes that see each other have in common, empty if it is unknown."""

    def start_of(self, pid: int) -> str | None:
        """Return when a process started, ``None`` if it is unknown."""

    def exists(self, pid: int) -> bool:
        """Return whether a process may exist."""


class LinuxProcesses:
    """Processes as ``/proc`` shows them."""

    def machine(self) -> str:
        """Return the boot id and the pid namespace."""
        try:
            if (_PROC / "self").readlink().name != str(os.getpid()):  # another namespace's /proc
                return ""
            namespace = (_PROC / "self/ns/pid").readlink().name.strip("pid:[]")
            return f"{_BOOT.read_text().strip()}.{namespace}"
        except OSError:
            return ""

    def start_of(self, pid: int) -> str | None:
        """Return the start in clock ticks after the boot."""
        try:
            stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        return stat.rpartition(")")[2].split()[_START_FIELD]

    def exists(self, pid: int) -> bool:
        """Return whether a signal could be sent; /proc may hide the processes of other users."""
        try:
            os.kill(pid, 0)  # signal 0 only asks
        except ProcessLookupError:
            return False
        except OSError:
            pass
        return True


class PsutilProcesses:
    """Processes as psutil shows them, on systems without ``/proc``."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil

    def machine(self) -> str:
        """Return the boot time; if it moves with the clock, no process is considered dead."""
        return f"boot.{self._psutil.boot_time():.0f}"

    def start_of(self, pid: int) -> str | None:
        """Return the start in seconds since the epoch."""
        try:
            return f"{self._psutil.Process(pid).create_time():.0f}"
        except self._psutil.Error:
            return None

    def exists(self, pid: int) -> bool:
        """Return whether the pid is in use; on Windows ``os.kill`` would do more than ask."""
        return bool(self._psutil.pid_exists(pid))


def process_identity(table: ProcessTable | None = None) -> str:
    """Return a new identity for this process."""
    table = table or _system_table()
    pid = os.getpid()
    start = table.start_of(pid) or ""
    return f"{socket.gethostname()}:{table.machine()}:{pid}:{start}:{secrets.token_hex(4)}"


def dead_processes(names: Iterable[str], table: ProcessTable | None = None) -> list[str]:
    """Return the identities of local processes that have exited."""
    table = table or _system_table()
    machine = table.machine()
    return [name for name in names if machine and _is_dead(name, machine, table)]


def _system_table() -> ProcessTable:
    if sys.platform != "linux":
        try:
            import psutil  # noqa: PLC0415 - the extra `journal` brings it where it is needed
        except ImportError:
            pass
        else:
            return PsutilProcesses(psutil)
    return LinuxProcesses()


def _is_dead(name: str, machine: str, table: ProcessTable) -> bool:
    _, other_machine, pid, start, _ = ("::::" + name).rsplit(":", 4)
    if other_machine != machine or not pid.isdecimal() or not start:
        return False
    if not table.exists(int(pid)):
        return True
    return table.start_of(int(pid)) not in (None, start)
