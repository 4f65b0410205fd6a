"""Webhook deliveries that go from the process where they arrive to the one that works on the job.

The process where one arrives writes it down and notifies in one transaction. A row has the public
part of the token, never its secret one; rows older than a day are deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from musicgpt_async._io.job_rows import UNREADABLE
from musicgpt_async._io.notifications import CHANNEL
from musicgpt_async._io.statements import Statements
from musicgpt_async._io.transactions import Transactions

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection

MAX_AGE = 86400.0  # seconds that a delivery is kept
DELIVERY = "delivery"
HANDED_OVER = "job:"  # with the id of a job in place of a token: a former owner learned its task

# The number of the row, the public part of its token, its JSON object.
Forwarded: TypeAlias = "tuple[int, str, Mapping[str, Any]]"


class Forwarding:
    """Writes deliveries for other processes, and reads those for this one.

    Args:
        transactions: Writes and reads.
        sql: The journal's statements.
        on_server: Whether others are woken by notifications.
    """

    def __init__(self, transactions: Transactions, sql: Statements, *, on_server: bool) -> None:
        self._transactions = transactions
        self._sql = sql
        self._on_server = on_server

    async def forward(self, public: str, payload: Mapping[str, Any]) -> None:
        """Write a delivery down, and notify.

        Args:
            public: The public part of its token.
            payload: Its JSON object.

        Raises:
            JournalError: It was not written.
        """

        async def work(connection: AsyncConnection) -> None:
            await self.add(connection, public, payload)

        await self._transactions.write(work)

    async def add(
        self, connection: AsyncConnection, public: str, payload: Mapping[str, Any]
    ) -> None:
        """Write a delivery down in a transaction of its caller's, and notify: see `forward`."""
        await connection.execute(self._sql.delete_deliveries, {"age": MAX_AGE})
        values = {"public": public, "body": dict(payload)}
        await connection.execute(self._sql.add_delivery, values)
        if self._on_server:
            message = {"channel": CHANNEL, "message": f"{DELIVERY} {public}"}
            await connection.execute(self._sql.notify, message)

    async def find_last(self) -> int:
        """Return the number of the latest delivery, 0 if there is none.

        Raises:
            JournalError: It could not be read.
        """
        (last,) = await self._transactions.read(self._sql.last_delivery, {}, lambda row: row[0])
        return last or 0

    async def read_after(self, number: int) -> list[Forwarded]:
        """Return the deliveries after this one, the oldest first.

        Raises:
            JournalError: They could not be read.
        """
        return await self._transactions.read(
            self._sql.deliveries_after, {"number": number}, _decode
        )

    async def read_for(self, publics: Collection[str]) -> list[Forwarded]:
        """Return the deliveries for these tokens that are kept, the oldest first.

        Args:
            publics: The public parts of the tokens.

        Raises:
            JournalError: They could not be read.
        """
        return await self._transactions.read(
            self._sql.deliveries_for, {"publics": list(publics)}, _decode
        )


def _decode(row: sa.Row[Any]) -> Forwarded:
    return row.id, row.public, {} if row.body is UNREADABLE else row.body
