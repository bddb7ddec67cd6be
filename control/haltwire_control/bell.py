"""A bell: whoever waits is woken by the next ring.

Take `count`, look, then wait for a ring after that count: then no ring is missed.
"""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes all who wait."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake all who wait now."""
        self.count += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self, timeout: float, after: int | None = None) -> bool:
        """Whether it rang within `timeout` seconds, or since it had rung `after` times."""
        if after is not None and self.count != after:
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(future)
        return True
