"""A journal on a server that restarts, or whose network fails: nothing is lost or done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
from factories.journals import job, let_pass
from factories.postgres import PostgresServer, PostgresServers
from factories.sessions import SOUND, connected
from factories.tcp_proxy import Proxy, proxied

from musicgpt_async import Limits
from musicgpt_async.emulator import Emulator
from musicgpt_async.errors import JournalError
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobState

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

pytestmark = pytest.mark.anyio


async def test_a_restart_under_load_loses_nothing(postgres_server: PostgresServer) -> None:
    """While a server crashes and starts again twice, every write and read waits and succeeds."""
    async with Journal(postgres_server.url()) as journal:
        is_over = False

        async def work(name: str) -> int:
            count = 0
            await journal._add_or_get(job(name))
            while not is_over:
                count += 1
                await journal._save(job(name, label=str(count)))
                found = await journal._find(name)
                assert found is not None
                assert found.label == str(count)
            return count

        workers = [asyncio.create_task(work(f"job {number}")) for number in range(4)]
        for _ in range(2):
            await anyio.sleep(0.3)
            await anyio.to_thread.run_sync(postgres_server.restart, "immediate")
        await anyio.sleep(0.3)
        is_over = True
        counts = await asyncio.gather(*workers)
        saved = {record.id: record.label async for record in journal.records()}
        assert saved == {f"job {number}": str(count) for number, count in enumerate(counts)}


@pytest.mark.parametrize("force", [False, True])
async def test_a_write_that_was_committed_is_not_done_twice(proxy: Proxy, force: bool) -> None:
    """If the connection is lost while the server commits, the write is recognised as one's own."""
    async with Journal(proxy.url) as journal:
        await journal._renew()
        proxy.cut_after = b"COMMIT"
        assert await journal._add_or_get(job(), force=force) == (job(), True)
        proxy.cut_after = b"COMMIT"
        await journal._save(job(state=JobState.UPLOADING), release=True)
        assert (await journal._claim())[0].state is JobState.UPLOADING
        await journal._release("a")
        proxy.cut_after = b"COMMIT"
        assert [record.id for record in await journal._claim()] == ["a"]
        assert proxy.cuts == 3
        assert len([record async for record in journal.records()]) == 1


async def test_a_write_that_was_not_committed_is_done_again(proxy: Proxy) -> None:
    """If the connection is lost before the commit, the whole transaction is carried out again."""
    async with Journal(proxy.url) as journal:
        runs = 0

        async def work(connection: AsyncConnection) -> int:
            nonlocal runs
            runs += 1
            number = await journal._table.assign_number(connection, "task", "place")
            if runs == 1:
                proxy.cut()
            return number

        assert await journal._write(work) == 1
        assert runs == 2


async def test_a_silent_network_is_noticed(proxy: Proxy) -> None:
    """What a black hole swallows is tried again when there is a network, and no wait is longer."""
    async with Journal(proxy.url) as journal:
        await journal._add_or_get(job())
        proxy.is_silent = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal._save, job(label="saved"))
            tasks.start_soon(journal._find, "a")
            await anyio.sleep(0.5)
            proxy.is_silent = False
            with anyio.fail_after(15.0):
                while (found := await journal._find("a")) is None or found.label != "saved":
                    await anyio.sleep(0.05)


async def test_a_slow_network_is_no_fault(proxy: Proxy) -> None:
    """With half a second for each question and its answer, everything takes its time."""
    async with Journal(proxy.url) as journal:
        proxy.delay = 0.25
        assert await journal._add_or_get(job()) == (job(), True)
        assert await journal._find("a") == job()
        proxy.delay = 0.0


async def test_leaving_does_not_wait_for_a_server_that_is_away(proxy: Proxy) -> None:
    """With a limit in time, a journal whose server is away closes within seconds."""
    journal = await Journal(proxy.url)._open()
    proxy.cut(refuse=True)
    saving = asyncio.create_task(journal._add_or_get(job()))
    await anyio.sleep(0.2)
    assert not saving.done()
    with anyio.fail_after(6.0):
        journal._give_up_after(0.5)
        with pytest.raises(JournalError):
            await saving
        await journal._close()


