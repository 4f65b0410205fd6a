"""What is done to the rows that an account's processes share, in transactions of their callers.

A slot that is freed wakes the processes that wait for one, with a notification where the database
has them; the rows say whether it is still free.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from musicgpt_async._io.account_statements import AccountStatements
from musicgpt_async._io.notifications import CHANNEL
from musicgpt_async._rules.account_exchange import AccountDecision, AccountState, SlotRow

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection

SLOT_FREED = "slot"  # what a notification says

Execute: TypeAlias = "Callable[[sa.Executable, Mapping[str, Any]], Awaitable[sa.CursorResult[Any]]]"


@attrs.frozen
class AccountTable:
    """The rows of one account, for one process.

    Args:
        sql: The account's statements.
        account: Its name in the database.
        owner_id: The process's name.
        hold_time: Seconds that a slot is held at most once its job's track was sent.
        grace: Returns for how many seconds leases of others hold after they ran out.
    """

    _sql: AccountStatements
    _account: str
    owner_id: str
    hold_time: float
    _grace: Callable[[], float]

    async def exchange(
        self, connection: AsyncConnection, decide: Callable[[AccountState], AccountDecision]
    ) -> AccountDecision:
        """Lock the account's row, then read, decide and write."""
        state = await self._read(connection)
        decision = decide(state)
        await self._write(connection, state, decision.state)
        return decision

    async def mark_sent(self, connection: AsyncConnection, job: str) -> None:
        """Note that MusicGPT may have a job's track.

        A process that was paused for longer than its lease may find its slot gone; MusicGPT counts
        the job all the same.
        """
        values = {"of_job": job, "lasting": self.hold_time}
        if not (await connection.execute(self._sql.mark_sent, values)).rowcount:
            state = await self._read(connection)
            until = state.now + self.hold_time
            row = SlotRow(key=job, owner=self.owner_id, is_sent=True, until=until)
            await connection.execute(self._sql.add_slot, self._encode(row))

    async def free(self, connection: AsyncConnection, job: str) -> None:
        """Delete the slot of a job that this process works on."""
        if (await connection.execute(self._sql.remove_slot, {"of_job": job})).rowcount:
            await self._notify(connection)

    async def leave(self, connection: AsyncConnection, job: str, seconds: float) -> None:
        """Let the slot of a job that nothing follows any more expire after some time at most."""
        await connection.execute(self._sql.leave_slot, {"of_job": job, "lasting": seconds})

    async def has_free_slot(self, execute: Execute) -> bool:
        """Return whether a slot seems to be free: then it is worth while to ask for it."""
        usage = (await execute(self._sql.usage, {"of_account": self._account})).first()
        return usage is not None and usage.taken < usage.slots.get("limit", 1)

    async def grant_poll(self, execute: Execute, **values: Any) -> sa.Row[Any] | None:
        """Move the account's next poll on; None if polls pause, or others have learned more.

        Args:
            execute: Executes a statement in a transaction of its own.
            values: What `known` was read and `learned` since, the `interval` and the `burst`.
        """
        return (await execute(self._sql.grant_poll, self._values(values))).first()

    async def pause_polls(self, execute: Execute, **values: Any) -> bool:
        """Pause all polls of the account; False if others have learned more.

        Args:
            execute: Executes a statement in a transaction of its own.
            values: What `known` was read and `learned` since, the `pause` in seconds.
        """
        return (await execute(self._sql.pause_polls, self._values(values))).rowcount == 1

    async def read_polls(self, execute: Execute) -> sa.Row[Any] | None:
        """Read what is known of the account's polls."""
        return (await execute(self._sql.polls, self._values({}))).first()

    def _values(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"of_account": self._account, **values}

    async def _read(self, connection: AsyncConnection) -> AccountState:
        account = {"of_account": self._account}
        row = (await connection.execute(self._sql.lock, account)).first()
        if row is None:
            await connection.execute(self._sql.add, _new_account(self._account))
            row = (await connection.execute(self._sql.lock, account)).one()
        # In a statement of its own: one that waited for the lock would count as of before it.
        found = await connection.execute(self._sql.slots, {**account, "grace": self._grace()})
        slots = [self._decode(each) for each in found]
        return AccountState(
            now=row.now,
            learned=row.slots,
            credit=row.spent,
            rows={slot.key: slot for slot in slots},
        )

    async def _write(
        self, connection: AsyncConnection, old: AccountState, new: AccountState
    ) -> None:
        sql = self._sql
        if removed := [{"of_job": key} for key in old.rows if key not in new.rows]:
            await connection.execute(sql.remove_slot, removed)
            await self._notify(connection)
        added = [self._encode(row) for key, row in new.rows.items() if key not in old.rows]
        if added:
            await connection.execute(sql.add_slot, added)
        changed = [
            {"of_job": key, "sent": row.is_sent, "priced": row.is_priced, "owner": row.owner}
            for key, row in new.rows.items()
            if key in old.rows and row != old.rows[key]
        ]
        if changed:
            await connection.execute(sql.change_slot, changed)
        if (old.learned, old.credit) != (new.learned, new.credit):
            values = {"learned": new.learned, "credit": new.credit}
            await connection.execute(sql.save, {"of_account": self._account, **values})

    async def _notify(self, connection: AsyncConnection) -> None:
        if connection.dialect.name == "postgresql":
            await connection.exec_driver_sql(f"NOTIFY {CHANNEL}, '{SLOT_FREED}'")

    def _encode(self, row: SlotRow) -> dict[str, Any]:
        return {
            "job": row.key,
            "account": self._account,
            "owner": row.owner,
            "sent": row.is_sent,
            "priced": row.is_priced,
            "until": row.until,
        }

    def _decode(self, row: sa.Row[Any]) -> SlotRow:
        return SlotRow(
            key=row.job,
            owner=row.owner,
            is_live=bool(row.is_live) or row.owner == self.owner_id,
            is_sent=bool(row.sent),
            is_priced=bool(row.priced),
            until=row.until,
        )


def _new_account(account: str) -> dict[str, Any]:
    return {
        "account": account,
        "slots": {},
        "spent": {},
        "polls": "{}",
        "next_poll": 0.0,
        "paused_until": 0.0,
        "polls_made": 0,
    }
