"""Runs the Python on a page of the documentation as its reader would, one block after another."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
from collections.abc import Iterable
from pathlib import Path
from types import CodeType
from typing import Any

from factories.pages import Block

from musicgpt_async import Journal, Limits, MusicGPTSession, WebhookReceiver
from musicgpt_async.emulator import Emulator

# A block with one of these runs an event loop of its own.
OWN_LOOP = ("asyncio.run(", "asyncio.Runner(", "start_blocking_portal()")
PUBLIC_URL, PORT = "https://music.example.com/hooks", "8080"


class PageRunner:
    """One page's names, and the session that its snippets speak of.

    Args:
        vendor: The emulator, which is in the environment, too.
        port: A free port, in place of the one that pages name.
    """

    def __init__(self, vendor: Emulator, port: int) -> None:
        self.vendor = vendor
        self._port = str(port)
        self.names: dict[str, Any] = {
            "Path": Path,
            "MusicGPTSession": MusicGPTSession,
            "Journal": Journal,
            "receiver": WebhookReceiver(PUBLIC_URL),
        }

    async def run(self, blocks: Iterable[Block], *, then: str = "") -> None:
        """Run blocks, then more code that uses what they define."""
        handlers, level = logging.root.handlers[:], logging.root.level
        try:
            async with MusicGPTSession(limits=Limits.PRO, journal="page.journal") as session:
                self.names["session"] = session
                for block in blocks:
                    code = "\n" * (block.line - 1) + block.code  # tracebacks name the page's lines
                    await self._run(code, str(block.page))
                await self._run(then, "<then>")
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            logging.getLogger("musicgpt_async").setLevel(logging.NOTSET)

    async def _run(self, code: str, name: str) -> None:
        here = f"http://127.0.0.1:{self._port}/hooks"
        code = code.replace(PUBLIC_URL, here).replace(PORT, self._port)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compiled = compile(code, name, "exec", flags=flags, dont_inherit=True)
        if any(each in code for each in OWN_LOOP):
            await asyncio.to_thread(exec, compiled, self.names)
        else:
            await self._execute(compiled)

    async def _execute(self, compiled: CodeType) -> None:
        result = eval(compiled, self.names)  # noqa: S307 - the project's own documentation
        if inspect.isawaitable(result):
            await result