async def test_after_an_outage_the_first_to_come_takes_no_live_jobs(proxy: Proxy) -> None:
    """Leases that no owner could renew while the server was away hold for one lease more."""
    async with Journal(proxy.url) as journal, Journal(proxy.url) as other:
        await other._add_or_get(job())
        await journal._renew()
        proxy.cut(refuse=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal._renew)
            await anyio.sleep(0.3)
            proxy.restore()
        journal._transactions._outage._began -= 60.0  # as if it had been longer
        await let_pass(journal, 50.0)
        assert await journal._claim() == []
        await let_pass(journal, 50.0)
        assert await journal._claim() == [job()]


async def test_what_was_committed_is_on_the_disk(proxy: Proxy) -> None:
    """Each write of the journal waits for the disk, whatever the database's default is."""

    async def show(connection: AsyncConnection) -> list[str]:
        names = ("synchronous_commit", "lock_timeout", "idle_in_transaction_session_timeout")
        rows = [await connection.exec_driver_sql(f"SHOW {name}") for name in names]
        return [row.scalar_one() for row in rows]

    async def weaken(connection: AsyncConnection) -> None:
        database = (await connection.exec_driver_sql("SELECT current_database()")).scalar_one()
        await connection.exec_driver_sql(
            f"ALTER DATABASE {database} SET synchronous_commit = 'off'"
        )

    async with Journal(proxy.url) as journal:
        await journal._write(weaken)
    async with Journal(proxy.url) as journal:
        assert await journal._write(show) == ["on", "5s", "5s"]


async def test_a_journal_behind_a_pooler_leaves_no_prepared_statement(postgres_url: str) -> None:
    """With the parameter that transaction mode needs, nothing is prepared by name on the server."""

    async def count(connection: AsyncConnection) -> int:
        sql = "SELECT count(*) FROM pg_prepared_statements WHERE name <> ''"
        found: int = (await connection.exec_driver_sql(sql)).scalar_one()
        return found

    async with Journal(f"{postgres_url}?prepared_statement_cache_size=0") as journal:
        await journal._add_or_get(job())
        assert await journal._find("a") == job()
        assert await journal._write(count) == 0
    async with Journal(postgres_url) as journal:
        assert await journal._write(count) > 0


async def run_jobs(place: str, disturb: Callable[[], Awaitable[None]]) -> None:
    """Run jobs on a journal while something happens to it: each is paid once, and none fails."""
    async with Emulator(seconds=1.0, separate=False, parallel=3) as vendor:
        async with connected(
            vendor, place, limits=Limits(parallel=3, polls_per_minute=500)
        ) as session:
            jobs = [session.submit((f"{n}.mp3", SOUND + bytes([n]))) for n in range(9)]
            await jobs[0].accepted()
            await disturb()
            with anyio.fail_after(60.0):
                await asyncio.gather(*jobs)
        assert len(vendor.submissions) == 9
    async with Journal(place) as journal:
        states = {record.state async for record in journal.records()}
    assert states == {JobState.COMPLETED}


async def test_no_job_fails_because_the_server_restarts(postgres_server: PostgresServer) -> None:
    """A server that crashes in the midst of nine jobs delays them, and nothing else."""

    async def disturb() -> None:
        for _ in range(2):
            await anyio.to_thread.run_sync(postgres_server.restart, "immediate")
            await anyio.sleep(0.5)

    await run_jobs(postgres_server.url(), disturb)


async def test_no_job_fails_because_a_standby_takes_over(
    postgres_server: PostgresServer, postgres_servers: PostgresServers
) -> None:
    """A primary that dies is replaced by its synchronous standby: no job fails, none twice."""
    standby = await anyio.to_thread.run_sync(postgres_servers.start_standby, postgres_server)
    postgres_server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    postgres_server.execute("SELECT pg_reload_conf()")
    async with proxied(postgres_server.url()) as proxy:

        async def disturb() -> None:
            await anyio.to_thread.run_sync(postgres_server.stop, "immediate")
            await anyio.to_thread.run_sync(standby.promote)
            proxy.move_to(standby.port)

        await run_jobs(proxy.url, disturb)
    await anyio.to_thread.run_sync(standby.remove)


async def test_no_job_fails_because_its_network_does(proxy: Proxy) -> None:
    """A network between session and journal that is cut, silent and slow by turns fails no job."""

    async def disturb() -> None:
        proxy.cut(refuse=True)
        await anyio.sleep(0.5)
        proxy.restore()
        proxy.delay = 0.25
        await anyio.sleep(2.0)
        proxy.is_silent = True
        await anyio.sleep(1.0)
        proxy.restore()

    await run_jobs(proxy.url, disturb)
