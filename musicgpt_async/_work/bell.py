"""A bell that wakes one sleeper."""

from __future__ import annotations

import anyio


class Bell:
    """Rung from anywhere in the loop; ringing it twice before it is heard counts once."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Wake the sleeper, now or when it next lies down."""
        self._rung.set()

    async def wait(self, until: float | None = None) -> None:
        """Sleep until the bell rings, or until a moment of the loop's clock."""
        left = None if until is None else max(0.0, until - anyio.current_time())
        with anyio.move_on_after(left):
            await self._rung.wait()
        self._rung = anyio.Event()
