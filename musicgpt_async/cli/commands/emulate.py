"""`emulate`: the MusicGPT emulator on a loopback port, until it is interrupted."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import attrs

from musicgpt_async.cli import streams
from musicgpt_async.cli.interrupts import Interrupts
from musicgpt_async.cli.text import count, plain
from musicgpt_async.cli.usage import UsageError


@attrs.frozen(kw_only=True)
class EmulatorSettings:
    """Options of the emulator; see ``Emulator``."""

    generation: Literal[1, 2] = 1
    wav: bool | None = None
    port: int
    seconds: float
    parallel: int
    polls: int
    speed: float
    credits: float
    key: str
    separate: bool
    faults: tuple[str, ...] = ()


async def emulate(settings: EmulatorSettings) -> int:
    """Run the emulator and say how to reach it; return the exit code.

    Raises:
        UsageError: It could not begin.
    """
    from musicgpt_async.cli.commands import faults  # noqa: PLC0415 - imports the emulator
    from musicgpt_async.emulator import Emulator  # noqa: PLC0415 - an extra, and slow to import

    scripted = [faults.parse_fault(text) for text in settings.faults]
    interrupts = Interrupts()
    with interrupts.listening(), _logged_requests():
        try:
            emulator = Emulator(
                generation=settings.generation,
                wav=settings.wav,
                api_key=settings.key,
                port=settings.port,
                seconds=settings.seconds,
                parallel=settings.parallel,
                polls_per_minute=settings.polls,
                speed=settings.speed,
                credits=settings.credits,
                separate=settings.separate,
                faults=scripted,
            )
            await emulator.__aenter__()
        except ImportError as error:
            raise UsageError(
                "The emulator needs numpy and soundfile to separate tracks: "
                'pip install "musicgpt-async[emulator]". Without them, --pretend makes quick noise.'
            ) from error
        except OSError as error:
            raise UsageError(f"The emulator cannot run: {error}") from error
        try:
            streams.write_result(f"export MUSICGPT_BASE_URL={shlex.quote(emulator.base_url)}")
            streams.write_result(f"export MUSICGPT_API_KEY={shlex.quote(emulator.api_key)}")
            streams.say("The emulator runs until you press Ctrl-C.")
            await interrupts.wait()
        finally:
            await emulator.__aexit__(None, None, None)
    streams.say(
        f"{count(len(emulator.submissions), 'submit')} accepted, "
        f"{count(emulator.polls, 'byId call')}, at most {emulator.most_unfinished} unfinished.",
    )
    return 0


class _RequestLines(logging.Handler):
    """Shows each request to the emulator as a line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        streams.say(plain(f"{moment} {record.getMessage()}"))


@contextmanager
def _logged_requests() -> Iterator[None]:
    logger, handler = logging.getLogger("musicgpt_async.emulator.request_log"), _RequestLines()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
