"""What a PostgreSQL server promises to a journal, as its settings and its statistics show."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection

_QUERY = """
SELECT current_setting('fsync') = 'on' AS has_fsync,
    (SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'async') AS async_standbys,
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
        AS free_connections,
    CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS double precision) AS now
"""


@attrs.frozen
class ServerSettings:
    """What was found.

    Attributes:
        has_fsync: Whether what was committed survives a crash of the machine.
        async_standbys: Standbys that may lack what was committed when they take over.
        free_connections: Connections that the server has left.
        clock_offset: Seconds that this machine's clock is ahead of the server's.
    """

    has_fsync: bool
    async_standbys: int
    free_connections: int
    clock_offset: float


async def read_server_settings(connection: AsyncConnection) -> ServerSettings:
    """Ask the server; its role may not see all of its standbys."""
    await connection.exec_driver_sql("SELECT 1")  # what connecting takes is no offset of clocks
    began = time.time()
    row: sa.Row[Any] = (await connection.exec_driver_sql(_QUERY)).one()
    offset = (began + time.time()) / 2 - row.now
    return ServerSettings(row.has_fsync, int(row.async_standbys), int(row.free_connections), offset)
