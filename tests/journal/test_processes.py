"""Journals that several processes use, of which some are killed."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import attrs
import pytest
from factories.journals import (
    answer_of,
    child_process,
    contents_of,
    execute,
    job,
    killed_owner,
    let_continue,
    let_pass,
    lines_of,
    select,
)

from musicgpt_async.journal import Journal

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(sys.platform != "linux", reason="deaths are seen in Linux's /proc")
@pytest.mark.parametrize("how", ["claimed", "entered again"])
async def test_jobs_of_a_killed_process_are_taken_over_at_once(place: str, how: str) -> None:
    """The lease of an owner that was killed on this machine is not waited for."""
    killed_owner(place)
    async with Journal(place) as heir:
        await let_pass(heir, -1e6)  # it would hold for ages
        assert not any(lease.is_live for lease in (await heir._owners()).values())
        if how == "claimed":
            assert [record.id for record in await heir._claim()] == ["0", "1", "2", "3", "4"]
        else:
            assert (await heir._add_or_get(attrs.evolve(job("0"), fingerprint="track 0")))[
                1
            ] is False
        assert heir._owns("0")
        assert (await heir._owners())["0"].is_own


async def test_jobs_of_another_machine_are_protected_by_their_lease(tmp_path: Path) -> None:
    """An owner that cannot be seen keeps its jobs until its lease runs out."""
    path = tmp_path / "journal.db"
    killed_owner(path)
    execute(
        path,
        "UPDATE musicgpt_owners SET id = 'another:machine:1:2:3'",
        "UPDATE musicgpt_jobs SET owner = (SELECT id FROM musicgpt_owners)",
    )
    async with Journal(path) as heir:
        assert await heir._claim() == []
        await let_pass(heir, heir._lease)
        assert [record.id for record in await heir._claim()] == ["0", "1", "2", "3", "4"]


SKEWED = """
    import time
    real = time.time
    time.time = lambda: real() + 600.0

    async def main():
        async with Journal(place) as journal:
            await journal._add_or_get(job("skewed"))
            say(*[record.id for record in await journal._claim()], "and", *[
                id for id, lease in (await journal._owners()).items() if not lease.is_live
            ])
            sys.stdin.readline()

    asyncio.run(main())
"""


async def test_a_wrong_clock_takes_no_live_jobs(place: str) -> None:
    """Of two machines whose clocks are ten minutes apart neither takes the other's live jobs."""
    async with Journal(place) as journal:
        await journal._add_or_get(job("ours"))
        with child_process(SKEWED, place) as child:
            assert next(lines_of(child)) == "and"
            assert await journal._claim() == []
            assert all(lease.is_live for lease in (await journal._owners()).values())


RIVAL = """
    async def main():
        async with Journal(place) as journal:
            say("ready")
            sys.stdin.readline()
            for number in range(30):
                record, new = await journal._add_or_get(job(str(number)))
                if new:
                    say(number)
                if journal._owns(record.id):
                    await journal._release(record.id)
            say("claims")
            while found := await journal._claim(limit=1):
                say(found[0].id)
            say("done")
            sys.stdin.readline()

    asyncio.run(main())
"""


NAMESAKE = """
    async def main():
        async with Journal(place) as journal:
            say("ready")
            sys.stdin.readline()
            for number in range(30):
                task = f"{os.getpid()} {number}"
                first, second = [await journal._assign_number(task, "here") for _ in range(2)]
                assert first == second
                say(first)
            say("done")

    asyncio.run(main())
"""


async def test_rivals_never_choose_one_number_for_two_tasks(place: str) -> None:
    """Of tasks whose files have the same names each has its own number, whichever process asks."""
    with child_process(NAMESAKE, place) as one, child_process(NAMESAKE, place) as two:
        both = [lines_of(one), lines_of(two)]
        assert [next(lines) for lines in both] == ["ready", "ready"]
        for child in (one, two):
            let_continue(child)
        numbers = [int(line) for lines in both for line in lines if line != "done"]
    assert sorted(numbers) == list(range(1, 61))
    async with Journal(place) as journal:
        assert await journal._assign_number("another", "here") == 61
        assert await journal._assign_number("another", "there") == 1


async def test_rivals_share_the_work_without_overlap(place: str) -> None:
    """Processes that start together on no journal at all enter each job once, and claim it once."""
    with ExitStack() as stack:
        rivals = [stack.enter_context(child_process(RIVAL, place)) for _ in range(3)]
        voices = [lines_of(rival) for rival in rivals]
        assert [next(voice, None) for voice in voices] == ["ready"] * 3
        for rival in rivals:
            let_continue(rival)
        said = [list(iter(voice.__next__, "done")) for voice in voices]
    entered = [word for words in said for word in words[: words.index("claims")]]
    claimed = [word for words in said for word in words[words.index("claims") + 1 :]]
    everything = sorted(str(number) for number in range(30))
    assert sorted(entered) == everything
    # A rival may claim what another was about to enter: what counts is that none is claimed twice.
    assert sorted(claimed) == everything


