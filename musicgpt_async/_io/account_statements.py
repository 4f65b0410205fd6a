"""Every statement about what the processes of an account share; its clock is the database's."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

from musicgpt_async._io.statements import load_statements, make_clock

if TYPE_CHECKING:
    import sqlalchemy as sa


@attrs.frozen
class AccountStatements:
    """The statements."""

    add: sa.Insert
    lock: sa.Select[Any]
    slots: sa.Select[Any]
    save: sa.Update
    add_slot: sa.Insert
    change_slot: sa.Update
    remove_slot: sa.Delete
    mark_sent: sa.Update
    leave_slot: sa.Update
    usage: sa.Select[Any]
    grant_poll: sa.Update
    pause_polls: sa.Update
    polls: sa.Select[Any]


@cache
def load_account_statements(*, on_server: bool) -> AccountStatements:
    """Load SQLAlchemy and make the statements.

    Args:
        on_server: Whether they are for PostgreSQL.
    """
    import sqlalchemy as sa  # noqa: PLC0415 - see schema.make_tables

    tables = load_statements(on_server=on_server).tables
    accounts, slots, owners = tables.accounts, tables.slots, tables.owners
    account = sa.bindparam("of_account", type_=sa.Text)
    job, now = sa.bindparam("of_job", type_=sa.Text), make_clock(on_server=on_server)
    own = accounts.update().where(accounts.c.account == account)
    of_job = slots.c.job == job
    known = accounts.c.polls == sa.bindparam("known", type_=sa.Text)
    early = now - sa.bindparam("burst", type_=sa.Double)
    due = sa.case((accounts.c.next_poll > early, accounts.c.next_poll), else_=early)
    interval = sa.bindparam("interval", type_=sa.Double)
    pause = now + sa.bindparam("pause", type_=sa.Double)
    lasting = now + sa.bindparam("lasting", type_=sa.Double)
    return AccountStatements(
        add=accounts.insert(),
        # The holder of this row's lock is alone: what it reads afterwards is as new as the lock.
        lock=sa.select(accounts.c.slots, accounts.c.spent, now.label("now"))
        .where(accounts.c.account == account)
        .with_for_update(),
        slots=sa.select(
            slots,
            (owners.c.lease_until > now - sa.bindparam("grace", type_=sa.Double)).label("is_live"),
        )
        .join(owners, owners.c.id == slots.c.owner, isouter=True)
        .where(slots.c.account == account),
        save=own.values(slots=sa.bindparam("learned"), spent=sa.bindparam("credit")),
        add_slot=slots.insert(),
        change_slot=slots.update()
        .where(of_job)
        .values(
            owner=sa.bindparam("owner"),
            sent=sa.bindparam("sent"),
            priced=sa.bindparam("priced"),
        ),
        remove_slot=slots.delete().where(of_job),
        mark_sent=slots.update().where(of_job).values(sent=sa.true(), until=lasting),
        leave_slot=slots.update().where(of_job, slots.c.until > lasting).values(until=lasting),
        usage=sa.select(
            accounts.c.slots,
            sa.select(sa.func.count())
            .select_from(slots)
            .where(slots.c.account == account)
            .scalar_subquery()
            .label("taken"),
        ).where(accounts.c.account == account),
        grant_poll=own.where(known, accounts.c.paused_until <= now)
        .values(
            next_poll=due + interval,
            polls=sa.bindparam("learned", type_=sa.Text),
            polls_made=accounts.c.polls_made + 1,
        )
        .returning(
            (accounts.c.next_poll - interval).label("due"),
            accounts.c.polls_made,
            now.label("now"),
        ),
        pause_polls=own.where(known).values(
            polls=sa.bindparam("learned", type_=sa.Text),
            paused_until=sa.case(
                (accounts.c.paused_until > pause, accounts.c.paused_until), else_=pause
            ),
        ),
        polls=sa.select(accounts.c.polls, accounts.c.paused_until, now.label("now")).where(
            accounts.c.account == account
        ),
    )
