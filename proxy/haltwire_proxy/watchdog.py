"""How long an inspected connection may be idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from mitmproxy.proxy import server

from haltwire_proxy.connections import Connection


class Watchdog(server.TimeoutWatchdog):
    """Their idle timer: it counts no time in which nothing may move, and ends with its connection."""

    _task: asyncio.Task[None] | None = None
    _ended = False

    def __init__(
        self, timeout: int, callback: Callable[[], Awaitable[None]], owned: Connection
    ) -> None:
        super().__init__(timeout, callback)
        self._owned = owned

    async def watch(self) -> None:
        """Their method, remembered."""
        self._task = asyncio.current_task()
        while not self._ended:
            if self._owned.frozen:
                self.register_activity()
            left = self.last_activity + self.timeout - time.time()
            if left < 0:
                await self.callback()
                return
            await asyncio.sleep(left)

    def end(self) -> None:
        """Idempotent; also before it has begun."""
        self._ended = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
