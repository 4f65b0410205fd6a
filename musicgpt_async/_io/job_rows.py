"""Convert between rows of the jobs' table and records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from musicgpt_async._rules import records
from musicgpt_async.models import JobRecord, JobState, StemFile, StemLinks

if TYPE_CHECKING:
    import sqlalchemy as sa

UNREADABLE = object()
"""The value of a column whose JSON cannot be parsed."""
# Columns of numbers; SQLite would also store a string in them.
_NUMBERS = frozenset(
    {"size", "eta", "credit_estimate", "sent_at", "accepted_at", "cost", "duration", "created_at"}
)
_ATTRIBUTES = tuple(attribute.name for attribute in attrs.fields(JobRecord))


def encode_record(record: JobRecord) -> dict[str, Any]:
    """Turn a record into a row; the columns bear the names of its attributes."""
    # Not attrs.asdict(record), which looks into each value for more attributes: 40 us.
    return {
        **{name: getattr(record, name) for name in _ATTRIBUTES},
        "state": str(record.state),
        "stems": [str(stem) for stem in record.stems],
        "preprocessing": [str(option) for option in record.preprocessing],
        "links": {stem: attrs.asdict(links) for stem, links in record.links.items()},
        "files": [attrs.asdict(file) for file in record.files],
        "unfinished": records.is_unfinished(record),
    }


def decode_record(row: sa.Row[Any]) -> JobRecord:
    """Convert a row to a record.

    Raises:
        ValueError: A column has an invalid value; TypeError and AttributeError mean the same.
    """
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's own name for what is public
    values = {name: columns[name] for name in _ATTRIBUTES}
    for name, value in values.items():
        if value is UNREADABLE or (name in _NUMBERS and isinstance(value, str)):
            raise ValueError(f"{name} is unreadable")
    values["state"] = JobState(values["state"])
    values["eco_mode"] = bool(values["eco_mode"])
    for name in ("stems", "preprocessing", "requested_stems"):
        values[name] = tuple(values[name])
    values["links"] = {stem: StemLinks(**links) for stem, links in values["links"].items()}
    values["files"] = tuple(StemFile(**file) for file in values["files"])
    return JobRecord(**values)
