"""Lists of tracks: plain paths, one a line; or with options, as CSV or JSON lines."""

from __future__ import annotations

import csv
import difflib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import attrs

from musicgpt_async._rules.fingerprint import check_key
from musicgpt_async.cli.names import split_names
from musicgpt_async.cli.usage import UsageError
from musicgpt_async.errors import InvalidOptionError

COLUMNS = ("source", "stems", "preprocessing", "eco_mode", "label", "key")
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
STDIN = Path("-")
Lines = Iterator[tuple[int, Mapping[str, Any]]]


@attrs.frozen(kw_only=True)
class TrackList:
    """A list that can be read any number of times.

    Attributes:
        name: What messages call it.
        path: The file that it is read from.
        folder: Directory that its relative paths are resolved against.
    """

    name: str
    path: Path
    folder: Path


@attrs.frozen(kw_only=True)
class ListRow:
    """One line of a list; omitted columns are ``None``.

    Attributes:
        location: File and line, for messages.
        source: Path or URL, as written.
        stems: Names.
        preprocessing: Names.
        eco_mode: Whether to ask for the faster separation.
        label: The track's name.
        key: The user's own name for this piece of work.
    """

    location: str
    source: str
    stems: tuple[str, ...] | None
    preprocessing: tuple[str, ...] | None
    eco_mode: bool | None
    label: str | None
    key: str | None = None


@contextmanager
def open_list(path: Path | None) -> Iterator[TrackList | None]:
    """Provide a list for the duration of the block; ``-`` is copied to a temporary file.

    Raises:
        UsageError: It is to come on standard input, and nothing does.
    """
    if path is None:
        yield None
    elif path != STDIN:
        yield TrackList(name=str(path), path=path, folder=path.parent)
    else:
        with tempfile.TemporaryDirectory(prefix="musicgpt-async-") as folder:
            copy = Path(folder, "list")
            with copy.open("wb") as file:
                if sys.stdin is not None and not sys.stdin.isatty():
                    shutil.copyfileobj(sys.stdin.buffer, file)
            if not copy.stat().st_size:
                raise UsageError(
                    "--list - reads the list from standard input, and nothing comes from there: "
                    "pipe it in, as in `musicgpt-async extract --list - … < tracks.csv`."
                )
            yield TrackList(name="standard input", path=copy, folder=Path())


def rows(list_: TrackList) -> Iterator[ListRow]:
    """Read a list line by line.

    Raises:
        UsageError: It cannot be read, or a line of it cannot be understood.
    """
    try:
        with list_.path.open(encoding="utf-8-sig", newline="") as file:
            lines = _choose_format(file.read(4096), list_.folder)
            file.seek(0)
            for number, values in lines(list_.name, file):
                yield _row(f"{list_.name}, line {number}", values)
    except OSError as error:
        raise UsageError(
            f"The list {list_.name} cannot be read: {error.strerror or error}."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"The list {list_.name} is neither paths, CSV nor JSON lines: {error}."
        ) from error


def _choose_format(head: str, folder: Path) -> Callable[[str, TextIO], Lines]:
    """Return what reads a list that begins so.

    A first line that has a comma and is no file is taken for a header with a mistake: its tracks
    must not go without the options of the other columns.
    """
    first = next((line.strip() for line in head.splitlines() if line.strip()), "")
    if first.startswith("{"):
        return _json_lines
    cells = [cell.strip() for cell in first.split(",")]
    is_path = first.lower().startswith(("http://", "https://")) or (folder / first).exists()
    is_header = not set(COLUMNS).isdisjoint(cells) or len(cells) > 1
    return _csv_lines if not first or (is_header and not is_path) else _plain_lines


def _plain_lines(_: str, file: TextIO) -> Lines:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, {"source": line.strip()}


def _csv_lines(name: str, file: TextIO) -> Lines:
    table = csv.DictReader(file, restkey="", strict=True)
    header = [column.strip() for column in table.fieldnames or ()]
    if "source" not in header:
        raise UsageError(
            f"The list {name} has no column 'source'. Its first line names the columns, with "
            f"commas between them: {', '.join(COLUMNS)}; or each line is the path of a track."
        )
    table.fieldnames = header
    for values in table:
        yield table.line_num, {column: cell for column, cell in values.items() if cell}


def _json_lines(name: str, file: TextIO) -> Lines:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{name}, line {number}: this is not JSON ({error}).") from error
        except RecursionError as error:
            raise UsageError(f"{name}, line {number}: this is nested too deeply.") from error
        if not isinstance(values, dict):
            raise UsageError(f"{name}, line {number}: this is not a JSON object.")
        yield number, {column: value for column, value in values.items() if value is not None}


def _row(location: str, values: Mapping[str, Any]) -> ListRow:
    _refuse_unknown_columns(location, values)
    source, label = values.get("source"), values.get("label")
    if not isinstance(source, str) or not source.strip():
        raise UsageError(f"{location}: there is no source.")
    if label is not None and not isinstance(label, str):
        raise UsageError(f"{location}: the label is not text.")
    return ListRow(
        location=location,
        source=source.strip(),
        stems=_names(location, "stems", values),
        preprocessing=_names(location, "preprocessing", values),
        eco_mode=_flag(location, "eco_mode", values),
        label=label,
        key=_key(location, values),
    )


def _key(location: str, values: Mapping[str, Any]) -> str | None:
    try:
        return check_key(values.get("key"))
    except InvalidOptionError as error:
        raise UsageError(f"{location}: {error}") from error


def _refuse_unknown_columns(location: str, values: Mapping[str, Any]) -> None:
    # A column that is not understood may be a misspelt one, and its tracks be paid for in vain.
    for name in values:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else f". Known: {', '.join(COLUMNS)}."
            raise UsageError(f"{location}: there is no column {name!r}{meant}")


def _names(location: str, column: str, values: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = values.get(column)
    if value is None:
        return None
    if isinstance(value, str):
        return split_names(value)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise UsageError(f"{location}: {column} is neither text nor a list of names.")


def _flag(location: str, column: str, values: Mapping[str, Any]) -> bool | None:
    value = values.get(column)
    found = FLAGS.get(value.strip().lower()) if isinstance(value, str) else value
    if value is None or isinstance(found, bool):
        return found
    raise UsageError(f"{location}: {column} is true or false, not {str(value)[:50]!r}.")
