"""The rows that an account's processes share, on real databases."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from factories.watching import until

from musicgpt_async import Limits, MusicGPTSession
from musicgpt_async._io.account_connection import AccountConnection
from musicgpt_async._io.account_statements import load_account_statements
from musicgpt_async._io.account_table import AccountTable
from musicgpt_async._rules.account_exchange import AccountDecision, AccountRequest, decide
from musicgpt_async.emulator import Emulator
from musicgpt_async.journal import Journal

pytestmark = pytest.mark.anyio


async def exchange(table: AccountTable, connection: Any, *wanted: str) -> AccountDecision:
    """Ask for slots of an account that has one."""
    request = AccountRequest(owner=table.owner_id, hold_time=60.0, wanted=wanted)
    return await table.exchange(connection, partial(decide, request, parallel=1, max_credits=None))


async def test_of_two_transactions_at_once_one_takes_the_last_slot(postgres_url: str) -> None:
    """The one that waited for the lock counts what the other has taken meanwhile."""
    async with Journal(postgres_url) as journal:
        await journal._renew()
        sql = load_account_statements(on_server=True)
        owner = journal._owner_id
        tables = [AccountTable(sql, "account", name, 60.0, lambda: 0.0) for name in (owner, "b")]
        engine = journal._transactions._engine
        async with engine.begin() as connection:
            await exchange(tables[0], connection)  # the row is there
        second: asyncio.Task[AccountDecision]
        async with engine.connect() as one, engine.connect() as two:
            assert (await exchange(tables[0], one, "first")).granted == ["first"]
            second = asyncio.create_task(exchange(tables[1], two, "second"))
            await anyio.sleep(0.2)  # it reaches the lock, at which nothing can be seen of it
            assert not second.done()
            await one.commit()
            assert (await second).granted == []


async def test_a_freed_slot_is_found_without_a_notification(place: str) -> None:
    """A change without a notification is seen by polling, within a few seconds."""
    async with Emulator(seconds=0.1, separate=False) as vendor, Journal(place) as journal:
        limits = Limits(parallel=1, polls_per_minute=500)
        session = MusicGPTSession(
            vendor.api_key, base_url=vendor.base_url, journal=Journal(place), limits=limits
        )
        async with session:
            account = session._settings.account
            await until(lambda: session._runtime.account._others == 0)
            slots = load_account_statements(on_server="://" in place)
            row = {"job": "x", "account": account, "owner": "o", "sent": True, "priced": True}
            await journal._write(lambda c: c.execute(slots.add_slot, {**row, "until": 9e9}))
            job = session.submit(("song.mp3", b"ID3" + bytes(20_000)))
            await until(lambda: session._runtime.account._is_waiting)
            await anyio.sleep(2.0)  # it listens by now, and has polled once
            await journal._write(
                lambda c: c.execute(sa.text("DELETE FROM musicgpt_slots WHERE job = 'x'"))
            )
            with anyio.fail_after(20.0):
                await job


async def test_each_grant_moves_the_next_poll_on(place: str) -> None:
    """Polls of two connections are granted one interval apart, and none twice."""
    async with Journal(place) as journal:
        table, other = journal._account_table("account", 60.0), journal._account_connection()
        await journal._write(partial(exchange, table))
        one = AccountConnection(journal._database)
        grant: dict[str, Any] = {"known": "{}", "learned": "{}", "interval": 10.0, "burst": 0.0}
        due = [await table.grant_poll(each.execute, **grant) for each in (one, other, one, other)]
        assert None not in due
        moments = [each.due for each in due if each is not None]
        assert all(
            later - sooner == pytest.approx(10.0) for sooner, later in itertools.pairwise(moments)
        )
        assert [each.polls_made for each in due if each is not None] == [1, 2, 3, 4]
        for each in (one, other):
            await each.close()


async def test_a_pause_that_one_session_learned_of_holds_for_all(place: str) -> None:
    """After a 429 no poll is granted to any session, and what was learned is read by all."""
    async with Journal(place) as journal:
        table, connection = journal._account_table("account", 60.0), journal._account_connection()
        await journal._write(partial(exchange, table))
        paused = await table.pause_polls(connection.execute, known="{}", learned="[1]", pause=30.0)
        assert paused
        grant: dict[str, Any] = {"known": "[1]", "learned": "[1]", "interval": 1.0, "burst": 0.0}
        assert await table.grant_poll(connection.execute, **grant) is None
        row = await table.read_polls(connection.execute)
        assert row is not None
        assert (row.polls, row.paused_until - row.now) == ("[1]", pytest.approx(30.0, abs=5.0))
        await connection.close()
