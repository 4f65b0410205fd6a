"""Every statement that the journal makes; each is right on SQLite and on PostgreSQL.

Times that processes compare are the database's: with each machine's own clock, one that is wrong by
more than a lease would take live jobs from others.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

from musicgpt_async._io.schema import Tables, make_tables
from musicgpt_async.models import JobState

if TYPE_CHECKING:
    import sqlalchemy as sa

# Rows read at a time, so that a slow reader keeps no transaction open.
PAGE_SIZE = 100


@attrs.frozen
class Statements:
    """Every statement that the journal makes, for one kind of database."""

    tables: Tables
    version: sa.Select[Any]
    set_version: sa.Insert
    secret: sa.Select[Any]
    set_secret: sa.Update
    live_owners: sa.Select[Any]
    lock: sa.Select[Any]
    last_write: sa.Select[Any]
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
    adoptable: sa.Select[Any]
    set_candidate: sa.Update
    release: sa.Update
    page: sa.Select[Any]
    find: sa.Select[Any]
    owned: sa.Select[Any]
    number_of: sa.Select[Any]
    max_number: sa.Select[Any]
    add_number: sa.Insert
    notify: sa.Select[Any]
    add_delivery: sa.Insert
    delete_deliveries: sa.Delete
    last_delivery: sa.Select[Any]
    deliveries_after: sa.Select[Any]
    deliveries_for: sa.Select[Any]
    webhooks: sa.Select[Any]


# States in which a process dies with work to do. In all others its user or an error ended the job.
ADOPTED_STATES = (
    JobState.QUEUED,
    JobState.UPLOADING,
    JobState.UNACKNOWLEDGED,
    JobState.PROCESSING,
    JobState.COMPLETED,
)
# Seconds since the epoch. PostgreSQL's now() is as old as its transaction, which waits for locks.
SERVER_NOW = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS double precision)"
FILE_NOW = "(julianday('now') - 2440587.5) * 86400.0"
SERVER_SETTINGS = {
    "synchronous_commit": "on",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
}


def make_clock(*, on_server: bool) -> Any:
    """Return the expression of the database's clock, in seconds since the epoch."""
    import sqlalchemy as sa  # noqa: PLC0415 - see schema.make_tables

    return sa.literal_column(SERVER_NOW if on_server else FILE_NOW, sa.Double)


