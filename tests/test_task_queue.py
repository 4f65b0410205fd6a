"""The tasks for procrastinate: their rules, and an application's own app on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from factories.postgres_fixtures import POSTGRES
from factories.sessions import SOUND, connected
from factories.watching import until
from procrastinate import App, PsycopgConnector

from musicgpt_async import (
    AuthenticationError,
    DeadlineError,
    DownloadError,
    ExtractionFailedError,
    InsufficientCreditsError,
    InvalidOptionError,
    JobDetachedError,
    JournalError,
    RateLimitError,
    ServerError,
    SourceError,
    SubmissionUnknownError,
    TransportError,
    ValidationError,
)
from musicgpt_async.emulator import Emulator, Fault
from musicgpt_async.task_queue import (
    MAX_ATTEMPTS,
    format_task_source,
    make_blueprint,
    parse_task_source,
    queue_of,
    retry_delay,
    worker_context,
    worker_queues,
)

# What a task queue's database is asked for is the same in all versions.
one_version = pytest.mark.parametrize("postgres_url", POSTGRES[-1:], indirect=True)


def test_paths_are_for_their_site_and_urls_for_all() -> None:
    """A worker takes its site's queue and the URLs' queue; by default the site is the host."""
    assert queue_of("/music/song.mp3", site="studio") == "musicgpt@studio"
    assert queue_of(Path("song.mp3"), site="studio") == "musicgpt@studio"
    assert queue_of("https://example.com/song.mp3", site="studio") == "musicgpt"
    assert worker_queues("studio") == ["musicgpt@studio", "musicgpt"]
    assert queue_of("song.mp3") == queue_of("song.mp3", site=os.uname().nodename)


def test_a_long_site_fits_the_name_of_a_channel() -> None:
    """PostgreSQL refuses channels of more than 63 bytes; different sites stay different."""
    queues = {queue_of("song.mp3", site="ü" * 40 + end) for end in "ab"}
    assert len(queues) == 2
    assert all(len(f"procrastinate_queue_v1#{queue}".encode()) <= 63 for queue in queues)


@pytest.mark.parametrize("site", ["", " ", "a\nb"])
def test_a_site_has_a_name(site: str) -> None:
    """What cannot be read in a list of queues is refused."""
    with pytest.raises(InvalidOptionError, match="site"):
        worker_queues(site)


@pytest.mark.parametrize(
    "error", [ExtractionFailedError, InvalidOptionError, SubmissionUnknownError, ValidationError]
)
def test_a_refusal_is_not_tried_again(error: Any) -> None:
    """The track's own fault, and what only its owner can resolve, end the task."""
    assert retry_delay(error("no"), 0) is None


@pytest.mark.parametrize(
    "error",
    [DeadlineError, DownloadError, JournalError, RateLimitError, ServerError, SourceError,
     TransportError],
)  # fmt: skip
def test_what_may_pass_is_tried_ten_times(error: Any) -> None:
    """The waits grow from ten seconds to ten minutes, and the tenth failure is the last."""
    delays = [retry_delay(error("later"), attempts) for attempts in range(MAX_ATTEMPTS)]
    assert delays == [10, 20, 40, 80, 160, 320, 600, 600, 600, None]


@pytest.mark.parametrize("error", [AuthenticationError, InsufficientCreditsError])
def test_what_is_wrong_with_the_account_fails_no_task(error: Any) -> None:
    """However often a task met an empty account, it is tried again."""
    assert retry_delay(error("no"), 1000) == 600


@pytest.mark.parametrize("error", [JobDetachedError("stop"), asyncio.CancelledError()])
def test_a_worker_that_stops_gives_its_tasks_back_at_once(error: BaseException) -> None:
    """Stopping is not a failure, so it neither waits nor counts."""
    assert retry_delay(error, 1000) == 0


@pytest.mark.parametrize("name", [b"song.mp3", b"100%.mp3", "Mårten.mp3".encode(), b"\xff %41.mp3"])
def test_any_file_name_survives_a_task(name: bytes) -> None:
    """A task stores any bytes of a path as valid Unicode and returns them."""
    path = os.fsdecode(b"/music/" + name)
    held = format_task_source(path)
    held.encode()
    assert parse_task_source(held) == path


@asynccontextmanager
async def application(url: str) -> AsyncIterator[App]:
    """An app of an application's own that has our tasks."""
    app = App(connector=PsycopgConnector(conninfo=url))
    app.add_tasks_from(make_blueprint(), namespace="musicgpt")
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield app


async def work(app: App, **options: Any) -> None:
    """Run a worker until no task is due."""
    await app.run_worker_async(
        queues=worker_queues(), wait=False, install_signal_handlers=False, **options
    )


@pytest.fixture
def song_path(tmp_path: Path) -> Path:
    """A track on disk."""
    path = tmp_path / "song.mp3"
    path.write_bytes(SOUND)
    return path


@one_version
@pytest.mark.anyio
async def test_a_task_that_is_delivered_again_pays_once(
    postgres_url: str, vendor: Emulator, tmp_path: Path, song_path: Path
) -> None:
    """Without a key of the caller's own the task's id is one, even if the file is a newer copy."""
    async with (
        application(postgres_url) as app,
        connected(vendor, tmp_path / "journal.db") as session,
    ):
        task = app.configure_task("musicgpt:extract", queue=queue_of(song_path))
        first = await task.defer_async(source=str(song_path), stems=["bass"])
        context = worker_context(session, tmp_path / "stems", format="mp3")
        await work(app, additional_context=context)
        assert (tmp_path / "stems/song - bass.mp3").exists()
        os.utime(song_path, (1, 1))
        sql = "UPDATE procrastinate_jobs SET status = 'todo' WHERE id = %(id)s"
        await app.connector.execute_query_async(sql, id=first)
        await work(app, additional_context=context)
        assert (await app.job_manager.get_job_status_async(first)).value == "succeeded"
        assert len(vendor.submissions) == 1
        await task.defer_async(source=str(song_path), stems=["bass"])
        await work(app, additional_context=context)
        assert len(vendor.submissions) == 2


@one_version
@pytest.mark.anyio
async def test_a_worker_without_a_session_fails_no_task(postgres_url: str) -> None:
    """Its tasks wait for a worker that has one."""
    async with application(postgres_url) as app:
        task = app.configure_task("musicgpt:extract", queue="musicgpt")
        id_ = await task.defer_async(source="https://example.com/song.mp3")
        await work(app)
        assert (await app.job_manager.get_job_status_async(id_)).value == "todo"


@one_version
@pytest.mark.anyio
async def test_a_task_that_is_aborted_is_not_delivered_again(
    postgres_url: str, vendor: Emulator, tmp_path: Path, song_path: Path
) -> None:
    """Its job is detached, as procrastinate asks, and does not wait for another try."""
    vendor.script(Fault("job", "never_finishes"))
    async with (
        application(postgres_url) as app,
        connected(vendor, tmp_path / "journal.db") as session,
    ):
        task = app.configure_task("musicgpt:extract", queue=queue_of(song_path))
        id_ = await task.defer_async(source=str(song_path))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: work(app, additional_context=worker_context(session, tmp_path))
            )
            await until(lambda: vendor.submissions)
            await app.job_manager.cancel_job_by_id_async(id_, abort=True)
        assert (await app.job_manager.get_job_status_async(id_)).value == "aborted"
