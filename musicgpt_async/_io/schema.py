"""The tables of the journal and their versions. What a row means is for the journal to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from musicgpt_async.errors import JournalError

if TYPE_CHECKING:
    import sqlalchemy as sa

SCHEMA_VERSION = 3
# Version → what turns a journal of it into one of the next, in the transaction that opens it.
UPGRADES: Mapping[int, Sequence[str]] = {
    2: (
        "ALTER TABLE musicgpt_jobs RENAME COLUMN hinted_task TO candidate_task_id",
        "ALTER TABLE musicgpt_jobs RENAME COLUMN wanted TO requested_stems",
        """UPDATE musicgpt_jobs SET state = CASE state
            WHEN 'delivered' THEN 'unacknowledged'
            WHEN 'waiting' THEN 'processing'
            WHEN 'expired' THEN 'timed_out'
            WHEN 'released' THEN 'detached'
            ELSE state
        END""",
        "UPDATE musicgpt_journal SET version = 3",
    ),
}
# "mGPT" in the header of an SQLite file says whose it is, to us and to file(1).
APPLICATION_ID = 0x6D475054


def make_tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table, sa.Table, sa.Table]:
    """Return the tables, of which nothing is in a database yet."""
    # Only those who make a journal need the extra, and pay for its import.
    import sqlalchemy as sa  # noqa: PLC0415

    # Names of files need not be valid Unicode and labels may hold anything: JSON bears them all.
    json_type = sa.JSON(none_as_null=True)
    journal = sa.Table(
        "musicgpt_journal", metadata, sa.Column("version", sa.Integer, nullable=False)
    )
    owners = sa.Table(
        "musicgpt_owners",
        metadata,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("lease_until", sa.Double, nullable=False),
    )
    jobs = sa.Table(
        "musicgpt_jobs",
        metadata,
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("fingerprint", sa.Text, nullable=False, index=True),
        sa.Column("source", json_type, nullable=False),
        sa.Column("label", json_type),
        sa.Column("title", json_type),  # since retrieve()
        sa.Column("stems", json_type, nullable=False),
        sa.Column("preprocessing", json_type, nullable=False),
        sa.Column("eco_mode", sa.Boolean),  # since the second generation of the API
        sa.Column("token", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("sha256", sa.Text),
        sa.Column("task_id", sa.Text, index=True),
        sa.Column("conversion_id", sa.Text),
        sa.Column("candidate_task_id", sa.Text),
        sa.Column("eta", sa.Double),
        sa.Column("credit_estimate", sa.Double),
        sa.Column("sent_at", sa.Double),
        sa.Column("accepted_at", sa.Double),
        sa.Column("links", json_type, nullable=False),
        sa.Column("cost", sa.Double),
        sa.Column("duration", sa.Double),
        sa.Column("directory", json_type),
        sa.Column("format", sa.Text),
        sa.Column("requested_stems", json_type, nullable=False),
        sa.Column("layout", json_type),
        sa.Column("files", json_type, nullable=False),
        sa.Column("error", json_type),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("unfinished", sa.Boolean, nullable=False),
        sa.Column("owner", sa.Text, index=True),
        sa.Index("ix_musicgpt_jobs_unfinished", "unfinished", "seq"),
    )
    places = sa.Table(
        "musicgpt_places",
        metadata,
        sa.Column("place", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.Text, nullable=False),
    )
    return journal, owners, jobs, places


def add_columns(connection: sa.Connection, table: sa.Table) -> None:
    """Add the columns that a journal of the same version may lack; all of them may be null."""
    import sqlalchemy as sa  # noqa: PLC0415 - see make_tables

    there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")


def check_version(name: str, version: int | None) -> int:
    """Return the version of a journal that can be used, as it is or upgraded."""
    if version is not None and (version == SCHEMA_VERSION or version in UPGRADES):
        return version
    is_later = version is not None and version > SCHEMA_VERSION
    raise JournalError(
        f"The journal {name} has schema version {version}, and this release of musicgpt-async "
        f"knows version {SCHEMA_VERSION}. "
        f"{'Upgrade' if is_later else 'Use the release that made it of'} musicgpt-async, or "
        "use another journal."
    )
