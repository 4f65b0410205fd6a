"""The recipes of docs/task-queues.md, each in real worker processes of its task queue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import psycopg
import pytest
from factories.postgres_fixtures import POSTGRES
from factories.runs import asked
from factories.sessions import SOUND
from factories.watching import until

from musicgpt_async.emulator import Emulator, Fault

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "docs" / "task-queues.md").read_text("utf-8")
# A broker of taskiq on files: a message is there until it is acknowledged, and delivered again to
# a worker that is started later.
BROKER = """
import asyncio
import os
import uuid
from pathlib import Path

from taskiq import AckableMessage, AsyncBroker

class FileBroker(AsyncBroker):
    async def kick(self, message):
        part = Path("messages", uuid.uuid4().hex + ".part")
        part.write_bytes(message.message)
        part.rename(part.with_suffix(""))

    async def listen(self):
        seen = set()
        while True:
            for path in Path("messages").iterdir():
                if path not in seen and not path.suffix:
                    seen.add(path)
                    yield AckableMessage(data=path.read_bytes(), ack=path.unlink)
            await asyncio.sleep(0.05)

broker = FileBroker()
"""
CELERY = """
broker_url = "filesystem://"
broker_transport_options = {
    "data_folder_in": "messages", "data_folder_out": "messages", "control_folder": "control",
}
"""
ORDER = """
import asyncio
import music
async def order():
    async with music.app.open_async():
        await music.app.schema_manager.apply_schema_async()
        for _ in range(2):
            await music.order_stems({source!r}, "order 7")
asyncio.run(order())
"""
SEND = """
import asyncio
import music
async def send():
    kicker = music.extract.kicker().with_task_id({id!r})
    await kicker.kiq({source!r}, ["bass"])
asyncio.run(send())
"""


class Worker:
    """A process and its children."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process

    async def end(self, number: int) -> None:
        """Send a signal, to all of them if nothing survives it, and wait for the end."""
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        with anyio.fail_after(150):
            await self._process.wait()


@asynccontextmanager
async def worker(*command: str, **environment: str) -> AsyncIterator[Worker]:
    """Start a worker in the test's directory; it is killed at the end of the block."""
    async with await anyio.open_process(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=None,
        stderr=None,
        start_new_session=True,
    ) as process:
        try:
            yield Worker(process)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)


async def run(code: str, **environment: str) -> None:
    """Run code as a program of the application."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), **environment}
    await anyio.run_process([sys.executable, "-c", code], env=environment, stderr=None)


@pytest.fixture
def song_path(tmp_path: Path, vendor: Emulator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A track in the directory that the application runs in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "song.mp3"
    path.write_bytes(SOUND)
    return path


def recipe(section: str) -> str:
    """Return the code of a section of the page."""
    (code,) = re.findall(
        rf"^## {section}\n.*?^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    )
    return str(code)


@pytest.mark.parametrize("postgres_url", POSTGRES[-1:], indirect=True)
@pytest.mark.musicgpt(seconds=2.0)
async def test_procrastinate_in_an_application(
    vendor: Emulator, song_path: Path, postgres_url: str
) -> None:
    """An order that is deferred twice is paid for once, though its worker is killed meanwhile."""
    Path("music.py").write_text(recipe("procrastinate in your own application"))
    await run(ORDER.format(source=str(song_path)), DATABASE_URL=postgres_url)
    command = ("-c", "import asyncio, music; asyncio.run(music.work())")
    async with worker(*command, DATABASE_URL=postgres_url) as first:
        await until(lambda: vendor.submissions)
        os.utime(song_path, (1, 1))
        await first.end(signal.SIGKILL)
    with psycopg.connect(postgres_url) as connection:  # as if half a minute had passed
        connection.execute("UPDATE procrastinate_workers SET last_heartbeat = '2026-01-01'")
    async with worker(*command, DATABASE_URL=postgres_url) as second:
        await until(Path("stems/song - vocals.wav").exists)
        await second.end(signal.SIGTERM)
    assert len(vendor.submissions) == 1


@pytest.mark.musicgpt(seconds=2.0)
async def test_taskiq(vendor: Emulator, song_path: Path) -> None:
    """A message whose worker was killed, or stopped, is delivered again and paid for once."""
    is_known = anyio.Event()  # before, no worker sees the end of the conversion
    vendor.script(
        Fault("byId", "status", status=503, times=None, when=lambda _: not is_known.is_set())
    )
    Path("messages").mkdir()
    Path("brokers.py").write_text(BROKER)
    Path("music.py").write_text(recipe("taskiq"))
    await run(SEND.format(id="order-7", source=str(song_path)), JOURNAL="journal.db")
    command = ("-m", "taskiq", "worker", "music:broker", "--workers", "1")
    command += ("--wait-tasks-timeout", "0.5")
    async with worker(*command, JOURNAL="journal.db") as first:
        await until(lambda: vendor.submissions)
        os.utime(song_path, (1, 1))
        await first.end(signal.SIGKILL)
    assert list(Path("messages").iterdir())
    polls = asked(vendor, "byId")
    async with worker(*command, JOURNAL="journal.db") as second:
        await until(lambda: asked(vendor, "byId") > polls)
        await second.end(signal.SIGTERM)
    assert list(Path("messages").iterdir())
    is_known.set()
    async with worker(*command, JOURNAL="journal.db") as third:
        await until(Path("stems/song - bass.wav").exists)
        await until(lambda: not list(Path("messages").iterdir()))
        await third.end(signal.SIGTERM)
    assert len(vendor.submissions) == 1


async def test_celery(vendor: Emulator, song_path: Path) -> None:
    """A task that is delivered twice, with another copy of the file, is paid for once."""
    for folder in ("messages", "control"):
        Path(folder).mkdir()
    Path("celeryconfig.py").write_text(CELERY)
    Path("music.py").write_text(recipe("Celery"))
    send = f"import music\nmusic.extract.apply_async([{str(song_path)!r}, ['bass']], task_id='t')\n"
    await run(send, JOURNAL="journal.db")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    command = ("-m", "celery", "-A", "music", "worker", "-c", "2", "-l", "info", *quiet)
    async with worker(*command, JOURNAL="journal.db") as process:
        await until(Path("stems/song - bass.wav").exists)
        os.utime(song_path, (1, 1))
        Path("stems/song - bass.wav").unlink()
        await run(send, JOURNAL="journal.db")
        await until(Path("stems/song - bass.wav").exists)
        await process.end(signal.SIGTERM)
    assert len(vendor.submissions) == 1
