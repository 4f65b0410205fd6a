"""`emulate`: the vendor on a loopback port, until it is interrupted."""

from __future__ import annotations

import shlex
from typing import Literal

import attrs

from musicgpt_async.cli import streams
from musicgpt_async.cli.interrupts import Interrupts
from musicgpt_async.cli.text import count
from musicgpt_async.cli.usage import UsageError


@attrs.frozen(kw_only=True)
class EmulatorSettings:
    """How the emulated vendor behaves; see ``Emulator``."""

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


async def emulate(settings: EmulatorSettings) -> int:
    """Run the emulator and say how to reach it; return the exit code.

    Raises:
        UsageError: It could not begin.
    """
    from musicgpt_async.emulator import Emulator  # noqa: PLC0415 - an extra, and slow to import

    interrupts = Interrupts()
    with interrupts.listening():
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
            )
            await emulator.__aenter__()
        except (ImportError, OSError) as error:
            raise UsageError(f"The emulator cannot run: {error}") from error
        try:
            streams.write_result(f"export MUSICGPT_BASE_URL={shlex.quote(emulator.base_url)}")
            streams.write_result(f"export MUSICGPT_API_KEY={shlex.quote(emulator.api_key)}")
            streams.say("The emulator runs until it is interrupted (Ctrl-C).")
            await interrupts.wait()
        finally:
            await emulator.__aexit__(None, None, None)
    streams.say(
        f"{count(len(emulator.submissions), 'submit')} accepted, "
        f"{count(emulator.polls, 'byId call')}, at most {emulator.most_unfinished} unfinished.",
    )
    return 0