SCRIBE = """
    async def main():
        async with Journal(place) as journal:
            async def write(name):
                count = 0
                await journal._add_or_get(job(name))
                while True:
                    count += 1
                    await journal._save(job(name, label=str(count), directory="x" * 3000))
                    say(name, count)
            await asyncio.gather(*(write(f"{os.getpid()} {n}") for n in range(4)))

    asyncio.run(main())
"""


async def test_what_was_saved_survives_a_kill(place: str) -> None:
    """Whatever a save returned for is there after SIGKILL in the midst of writing, every time."""
    confirmed: dict[str, int] = {}
    for lines in (1, 40, 90, 150):
        with child_process(SCRIBE, place) as scribe:
            for line in islice(lines_of(scribe), lines):
                name_, count = line.rsplit(" ", 1)
                confirmed[name_] = int(count)
        async with Journal(place) as journal:
            found = {record.id: int(record.label or 0) async for record in journal.records()}
        assert all(found[name_] >= count for name_, count in confirmed.items())
    if "://" not in place:
        assert select(Path(place), "PRAGMA integrity_check") == [("ok",)]


CRAMPED = """
    async def main():
        async with Journal(place) as journal:
            await journal._add_or_get(job("first"))
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
            try:
                for number in range(1000):
                    await journal._add_or_get(job(str(number), label="x" * 1000))
            except JournalError as error:
                say(type(error.__cause__).__name__, str(error).count(place))
            saves = [journal._save(job("first", label="x" * 5000)) for _ in range(3)]
            errors = await asyncio.gather(*saves, return_exceptions=True)
            say(len({id(error) for error in errors if isinstance(error, JournalError)}))
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            await journal._save(job("first", label="saved"))
            say(number)

    asyncio.run(main())
"""


async def test_a_disk_without_room_is_an_error_and_no_damage(tmp_path: Path) -> None:
    """If the disk is full an error says so; saved jobs stay, and free space ends it."""
    path = tmp_path / "journal.db"
    cause, named, errors, number = answer_of(CRAMPED, path)
    assert (cause, named, errors) == ("OperationalError", "1", "3")
    async with Journal(path) as journal:
        found = [record async for record in journal.records()]
        assert found[0].label == "saved"
        assert len(found) >= int(number) + 1
    assert select(path, "PRAGMA integrity_check") == [("ok",)]


POWERLESS = """
    async def main():
        async with Journal(place + "/warm-up.db") as journal:
            await journal._add_or_get(job("a"))
        os.chmod(place, 0o555)
        if os.geteuid() == 0:
            os.setuid(65534)
        for name in ("warm-up.db", "new.db"):
            try:
                await Journal(place + "/" + name)._open()
            except JournalError as error:
                named = f"nothing may be written in the folder {place}" in str(error)
                say("refused" if named else error)

    asyncio.run(main())
"""


async def test_a_place_that_may_not_be_written_is_refused() -> None:
    """A folder without the right to write gives a clear error, and nothing is made in it."""
    with tempfile.TemporaryDirectory() as folder:
        assert answer_of(POWERLESS, folder) == ["refused", "refused"]
        assert list(contents_of(Path(folder))) == ["warm-up.db"]


async def test_making_a_journal_is_cheap() -> None:
    """Neither the module nor a journal that is not opened costs the import of the extra."""
    code = """
        Journal("journal.db")
        say("sqlalchemy" in sys.modules)
    """
    assert answer_of(code, "") == ["False"]


async def test_the_extra_is_imported_off_the_loop(tmp_path: Path) -> None:
    """The first journal that is opened in a process does not hold its loop up."""
    code = """
        import threading
        class Watch:
            def find_spec(self, name, path=None, target=None):
                if name in ("sqlalchemy.engine", "sqlalchemy.dialects.sqlite"):
                    say(threading.current_thread() is threading.main_thread())

        sys.meta_path.insert(0, Watch())
        async def main():
            async with Journal(place) as journal:
                await journal._add_or_get(job("a"))

        asyncio.run(main())
    """
    assert answer_of(code, tmp_path / "journal.db") == ["False", "False"]


async def test_a_missing_extra_is_named() -> None:
    """Without the extra, making a journal says what to install."""
    code = """
        from musicgpt_async.errors import ConfigurationError
        sys.modules["sqlalchemy"] = None
        try:
            Journal("journal.db")
        except ConfigurationError as error:
            say(error)
    """
    assert 'install "musicgpt-async[journal]"' in " ".join(answer_of(code, ""))
