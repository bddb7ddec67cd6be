"""What systemd is told (sd_notify(3)): ready, stopping, alive, and one sentence of how it goes.

Without a NOTIFY_SOCKET nothing is told, and nothing that fails here stands in anybody's way.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress

VARIABLES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
"For the process that systemd started, and for none of its children."


class Notifier:
    """Tells one service manager, or nobody."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s
        "Within which time `alive` is to be told; None when nobody waits for it."

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int) -> Notifier:
        """As the environment of the process `pid` says. What makes no sense there is not told."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            return cls()
        for_us = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        microseconds = environment.get("WATCHDOG_USEC", "")
        watched = for_us and microseconds.isdecimal() and int(microseconds) > 0
        return cls(address, int(microseconds) / 1e6 if watched else None)

    def ready(self, sentence: str) -> None:
        """All has been started."""
        self._send("READY=1", _status(sentence))

    def stopping(self, sentence: str, at_most_s: float) -> None:
        """It ends, which takes this long at most: until then nobody needs to be killed."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={at_most_s * 1e6:.0f}", _status(sentence))

    def status(self, sentence: str) -> None:
        """How it goes."""
        self._send(_status(sentence))

    def alive(self) -> None:
        """For the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        # An "@" stands for the zero byte of an abstract address.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)


def _status(sentence: str) -> str:
    return "STATUS=" + " ".join(sentence.split())