@cache
def load_statements(*, on_server: bool) -> Statements:
    """Load SQLAlchemy and make the statements.

    Args:
        on_server: Whether they are for PostgreSQL.
    """
    import sqlalchemy as sa  # noqa: PLC0415 - see schema.make_tables

    tables = make_tables()
    journal, owners, jobs, places = tables.journal, tables.owners, tables.jobs, tables.places
    deliveries = tables.deliveries
    key, owner_id = sa.bindparam("key", type_=sa.Text), sa.bindparam("owner_id", type_=sa.Text)
    now = make_clock(on_server=on_server)
    until = now + sa.bindparam("lease", type_=sa.Double)
    # After an outage of the server leases hold longer: their owners could not renew them either.
    live_since = now - sa.bindparam("grace", type_=sa.Double)
    live = sa.exists().where(owners.c.id == jobs.c.owner, owners.c.lease_until > live_since)
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
    # A job that needs no file of the machine that it began on can be continued everywhere.
    here = sa.or_(
        jobs.c.site.is_(None),
        jobs.c.site == sa.bindparam("this_site", type_=sa.Text),
        sa.and_(
            jobs.c.state != str(JobState.COMPLETED),
            sa.or_(jobs.c.task_id.is_not(None), jobs.c.sent_at.is_not(None)),
        ),
    )
    account = sa.bindparam("of_account", type_=sa.Text)
    claimable = claimable.where(
        here, sa.or_(account.is_(None), jobs.c.account.is_(None), jobs.c.account == account)
    )
    return Statements(
        tables=tables,
        version=sa.select(journal.c.version),
        set_version=journal.insert(),
        secret=sa.select(journal.c.secret),
        set_secret=journal.update().where(journal.c.secret.is_(None)),
        live_owners=sa.select(owners.c.id).where(owners.c.lease_until > now),
        lock=_lock(journal, on_server=on_server),
        last_write=sa.select(owners.c.last_write).where(owners.c.id == owner_id),
        renew_owner=owners.update()
        .where(owners.c.id == owner_id)
        .values(lease_until=until, last_write=sa.bindparam("number", type_=sa.BigInteger)),
        add_owner=owners.insert().values(
            id=owner_id,
            lease_until=until,
            last_write=sa.bindparam("number", type_=sa.BigInteger),
        ),
        delete_owner=owners.delete().where(owners.c.id == owner_id),
        other_owners=sa.select(owners.c.id).where(owners.c.id != owner_id),
        # The dead that left no job behind; what a dead owner still holds is claimed first.
        delete_expired_owners=owners.delete().where(
            owners.c.lease_until <= live_since, ~sa.exists().where(jobs.c.owner == owners.c.id)
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
        adoptable=sa.select(jobs)
        .where(
            jobs.c.unfinished,
            jobs.c.owner.is_not(None),
            ~live,
            here,
            jobs.c.account == account,
            jobs.c.state.in_([str(state) for state in ADOPTED_STATES]),
        )
        .order_by(jobs.c.seq)
        .limit(PAGE_SIZE),
        set_candidate=jobs.update()
        .where(jobs.c.id == key, jobs.c.task_id.is_(None))
        .values(candidate_task_id=sa.bindparam("task", type_=sa.Text)),
        release=owned_jobs.where(jobs.c.id == key).values(
            owner=sa.bindparam("released_to", type_=sa.Text)
        ),
        page=sa.select(jobs)
        .where(jobs.c.seq > sa.bindparam("last"))
        .order_by(jobs.c.seq)
        .limit(PAGE_SIZE),
        find=sa.select(jobs, (~live).label("free"))
        .where(sa.or_(jobs.c.id == key, jobs.c.task_id == key))
        .order_by(jobs.c.seq.desc())
        .limit(1),
        webhooks=sa.select(
            jobs.c.created_at, (jobs.c.candidate_task_id == jobs.c.task_id).label("has_arrived")
        )
        .where(
            jobs.c.token.is_not(None),
            jobs.c.task_id.is_not(None),
            jobs.c.state.in_([str(JobState.COMPLETED), str(JobState.FAILED)]),
        )
        .order_by(jobs.c.seq.desc())
        .limit(sa.bindparam("max_rows", type_=sa.BigInteger)),
        owned=sa.select(
            jobs.c.id,
            jobs.c.owner,
            owners.c.lease_until,
            (owners.c.lease_until - now).label("seconds_left"),
            (owners.c.lease_until > now).label("is_live"),
        ).join(owners, owners.c.id == jobs.c.owner),
        number_of=sa.select(places.c.number).where(
            places.c.place == key, places.c.task_id == sa.bindparam("task", type_=sa.Text)
        ),
        max_number=sa.select(sa.func.max(places.c.number)).where(places.c.place == key),
        add_number=places.insert(),
        notify=sa.select(sa.func.pg_notify(sa.bindparam("channel"), sa.bindparam("message"))),
        add_delivery=deliveries.insert().values(at=now),
        delete_deliveries=deliveries.delete().where(
            deliveries.c.at < now - sa.bindparam("age", type_=sa.Double)
        ),
        last_delivery=sa.select(sa.func.max(deliveries.c.id)),
        deliveries_after=sa.select(deliveries)
        .where(deliveries.c.id > sa.bindparam("number", type_=sa.Integer))
        .order_by(deliveries.c.id)
        .limit(PAGE_SIZE),
        deliveries_for=sa.select(deliveries)
        .where(deliveries.c.public.in_(sa.bindparam("publics", expanding=True)))
        .order_by(deliveries.c.id),
    )


def _lock(journal: sa.Table, *, on_server: bool) -> sa.Select[Any]:
    """Return what a transaction begins with: one writer at a time.

    SQLite's BEGIN IMMEDIATE sees to it, PostgreSQL locks a row. It sets what holds for this
    transaction, since connections may be shared by way of pgbouncer: no wait for the lock, and no
    silence while holding it, is long, and what was committed is on the disk.
    """
    import sqlalchemy as sa  # noqa: PLC0415 - see schema.make_tables

    settings = SERVER_SETTINGS if on_server else {}
    configs = [sa.func.set_config(name, value, True) for name, value in settings.items()]
    return sa.select(journal.c.version, *configs).with_for_update()
