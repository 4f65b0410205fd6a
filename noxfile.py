"""The project's chores: ``python3 noxfile.py`` runs the checks, ``… -s demo`` shows what it does.

Run as a script it needs nothing but Python 3.11 and a network: it installs nox into ``.nox`` first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path
from urllib.parse import urljoin

ROOT = Path(__file__).resolve().parent
PIP = "https://pypi.org/pypi/pip/json"
PYTHONS = ("3.11", "3.12", "3.13")
# The parts whose behaviour could depend on the event loop.
LOOP_TESTS = ("tests/test_session.py", "tests/test_job.py", "tests/test_webhooks.py", "tests/io")


def bootstrap() -> None:
    """Run nox from an environment of its own, made on the first run."""
    home = ROOT / ".nox" / "bootstrap"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not _has_nox(python):
        # Some distributions ship venv without pip.
        venv.create(home, with_pip=False, clear=True, symlinks=os.name != "nt")
        subprocess.run([*_pip_for(python, home), "install", "--quiet", "nox"], check=True)
    command = [str(python), "-m", "nox", "--noxfile", __file__, *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


def _has_nox(python: Path) -> bool:
    if not python.exists():
        return False
    return (
        subprocess.run([python, "-c", "import nox"], check=False, capture_output=True).returncode
        == 0
    )


def _pip_for(python: Path, home: Path) -> list[str]:
    """Return a pip that installs into an environment: its own, this Python's, or a fresh one."""
    own = subprocess.run([python, "-m", "ensurepip"], check=False, capture_output=True)
    if own.returncode == 0:
        return [str(python), "-m", "pip"]
    ours = [sys.executable, "-m", "pip", "--python", str(python)]
    if subprocess.run([*ours, "--version"], check=False, capture_output=True).returncode == 0:
        return ours
    return [str(python), f"{_downloaded_pip(home)}/pip"]


def _downloaded_pip(home: Path) -> Path:
    with urllib.request.urlopen(PIP) as answer:
        files = json.load(answer)["urls"]
    wheel = next(file for file in files if file["packagetype"] == "bdist_wheel")
    with urllib.request.urlopen(urljoin(PIP, wheel["url"])) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != wheel["digests"]["sha256"]:
        sys.exit("The downloaded pip is not the one that PyPI describes; try again.")
    path = home / wheel["filename"]
    path.write_bytes(content)
    return path


if __name__ == "__main__":
    bootstrap()

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_external_run = True


def installed_pythons() -> list[str]:
    """Return the supported versions that this machine really has, and put them on the PATH.

    A version manager may leave a ``python3.12`` on the PATH that only says it is not active.
    """
    found = []
    for version in PYTHONS:
        candidates = [
            shutil.which(f"python{version}"),
            *sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))),
        ]
        for python in filter(None, candidates):
            if subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0:
                folder = str(Path(python).parent)
                os.environ["PATH"] = os.pathsep.join([folder, os.environ["PATH"]])
                found.append(version)
                break
    return found or [f"{sys.version_info.major}.{sys.version_info.minor}"]


FOUND = installed_pythons()


def group(name: str) -> tuple[str, ...]:
    """Return what a dependency group of pyproject.toml asks for."""
    return nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), name)


@nox.session
def demo(session: nox.Session) -> None:
    """Compose a song, split it against the emulator, and measure the stems."""
    session.install("--quiet", ".[cli,emulator]")
    session.run("musicgpt-async", "demo", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Look for mistakes and for lines out of shape."""
    session.install("--quiet", *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types inside, and that every public name has one."""
    session.install("--quiet", ".[all]", *group("types"))
    session.run("mypy")
    session.run("pyright", "--verifytypes", "musicgpt_async", "--ignoreexternal")


@nox.session(python=FOUND)
def tests(session: nox.Session) -> None:
    """Run the tests, with the newest Python those of the core once more on each other loop."""
    session.install("--quiet", ".[all]", *group("test"))
    session.run("pytest", *session.posargs)
    if not session.posargs and session.python == FOUND[-1]:
        for loop in ("debug", "uvloop"):
            session.run("pytest", "--loop", loop, *LOOP_TESTS)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the machine's limit and against other clients."""
    session.install("--quiet", ".[all]", *group("bench"))
    session.run("python", "benchmarks/run.py", *session.posargs)
