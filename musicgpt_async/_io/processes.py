"""Identities of processes: this one's own, and which local ones have exited.

An identity is ``host:machine:pid:start:random``. The machine is its boot id and its pid namespace,
so that containers are kept apart; the start time distinguishes a process from a later one with the
same pid. If they cannot be read (from Linux's ``/proc``), no process is considered dead.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_BOOT = _PROC / "sys/kernel/random/boot_id"
# Index of the start time among the fields after the name, in clock ticks (proc_pid_stat(5)).
_START_FIELD = 19


def process_identity() -> str:
    """Return a new identity for this process."""
    pid = os.getpid()
    start = _start_ticks(pid) or ""
    return f"{socket.gethostname()}:{_boot_namespace()}:{pid}:{start}:{secrets.token_hex(4)}"


def dead_processes(names: Iterable[str]) -> list[str]:
    """Return the identities of local processes that have exited."""
    machine = _boot_namespace()
    return [name for name in names if machine and _is_dead(name, machine)]


def _is_dead(name: str, machine: str) -> bool:
    _, other_machine, pid, start, _ = ("::::" + name).rsplit(":", 4)
    if other_machine != machine or not pid.isdecimal() or not start:
        return False
    try:
        os.kill(int(pid), 0)  # signal 0 only asks; /proc may hide the processes of other users
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return _start_ticks(int(pid)) not in (None, start)


def _boot_namespace() -> str:
    """Return what processes in one pid namespace have in common, empty if it is unknown."""
    try:
        if (_PROC / "self").readlink().name != str(os.getpid()):  # another namespace's /proc
            return ""
        namespace = (_PROC / "self/ns/pid").readlink().name.strip("pid:[]")
        return f"{_BOOT.read_text().strip()}.{namespace}"
    except OSError:
        return ""


def _start_ticks(pid: int) -> str | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[_START_FIELD]
