"""File names for stems: out of what the vendor and the user call them, into one directory."""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from musicgpt_async.errors import InvalidOptionError

DEFAULT_TEMPLATE = "{track} - {stem}.{ext}"
FIELDS = ("track", "stem", "ext")
# Common file systems take 255 bytes; a temporary name adds some.
LONGEST_NAME = 200
_File = tuple[str, str]
# Names that Windows keeps for devices, whatever their ending.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
)


def checked_template(template: str) -> str:
    """Return a layout such as ``{track}/{stem}.{ext}``.

    Raises:
        InvalidOptionError: It has other fields, leads out of the directory, or would give two stems
            one name.
    """
    try:
        fields = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InvalidOptionError(f"The layout {template!r} is broken: {error}.") from error
    used = {name for _, name, _, _ in fields}
    changed = any(spec or conversion for _, _, spec, conversion in fields)
    leads_out = ".." in PurePosixPath(template).parts or template.startswith(("/", "\\"))
    if used - set(FIELDS) or not {"stem", "ext"} <= used or changed or leads_out:
        raise InvalidOptionError(
            f"The layout {template!r} cannot be used: it needs {{stem}} and {{ext}}, may have "
            "{track}, and stays inside the output directory."
        )
    return template


def target(directory: Path, template: str, *, track: str, stem: str, ext: str) -> Path:
    """Return where a stem's file belongs; no name leads out of the directory."""
    values = {"track": safe(track, 150), "stem": safe(stem, 60), "ext": safe(ext, 10)}
    return directory.joinpath(*PurePosixPath(template.format(**values)).parts)


def numbered(path: Path, number: int) -> Path:
    """Return the name for the second, third, … file that would have the same one."""
    return path if number < 2 else path.with_name(f"{path.stem} ({number}){path.suffix}")


def place(directory: Path, template: str, *, track: str) -> str:
    """Return what is equal for tracks whose files would have the same names."""
    anywhere = str(target(directory, template, track=track, stem="", ext="")).casefold()
    return hashlib.sha256(anywhere.encode(errors="surrogatepass")).hexdigest()


def distinct(paths: Mapping[_File, Path]) -> dict[_File, Path]:
    """Return the paths with numbers where the vendor's names for two stems look the same."""
    taken: set[str] = set()
    result: dict[_File, Path] = {}
    for file, path in paths.items():
        number = 1
        while str(numbered(path, number)).casefold() in taken:
            number += 1
        result[file] = numbered(path, number)
        taken.add(str(result[file]).casefold())
    return result


def safe(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name that is one part of a path on every common file system."""
    normal = unicodedata.normalize("NFC", name)
    kept = "".join("_" if c in '/\\:*?"<>|' or not _shows(c) else c for c in normal)
    short = kept.encode("utf-8", "replace")[:longest].decode("utf-8", "ignore")
    trimmed = short.strip().rstrip(". ")
    if not trimmed.strip("."):
        return "_"
    return f"_{trimmed}" if trimmed.partition(".")[0].lower() in _DEVICES else trimmed


def _shows(character: str) -> bool:
    # Control characters, and those that make a name read otherwise than it is (bidirectional).
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
