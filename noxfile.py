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
LOOP_TESTS = (
    "tests/test_bell.py",
    "tests/test_session.py",
    "tests/test_job.py",
    "tests/webhooks",
    "tests/io",
)


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
from nox.command import CommandFailed

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


# The API page: the README's sections that have public names, and what each name is. A value is
# an object that users are given and do not make.
API = {
    "The library in ten lines": ("class MusicGPTSession", "enum Stem", "enum Preprocessing"),
    "Jobs": (
        "value ExtractionJob",
        "enum JobState",
        "value Acceptance",
        "value Extraction",
        "value StemLinks",
        "data models.AudioFormat",
    ),
    "Batches": ("value Outcome", "class Item", "class Journal"),
    "Limits and money": ("class Limits",),
    "Errors": (
        "module errors",
        "exception MusicGPTError",
        "exception ConfigurationError",
        "exception EndpointNotFoundError",
        "exception InvalidOptionError",
        "exception SourceError",
        "exception SourceChangedError",
        "exception SessionClosedError",
        "exception NotFinishedError",
        "exception TransportError",
        "exception StalledError",
        "exception ProtocolError",
        "exception APIError",
        "exception BadRequestError",
        "exception AuthenticationError",
        "exception InsufficientCreditsError",
        "exception ForbiddenError",
        "exception NotFoundError",
        "exception ConflictError",
        "exception ValidationError",
        "exception RateLimitError",
        "exception ServerError",
        "exception SubmissionUnknownError",
        "exception CreditLimitError",
        "exception ExtractionFailedError",
        "exception DeadlineError",
        "exception ReleasedError",
        "exception DownloadError",
        "exception JournalError",
    ),
    "Webhooks": ("class WebhookReceiver",),
    "Observability": (
        "module events",
        "value events.Event",
        "value events.Queued",
        "value events.Uploading",
        "value events.Accepted",
        "value events.Looked",
        "value events.Woken",
        "value events.Slowed",
        "value events.Completed",
        "value events.Failed",
        "value events.Downloading",
        "value events.Downloaded",
        "module otel",
        "function otel.instrument",
    ),
    "The emulator": (
        "class emulator.Emulator",
        "class emulator.Fault",
        "value emulator.Occasion",
        "value emulator.Script",
        "value emulator.Submission",
        "value emulator.Upload",
        "class emulator.Delivery",
        "value emulator.Delivered",
        "value emulator.Exchange",
        "class emulator.Shape",
        "data emulator.faults.KINDS",
        "data emulator.webhooks.BEHAVIOURS",
        "data emulator.answers.SHAPES",
        "data emulator.answers.ERROR_BODIES",
        "data emulator.catalogue.STEMS",
        "data emulator.catalogue.FAMILIES",
        "data emulator.catalogue.DEFAULT_STEMS",
        "data emulator.catalogue.PREPROCESSING",
    ),
    "In your own tests": (
        "module testing",
        "fixture testing.musicgpt_emulator",
        "fixture testing.musicgpt_session",
        "function testing.running_emulator",
        "function testing.hasty_loop",
    ),
}
UNMADE = {"enum", "value", "exception", "fixture"}
# Members that the parts of the library have for each other.
INTERNAL = {
    "MusicGPTSession": "announce call_soon check_loop download reader release "
    "room_for_another run_errand standing_idle",
    "ExtractionJob": "advance event holds_slot note note_fetch place record take_up",
    "WebhookReceiver": "inbox instance token_for url_for",
    "Journal": "claim enter owns release renew save",
}
SIDEBAR = ("sidebar/brand", "sidebar/search", "sidebar/scroll-start", "names", "sidebar/scroll-end")
# Sphinx's settings, of which everything else stays as it is.
PAGE = {
    "project": "musicgpt-async",
    "extensions": ["sphinx.ext.autodoc", "sphinx.ext.napoleon"],
    "html_theme": "furo",
    "html_title": "musicgpt-async",
    "templates_path": ["."],
    "html_static_path": ["page.css"],
    "html_css_files": ["page.css"],
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "html_copy_source": False,
    "default_role": "code",
    "add_module_names": False,
    "autodoc_member_order": "bysource",
    "napoleon_use_ivar": True,
    "autodoc_typehints_format": "short",
    "maximum_signature_line_length": 70,
    "toc_object_entries_show_parents": "hide",
    "html_sidebars": {"**": [f"{part}.html" for part in SIDEBAR]},
}
# What is not in Sphinx's settings: the names at the page's side, how they look, and how docstrings
# are shown. Users make no errors, values and fixtures, so these are shown without arguments.
PAGE_FILES = {
    "names.html": '<nav aria-label="Names">{{ toc }}</nav>',
    "page.css": """
nav ul { list-style: none; margin: 0; padding-left: var(--sidebar-item-spacing-horizontal); }
nav > ul > li > ul { padding: 0; }
nav > ul > li > a { display: none; }
nav a { display: block; padding: 0.2rem 0; overflow-wrap: anywhere; text-decoration: none; }
nav a:not(:hover) { color: var(--color-sidebar-link-text); }
nav ul ul ul ul { display: none; }
h1 { font-size: 2em; }
""",
}
PAGE_HOOKS = r"""
import re

def setup(app):
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring, priority=900)

def signature(app, what, name, thing, options, arguments, returns):
    return ("", None) if name in UNMADE else None

def docstring(app, what, name, thing, options, lines):
    lines[:] = [short(line) if line.startswith(":vartype") else line for line in lines]
    if isinstance(thing, dict):
        lines += ["", *(entry(key, row) for key, row in thing.items())]

def entry(key, row):
    told = f" ({', '.join(sorted(row.targets))}): {row.what}" if hasattr(row, "what") else ""
    return f"- ``{key}``{told}"

def short(line):
    return re.sub(r"(?<![\w~.])(?:\w+\.)+[A-Z]", r"~\g<0>", line)
"""


