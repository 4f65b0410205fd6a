"""Development sessions: ``python3 noxfile.py`` runs all checks, ``… -s demo`` runs a demo.

As a script it only needs Python 3.11 and a network connection: it installs nox into ``.nox`` first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NOX = "nox[uv]>=2025.10.14"


def bootstrap() -> None:
    """Run nox from its own environment, which the first run creates."""
    home = ROOT / ".nox" / "bootstrap"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    installed = home / "installed"
    if not installed.exists():
        try:
            venv.create(home, with_pip=True, clear=True, symlinks=os.name != "nt")
        except subprocess.CalledProcessError:
            sys.exit("This Python cannot create environments; on Debian, install python3-venv.")
        subprocess.run([python, "-m", "pip", "install", "--quiet", NOX], check=True)
        installed.touch()
    # Let uv trust the system's certificates, as pip does: a company's proxy may need that.
    os.environ.setdefault("UV_SYSTEM_CERTS", "true")
    command = [python, "-m", "nox", "--noxfile", __file__, *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    bootstrap()

import nox
from nox.command import CommandFailed

PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
# Tests of code that may depend on the event loop.
LOOP_TESTS = (
    "tests/engine",
    "tests/invariants",
    "tests/test_session.py",
    "tests/test_closing.py",
    "tests/test_job.py",
    "tests/webhooks",
    "tests/io",
)

nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_external_run = True


def find_other_pythons() -> list[str]:
    """Return the other supported Python versions of this machine, and put them on the PATH.

    A version manager may leave a ``python3.12`` on the PATH that only prints an error.
    """
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = [each for each in nox.project.python_versions(PROJECT) if each != running]
    return [version for version in others if _find_python(version)]


def _find_python(version: str) -> bool:
    managed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")
    for python in filter(None, (shutil.which(f"python{version}"), *map(str, managed))):
        if subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0:
            os.environ["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ["PATH"]])
            return True
    return False


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demo: separate a synthesized song with the emulator, and measure the stems."""
    session.install("--quiet", ".[cli,emulator,report]")
    session.run("musicgpt-async", "demo", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the code with ruff, and its format."""
    session.install("--quiet", *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, and that all public names have types."""
    session.install("--quiet", ".[all]", *group("types"))
    session.run("mypy")
    session.run("pyright", "--verifytypes", "musicgpt_async", "--ignoreexternal")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the current Python."""
    session.install("--quiet", ".[all]", *group("test"))
    run_tests(session, *session.posargs)


@nox.session(python=find_other_pythons())
def matrix(session: nox.Session) -> None:
    """Run the tests on each other supported Python of this machine."""
    session.install("--quiet", ".[all]", *group("test"))
    run_tests(session, *session.posargs)


@nox.session
def loops(session: nox.Session) -> None:
    """Run the core tests in asyncio's debug mode and on uvloop."""
    session.install("--quiet", ".[all]", *group("test"))
    for loop in ("debug", "uvloop"):
        run_tests(session, "--loop", loop, *(session.posargs or LOOP_TESTS))


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests and check the coverage of lines and branches."""
    session.install("--quiet", ".[all]", *group("test"))
    session.run("coverage", "erase")
    run_tests(session, command=("coverage", "run", "-m", "pytest"))
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


def run_tests(
    session: nox.Session, *arguments: str, command: tuple[str, ...] = ("pytest",)
) -> None:
    """Run timing tests serially, the others in parallel, and rerun failures once.

    Tests use real sockets, processes and clocks, so they depend on the load of the machine.
    """
    for chosen, workers in (("alone", ()), ("not alone", ("-n", "auto", "--dist", "worksteal"))):
        try:  # 5: no tests were collected
            session.run(*command, "-m", chosen, *workers, *arguments, success_codes=[0, 5])
        except CommandFailed:
            session.warn("Rerunning the failed tests:")
            session.run(*command, "-m", chosen, "--last-failed", *arguments)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation with warnings as errors, into `-- DIRECTORY` if given."""
    session.install("--quiet", ".[all]", *group("docs"))
    target = Path(*session.posargs or [ROOT / ".nox" / "html"])
    arguments = ("-W", "--keep-going", "--quiet", "--fresh-env", "-d", session.create_tmp())
    session.run("sphinx-build", *arguments, "docs", target)
    session.log(f"The first page is {target / 'index.html'}")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the machine's limit and other clients; write figures and plots."""
    session.install("--quiet", ".[all]", *group("bench"))
    output = Path(session.create_tmp())
    plots = output if "--quick" in session.posargs else ROOT / "benchmarks" / "pictures"
    figures = ("--json", output / "bench.json", "--plots", plots)
    session.run("python", "benchmarks/waiting.py", "--quick", "--plots", plots)
    session.run("python", "benchmarks/run.py", *figures, *session.posargs)
    session.log(f"The figures are in {output / 'bench.json'}, the plots in {plots}")
