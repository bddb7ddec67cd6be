"""A listening socket that children share: while none of them has lived for a while, whoever connects is refused.

The kernel would otherwise let clients connect for as long as the supervisor holds the socket, and they would
wait for an answer that nobody gives. Closing it for good would give the port away.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

UNSERVED_S = 2.0
"How long clients may wait for the next child: what dies under load is back within that, and none is refused."


class Port:
    """One listening socket, and how many processes live that have it.

    It is shut only while none lives: a process whose listening socket is shut under it would be deaf for
    good. The next one opens it by listening on it, so that clients are refused until it accepts; it sets
    SO_REUSEADDR anew before, because connections of its predecessors may linger.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._living = 0
        self._served_at: float | None = None
        "When the last one that was ready ended; None before."
        self._timer: asyncio.TimerHandle | None = None

    def began(self) -> None:
        """A process has been started."""
        self._living += 1
        self._stop_waiting()

    def ended(self, was_ready: bool) -> None:
        """A process has ended, which had got as far as serving or not."""
        loop = asyncio.get_running_loop()
        self._living -= 1
        if was_ready or self._served_at is None:
            self._served_at = loop.time()
        if not self._living:
            self._timer = loop.call_at(self._served_at + UNSERVED_S, self._shut)

    def end(self) -> None:
        """Do nothing more. Idempotent."""
        self._living = 1
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _shut(self) -> None:
        self._timer = None
        with suppress(OSError):  # macOS cannot; there they wait
            self._listener.shutdown(socket.SHUT_RD)
            # With it, another program could take a port on which nobody listens, and with it our clients.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
