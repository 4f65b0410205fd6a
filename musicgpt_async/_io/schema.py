"""The tables of the journal, their versions, and every statement that is made to them.

The statements are right on SQLite and on PostgreSQL. What a row means is for the journal to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

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
# Rows read at a time, so that a slow reader keeps no transaction open.
PAGE_SIZE = 100


@attrs.frozen
class Statements:
    """Every statement that the journal makes; each is right on SQLite and on PostgreSQL."""

    metadata: sa.MetaData
    version: sa.Select[Any]
    set_version: sa.Insert
    lock: sa.Select[Any]
    renew_owner: sa.Update
    add_owner: sa.Insert
    delete_owner: sa.Delete
    other_owners: sa.Select[Any]
    delete_expired_owners: sa.Delete
    insert: sa.Insert
    save: sa.Update
    by_fingerprint: sa.Select[Any]
    acquire: sa.Update
    claimable: sa.Select[Any]
    acquire_claimable: sa.Update
    release: sa.Update
    page: sa.Select[Any]
    find: sa.Select[Any]
    owned: sa.Select[Any]
    number_of: sa.Select[Any]
    max_number: sa.Select[Any]
    add_number: sa.Insert


@cache
def load_statements() -> Statements:
    """Load SQLAlchemy and make the statements."""
    # Only those who make a journal need the extra, and pay for its import.
    import sqlalchemy as sa  # noqa: PLC0415

    metadata = sa.MetaData()
    journal, owners, jobs, places = _tables(metadata)
    key, owner_id = sa.bindparam("key", type_=sa.Text), sa.bindparam("owner_id", type_=sa.Text)
    now, until = sa.bindparam("now", type_=sa.Double), sa.bindparam("until", type_=sa.Double)
    live = sa.exists().where(owners.c.id == jobs.c.owner, owners.c.lease_until > now)
    owned_jobs = jobs.update().where(jobs.c.owner == owner_id)
    claimable = (
        sa.select(jobs)
        .where(
            jobs.c.unfinished,
            ~live,
            sa.or_(
                sa.bindparam("every", type_=sa.Boolean),  # of a state of no release, too
                jobs.c.state.in_(sa.bindparam("states", expanding=True)),
            ),
        )
        .order_by(jobs.c.seq)
        .limit(sa.bindparam("max_rows", type_=sa.BigInteger))
    )
    return Statements(
        metadata=metadata,
        version=sa.select(journal.c.version),
        set_version=journal.insert(),
        # One writer at a time: SQLite's BEGIN IMMEDIATE sees to it, PostgreSQL locks this row.
        lock=sa.select(journal.c.version).with_for_update(),
        renew_owner=owners.update().where(owners.c.id == owner_id).values(lease_until=until),
        add_owner=owners.insert().values(id=owner_id, lease_until=until),
        delete_owner=owners.delete().where(owners.c.id == owner_id),
        other_owners=sa.select(owners.c.id).where(owners.c.id != owner_id),
        # The dead that left no job behind; what a dead owner still holds is claimed first.
        delete_expired_owners=owners.delete().where(
            owners.c.lease_until <= now, ~sa.exists().where(jobs.c.owner == owners.c.id)
        ),
        insert=jobs.insert(),
        save=owned_jobs.where(jobs.c.id == key),
        by_fingerprint=sa.select(jobs, (~live).label("free"))
        .where(jobs.c.fingerprint == key)
        .order_by(jobs.c.seq.desc()),
        acquire=jobs.update().where(jobs.c.id == key).values(owner=owner_id),
        claimable=claimable,
        acquire_claimable=jobs.update()
        .where(jobs.c.seq.in_(claimable.with_only_columns(jobs.c.seq)))
        .values(owner=owner_id),
        release=owned_jobs.where(jobs.c.id == key).values(owner=None),
        page=sa.select(jobs)
        .where(jobs.c.seq > sa.bindparam("last"))
        .order_by(jobs.c.seq)
        .limit(PAGE_SIZE),
        find=sa.select(jobs, (~live).label("free"))
        .where(sa.or_(jobs.c.id == key, jobs.c.task_id == key))
        .order_by(jobs.c.seq.desc())
        .limit(1),
        owned=sa.select(jobs.c.id, jobs.c.owner, owners.c.lease_until).join(
            owners, owners.c.id == jobs.c.owner
        ),
        number_of=sa.select(places.c.number).where(
            places.c.place == key, places.c.task_id == sa.bindparam("task", type_=sa.Text)
        ),
        max_number=sa.select(sa.func.max(places.c.number)).where(places.c.place == key),
        add_number=places.insert(),
    )


def _tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table, sa.Table, sa.Table]:
    import sqlalchemy as sa  # noqa: PLC0415 - see load_statements

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
    import sqlalchemy as sa  # noqa: PLC0415 - see load_statements

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
