"""The emulator's clock, which may run faster than real time."""

import asyncio


class Clock:
    """A clock in emulated seconds, of which `speed` pass in one real second."""

    def __init__(self, speed: float = 1.0) -> None:
        if speed <= 0:
            raise ValueError(f"speed must be above 0, not {speed}")
        self.speed = speed

    def now(self) -> float:
        """Return the emulated seconds of a monotonic clock, from the running loop's time."""
        return asyncio.get_running_loop().time() * self.speed

    async def sleep_until(self, moment: float) -> None:
        """Wait until `now()` has reached `moment`."""
        await asyncio.sleep(max(0.0, moment - self.now()) / self.speed)

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of emulated seconds."""
        await asyncio.sleep(max(0.0, seconds) / self.speed)
