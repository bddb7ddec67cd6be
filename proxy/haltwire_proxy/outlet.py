"""The way into an upstream's socket: what its kernel does not take at once waits here, and asks again before it leaves.

A transport would send what it buffers whenever there is room, also after the lease has ended in between, and
first of all when a process wakes. It therefore gets one byte, by which it tells when there is room.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable


class Outlet:
    """One upstream socket's. The transport must be written to by nobody else."""

    def __init__(
        self, transport: asyncio.Transport, descriptor: int, may_pass: Callable[[], bool]
    ) -> None:
        """`may_pass` is asked before each write of what has waited; for new bytes the caller has asked."""
        self.size = 0
        "Bytes that wait here."
        self._transport = transport
        self._descriptor = descriptor
        self._may_pass = may_pass
        self._waiting: deque[memoryview] = deque()
        transport.set_write_buffer_limits(high=0)

    def write(self, data: bytes) -> None:
        """Send what the kernel takes, behind what waits already."""
        self._waiting.append(memoryview(data))
        self.size += len(data)
        if len(self._waiting) == 1 and not self._transport.get_write_buffer_size():
            self._push()

    def go_on(self) -> None:
        """There is room again, or what waits may leave again. Idempotent."""
        if self._waiting and not self._transport.get_write_buffer_size() and self._may_pass():
            self._push()

    def clear(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        self.size = 0

    def _push(self) -> None:
        while self._waiting and not self._transport.is_closing():
            data = self._waiting[0]
            try:
                taken = os.write(self._descriptor, data)
            except (BlockingIOError, InterruptedError):
                taken = 0
            except OSError:
                # It has ended: the transport finds that out for itself, and tells its protocol.
                self.clear()
                self._transport.write(bytes(data))
                return
            self._take(taken)
            if taken < len(data):
                sentinel = bytes(data[taken : taken + 1])
                self._take(1)
                self._transport.write(sentinel)
                if self._transport.get_write_buffer_size():
                    return

    def _take(self, count: int) -> None:
        self.size -= count
        rest = self._waiting[0][count:]
        if rest:
            self._waiting[0] = rest
        else:
            self._waiting.popleft()
