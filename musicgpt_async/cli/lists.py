"""Lists of tracks with options of their own: CSV with a header, or one JSON object a line."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import attrs

from musicgpt_async.cli.usage import UsageError

COLUMNS = ("source", "stems", "preprocessing", "label")
_SEPARATORS = re.compile(r"[\s,;|]+")


@attrs.frozen(kw_only=True)
class Row:
    """One line of a list; what it leaves out is ``None``.

    Attributes:
        where: File and line, for messages.
        source: Path or URL, as it is written there.
        stems: Names.
        preprocessing: Names.
        label: The track's name.
    """

    where: str
    source: str
    stems: tuple[str, ...] | None
    preprocessing: tuple[str, ...] | None
    label: str | None


def rows(path: Path) -> Iterator[Row]:
    """Read a list line by line.

    Raises:
        UsageError: It cannot be read, or a line of it cannot be understood.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            is_json = file.read(4096).lstrip().startswith("{")
            file.seek(0)
            for number, values in _json_lines(path, file) if is_json else _csv_lines(path, file):
                yield _row(f"{path}, line {number}", values)
    except OSError as error:
        raise UsageError(f"The list {path} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"The list {path} is neither CSV nor JSON lines: {error}.") from error


def _csv_lines(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    table = csv.DictReader(file, restkey="", strict=True)
    header = [name.strip() for name in table.fieldnames or ()]
    if "source" not in header:
        raise UsageError(
            f"The list {path} has no column 'source'; its first line names the columns: "
            f"{', '.join(COLUMNS)}."
        )
    table.fieldnames = header
    for values in table:
        yield table.line_num, {name: cell for name, cell in values.items() if cell}


def _json_lines(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: this is no JSON ({error}).") from error
        if not isinstance(values, dict):
            raise UsageError(f"{path}, line {number}: this is no JSON object.")
        yield number, {name: value for name, value in values.items() if value is not None}


def _row(where: str, values: Mapping[str, Any]) -> Row:
    _refuse_strangers(where, values)
    source, label = values.get("source"), values.get("label")
    if not isinstance(source, str) or not source.strip():
        raise UsageError(f"{where}: there is no source.")
    if label is not None and not isinstance(label, str):
        raise UsageError(f"{where}: the label is no text.")
    return Row(
        where=where,
        source=source.strip(),
        stems=_names(where, "stems", values),
        preprocessing=_names(where, "preprocessing", values),
        label=label,
    )


def _refuse_strangers(where: str, values: Mapping[str, Any]) -> None:
    # A column that is not understood may be a misspelt one, and its tracks be paid for in vain.
    for name in values:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else f". Known: {', '.join(COLUMNS)}."
            raise UsageError(f"{where}: there is no column {name!r}{meant}")


def _names(where: str, column: str, values: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = values.get(column)
    if value is None:
        return None
    if isinstance(value, str):
        return tuple(name for name in _SEPARATORS.split(value) if name)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise UsageError(f"{where}: {column} is neither text nor a list of names.")
