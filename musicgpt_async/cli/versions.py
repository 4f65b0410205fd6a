"""Versions, installed extras and paths; needs no extra itself."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import musicgpt_async
from musicgpt_async._version import __version__

NAME = "musicgpt-async"
_NAME = re.compile(r"[\w.-]+")
_EXCLUDED_SYSTEM = re.compile(r"sys_platform\s*!=\s*[\"'](\w+)")
_EXTRA = re.compile(r"extra\s*==\s*[\"']([\w-]+)")


def version_lines() -> list[str]:
    """Return what a bug report needs to say about the installation, a fact a line."""
    return [
        f"{NAME} {__version__}",
        f"python   {platform.python_version()} ({platform.system()}), {sys.executable}",
        f"package  {Path(musicgpt_async.__file__).parent}",
        *_describe_requirements(),
    ]


def _describe_requirements() -> Iterator[str]:
    """Describe the required packages, then each extra; nothing for a copy that is not installed."""
    try:
        requirements = metadata.requires(NAME) or []
        extras = metadata.metadata(NAME).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    yield f"requires {', '.join(_describe(each) for each in _packages_of(None, requirements))}"
    for extra in extras:
        if extra == "all":  # the others in one
            continue
        packages = sorted(set(_packages_of(extra, requirements)))
        missing = [name for name in packages if _version(name) is None]
        state = f"missing {', '.join(missing)}" if missing else "installed"
        shown = ", ".join(_describe(name) for name in packages if name not in missing)
        yield f"extra    {extra}: {state}{f' ({shown})' if shown else ''}"


def _packages_of(extra: str | None, requirements: list[str]) -> Iterator[str]:
    """Yield the names of an extra's packages, those of the extras that it includes, too."""
    for requirement in requirements:
        marker = _EXTRA.search(requirement)
        if (marker and marker[1]) != extra or _is_for_other_systems(requirement):
            continue
        name = _NAME.match(requirement)
        included = re.match(rf"{NAME}\[([\w,-]+)\]", requirement)
        if included:
            for each in included[1].split(","):
                yield from _packages_of(each, requirements)
        elif name:
            yield name[0]


def _is_for_other_systems(requirement: str) -> bool:
    excluded = _EXCLUDED_SYSTEM.search(requirement)
    return excluded is not None and excluded[1] == sys.platform


def _describe(package: str) -> str:
    return f"{package} {_version(package) or 'missing'}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