def page_settings() -> str:
    """Return the text of Sphinx's conf.py."""
    entries = [entry.split() for entries in API.values() for entry in entries]
    unmade = [f"musicgpt_async.{name}" for kind, name in entries if kind in UNMADE]
    settings = PAGE | {"UNMADE": unmade}
    return "\n".join(f"{name} = {value!r}" for name, value in settings.items()) + PAGE_HOOKS


def api_page() -> str:
    """Return the page's text before Sphinx puts the docstrings in."""
    parts = [":hide-toc:\n", _heading("musicgpt-async, name by name", "=")]
    for section, entries in API.items():
        parts += [_heading(section, "-"), *(_directive(*entry.split()) for entry in entries)]
    return "\n".join(parts)


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def _directive(kind: str, name: str) -> str:
    options = {
        "module": [":no-members:"],
        "data": [":no-value:"],
        "enum": [":members:", ":undoc-members:"],
        "value": [":members:"],
        "class": [":members:"],
        "exception": [":members:", ":show-inheritance:"],
    }.get(kind, [])
    if name in INTERNAL:
        options = [*options, f":exclude-members: {', '.join(INTERNAL[name].split())}"]
    kind = {"enum": "class", "value": "class", "fixture": "function"}.get(kind, kind)
    lines = [f".. auto{kind}:: musicgpt_async.{name}", *(f"   {each}" for each in options)]
    return "\n".join(lines) + "\n"


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
    _run_tests(session, *session.posargs)
    if not session.posargs and session.python == FOUND[-1]:
        for loop in ("debug", "uvloop"):
            _run_tests(session, "--loop", loop, *LOOP_TESTS)


def _run_tests(session: nox.Session, *arguments: str) -> None:
    """Run the tests, and those that failed once more: only what fails twice fails the session.

    They use real sockets, processes and clocks, and the machine may be busy with other things.
    """
    try:
        session.run("pytest", *arguments)
    except CommandFailed:
        session.warn("Once more, what failed:")
        session.run("pytest", "--last-failed", *arguments)


@nox.session
def docs(session: nox.Session) -> None:
    """Make one page of all public names from their docstrings; `-- DIRECTORY` says where."""
    session.install("--quiet", ".[all]", *group("docs"))
    source = Path(session.create_tmp())
    # What an earlier run left would hide a name that is gone.
    shutil.rmtree(source)
    source.mkdir()
    (source / "index.rst").write_text(api_page(), "utf-8")
    (source / "conf.py").write_text(page_settings(), "utf-8")
    for name, text in PAGE_FILES.items():
        (source / name).write_text(text, "utf-8")
    target = Path(*session.posargs or [ROOT / ".nox" / "api"])
    arguments = ("-W", "--keep-going", "--quiet", "--fresh-env", "-d", source / "doctrees")
    session.run("sphinx-build", *arguments, source, target)
    session.log(f"The page is {target / 'index.html'}")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the machine's limit and against other clients."""
    session.install("--quiet", ".[all]", *group("bench"))
    session.run("python", "benchmarks/run.py", *session.posargs)
