"""Build safe file names for stems from titles and layouts.

Titles and stem names come from users and from MusicGPT, so they are sanitized: no name leaves the
output directory, and every name is valid on every common file system.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from musicgpt_async.errors import InvalidOptionError

DEFAULT_LAYOUT = "{track} - {stem}.{ext}"
FIELDS = ("folder", "track", "stem", "ext")
# Longest name in bytes on common file systems.
MAX_NAME_BYTES = 255
# Longest field in bytes: with the default layout, all fields and a number fit into one name.
MAX_TRACK_BYTES, MAX_STEM_BYTES, MAX_EXT_BYTES = 150, 60, 10
MAX_FOLDER_BYTES = 200  # of each part
_File = tuple[str, str]
# Names that Windows reserves for devices, with any extension.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
)


# YouTube URLs are named by a video's id, which is in the query or at the end of the path.
_YOUTUBE_HOSTS = frozenset({"youtube.com", "youtu.be", "youtube-nocookie.com"})
_YOUTUBE_ID = re.compile(r"[\w-]{6,64}")


def name_in_url(url: str) -> str:
    """Return the file name in a URL; ``YouTube <id>`` for a video, empty if it has none.

    Raises:
        ValueError: The text is not a URL.
    """
    parts = urlsplit(url)
    last = PurePosixPath(unquote(parts.path)).name
    host = (parts.hostname or "").rpartition(".")
    site = f"{host[0].rpartition('.')[2]}.{host[2]}"
    if site not in _YOUTUBE_HOSTS:
        return last
    query = parse_qs(parts.query)
    found = [*query.get("v", ()), *query.get("list", ()), last]
    return next((f"YouTube {each}" for each in found if _YOUTUBE_ID.fullmatch(each)), last)


def name_of(source: str) -> str:
    """Return the file name in a path or URL; empty if it has none."""
    try:
        is_url = source.lower().startswith(("http://", "https://"))
        return name_in_url(source) if is_url else PurePath(source).name
    except ValueError:
        return ""


def title_of(source: str) -> str:
    """Return the title for a path or URL: its file name without the extension."""
    return PurePath(name_of(source)).stem


def validate_layout(layout: str) -> str:
    """Return a layout such as ``{folder}/{track}/{stem}.{ext}`` unchanged.

    Raises:
        InvalidOptionError: The layout has other fields, could leave the directory on some system,
            or would give two stems the same name.
    """
    try:
        fields = [part for part in string.Formatter().parse(layout) if part[1] is not None]
    except ValueError as error:
        raise InvalidOptionError(f"The layout {layout!r} is malformed: {error}.") from error
    used = {name for _, name, _, _ in fields}
    changed = any(spec or conversion for _, _, spec, conversion in fields)
    if used - set(FIELDS) or not {"stem", "ext"} <= used or changed:
        raise InvalidOptionError(
            f"The layout {layout!r} cannot be used: it needs {{stem}} and {{ext}}, and may have "
            "{track} and {folder}."
        )
    if why := _why_not_a_path(layout):
        raise InvalidOptionError(f"The layout {layout!r} cannot be used: it {why}.")
    return layout


def _why_not_a_path(layout: str) -> str:
    if ".." in PurePosixPath(layout).parts or layout.startswith("/"):
        return "leads out of the output directory"
    if "\\" in layout or re.match(r"[A-Za-z]:", layout):
        return "has a backslash or a drive letter; put / between directories"
    if layout.endswith("/"):
        return "ends with a slash, so it names no file"
    if "\0" in layout or not _is_utf8(layout):
        return "has a character that no file name can have"
    return ""


def with_folder(layout: str, folder: str) -> str:
    """Return a layout with ``{folder}`` replaced, to be stored with a job.

    Args:
        layout: The layout.
        folder: Path below the output directory, separated by ``/``; may be empty.
    """
    parts = [
        sanitize(part, MAX_FOLDER_BYTES) for part in folder.split("/") if part not in ("", ".")
    ]
    literal = "/".join(parts).replace("{", "{{").replace("}", "}}")
    pieces = []
    for text, name, _, _ in string.Formatter().parse(layout):
        pieces.append(text.replace("{", "{{").replace("}", "}}"))
        if name is not None:
            pieces.append(literal if name == "folder" else f"{{{name}}}")
    return "".join(pieces).lstrip("/")


def output_path(directory: Path, layout: str, *, track: str, stem: str, ext: str) -> Path:
    """Return the path of a stem's file, which is always below the directory."""
    values = {
        "folder": "",
        "track": sanitize(track, MAX_TRACK_BYTES),
        "stem": sanitize(stem, MAX_STEM_BYTES),
        "ext": sanitize(ext, MAX_EXT_BYTES),
    }
    *folders, name = PurePosixPath(layout.format(**values).lstrip("/")).parts
    return directory.joinpath(*(_fit(folder) for folder in folders), _fit_name(name))


def numbered_track(track: str, number: int) -> str:
    """Return a track's name with its number, if it is not the first of this name."""
    if number < 2:
        return track
    tail = f" ({number})"
    return sanitize(track, MAX_TRACK_BYTES - len(tail)) + tail


def with_number(path: Path, number: int) -> Path:
    """Return a path with its number, if it is not the first of this name."""
    return path if number < 2 else path.with_name(_fit_name(path.name, f" ({number})"))


def collision_key(directory: Path, layout: str, *, track: str) -> str:
    """Return a digest that is equal for tracks whose files would have the same names."""
    anywhere = str(output_path(directory, layout, track=track, stem="", ext="")).casefold()
    return hashlib.sha256(anywhere.encode(errors="surrogatepass")).hexdigest()


def has_track(layout: str) -> bool:
    """Return whether a layout contains the track's name, to which a number can be added."""
    return any(name == "track" for _, name, _, _ in string.Formatter().parse(layout))


def make_distinct(paths: Mapping[_File, Path]) -> dict[_File, Path]:
    """Return the paths, numbered if the names of two stems sanitize to the same one."""
    taken: set[str] = set()
    result: dict[_File, Path] = {}
    for file, path in paths.items():
        number = 1
        while str(with_number(path, number)).casefold() in taken:
            number += 1
        result[file] = with_number(path, number)
        taken.add(str(result[file]).casefold())
    return result


def sanitize(name: str, max_bytes: int = MAX_FOLDER_BYTES) -> str:
    """Return a name that is a single, valid path component on every common file system."""
    normal = unicodedata.normalize("NFC", name)
    kept = "".join("_" if c in '/\\:*?"<>|' or not _is_visible(c) else c for c in normal)
    short = kept.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")
    trimmed = short.strip().rstrip(". ")
    if not trimmed.strip("."):
        return "_"
    return f"_{trimmed}" if trimmed.partition(".")[0].lower() in _DEVICES else trimmed


def _fit_name(name: str, tail: str = "") -> str:
    """Return a file name with a tail before its extension, cut to `MAX_NAME_BYTES`."""
    path = PurePosixPath(name)
    return _fit(path.stem, tail + path.suffix)


def _fit(name: str, tail: str = "") -> str:
    """Cut a name between characters, so that it fits together with its tail."""
    return name.encode()[: MAX_NAME_BYTES - len(tail.encode())].decode(errors="ignore") + tail


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_visible(character: str) -> bool:
    # Exclude control characters, and bidirectional ones, which make a name display differently.
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
