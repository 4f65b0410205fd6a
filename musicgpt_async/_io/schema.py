"""The tables of the journal and their versions. What a row means is for the journal to say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from musicgpt_async.errors import JournalError

if TYPE_CHECKING:
    import sqlalchemy as sa

SCHEMA_VERSION = 4
# Version → what turns a journal of it into one of the next, in the transaction that opens it. The
# tables and columns that it lacks then are added by `add_missing`.
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
    3: ("UPDATE musicgpt_journal SET version = 4",),
}
# "mGPT" in the header of an SQLite file says whose it is, to us and to file(1).
APPLICATION_ID = 0x6D475054


@attrs.frozen
class Tables:
    """The tables.

    Attributes:
        metadata: All of them.
        journal: One row: the schema's version, and the secret that signs webhook tokens.
        owners: Who has leases, until when, and the last of its transactions that was committed.
        jobs: One row for each job. `account` and `site` say which processes may continue it.
        places: The numbers of tasks whose files would have the same names.
        accounts: What the processes share of an account: the states of the rules for slots and for
            polls, the next poll's time, how many were made, until when none is, credits spent.
        slots: One row for each job that counts against its account's limit: whether its track was
            sent, whether its price is among the credits spent, when it counts no more.
        deliveries: Webhooks that arrived at a process which does not work on their job, by the
            public part of the token. Rows older than a day are deleted.
    """

    metadata: sa.MetaData
    journal: sa.Table
    owners: sa.Table
    jobs: sa.Table
    places: sa.Table
    accounts: sa.Table
    slots: sa.Table
    deliveries: sa.Table


def make_tables() -> Tables:
    """Return the tables, of which nothing is in a database yet. Times are the database's clock's.

    Columns that were added to a table since its first version may be null.
    """
    # Only those who make a journal need the extra, and pay for its import.
    import sqlalchemy as sa  # noqa: PLC0415

    metadata = sa.MetaData()
    # Names of files need not be valid Unicode and labels may hold anything: JSON bears them all.
    json_type = sa.JSON(none_as_null=True)
    journal = sa.Table(
        "musicgpt_journal",
        metadata,
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("secret", sa.Text),
    )
    owners = sa.Table(
        "musicgpt_owners",
        metadata,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.Column("last_write", sa.BigInteger),
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
        sa.Column("account", sa.Text),
        sa.Column("site", sa.Text),
        sa.Index("ix_musicgpt_jobs_unfinished", "unfinished", "seq"),
    )
    places = sa.Table(
        "musicgpt_places",
        metadata,
        sa.Column("place", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.Text, nullable=False),
    )
    accounts = sa.Table(
        "musicgpt_accounts",
        metadata,
        sa.Column("account", sa.Text, primary_key=True),
        sa.Column("slots", json_type),
        sa.Column("polls", sa.Text),  # JSON, and compared as text
        sa.Column("next_poll", sa.Double),
        sa.Column("polls_made", sa.BigInteger),
        sa.Column("paused_until", sa.Double),
        sa.Column("spent", json_type),
    )
    slots = sa.Table(
        "musicgpt_slots",
        metadata,
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("account", sa.Text, nullable=False, index=True),
        sa.Column("owner", sa.Text, nullable=False, index=True),
        sa.Column("sent", sa.Boolean, nullable=False),
        sa.Column("priced", sa.Boolean, nullable=False),
        sa.Column("until", sa.Double),
    )
    deliveries = sa.Table(
        "musicgpt_deliveries",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("public", sa.Text, nullable=False, index=True),
        sa.Column("body", json_type, nullable=False),
        sa.Column("at", sa.Double, nullable=False, index=True),
        sqlite_autoincrement=True,  # readers ask for the ids after the last one that they saw
    )
    return Tables(metadata, journal, owners, jobs, places, accounts, slots, deliveries)


def add_missing(connection: sa.Connection, tables: Tables) -> None:
    """Add the tables and columns that a journal of an older version lacks."""
    import sqlalchemy as sa  # noqa: PLC0415 - see make_tables

    tables.metadata.create_all(connection)
    inspector = sa.inspect(connection)
    for table in tables.metadata.tables.values():
        there = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                statement = f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"
                connection.exec_driver_sql(statement)


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


def check_unused(name: str, version: int, owners: Collection[str]) -> None:
    """Refuse to upgrade a journal while processes of an older release use it."""
    if owners:
        shown = ", ".join(sorted(owners)[:3])
        raise JournalError(
            f"The journal {name} has schema version {version} and is in use by {len(owners)} "
            f"process(es) of an older release ({shown}). Nothing was changed: end them, then open "
            "it again to upgrade it."
        )
