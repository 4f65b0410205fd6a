"""Lists of tracks with options of their own: CSV with a header, or one JSON object a line."""

from __future__ import annotations

import csv
import difflib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import attrs

from musicgpt_async._rules.fingerprint import check_key
from musicgpt_async.cli.names import split_names
from musicgpt_async.cli.usage import UsageError
from musicgpt_async.errors import InvalidOptionError

COLUMNS = ("source", "stems", "preprocessing", "label", "key")
STDIN = Path("-")


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
        label: The track's name.
        key: The user's own name for this piece of work.
    """

    location: str
    source: str
    stems: tuple[str, ...] | None
    preprocessing: tuple[str, ...] | None
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
            is_json = file.read(4096).lstrip().startswith("{")
            file.seek(0)
            lines = _json_lines if is_json else _csv_lines
            for number, values in lines(list_.name, file):
                yield _row(f"{list_.name}, line {number}", values)
    except OSError as error:
        raise UsageError(
            f"The list {list_.name} cannot be read: {error.strerror or error}."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"The list {list_.name} is neither CSV nor JSON lines: {error}."
        ) from error


def _csv_lines(name: str, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    table = csv.DictReader(file, restkey="", strict=True)
    header = [column.strip() for column in table.fieldnames or ()]
    if "source" not in header:
        raise UsageError(
            f"The list {name} has no column 'source'. Its first line names the columns, with "
            f"commas between them: {', '.join(COLUMNS)}."
        )
    table.fieldnames = header
    for values in table:
        yield table.line_num, {column: cell for column, cell in values.items() if cell}


def _json_lines(name: str, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
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
        raise UsageError(f"{location}: the label is no text.")
    return ListRow(
        location=location,
        source=source.strip(),
        stems=_names(location, "stems", values),
        preprocessing=_names(location, "preprocessing", values),
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
