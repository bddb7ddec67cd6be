"""What the kernel knows of processes and their sockets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


class Peaks:
    """How much memory processes have come to need since this was made, in bytes."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._before = {pid: _memory(pid, "VmRSS") for pid in pids}
        for pid in self._before:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is what it is now

    def growth(self) -> int:
        """The most that any of them has grown at its peak, even if it has given it back."""
        return max(_memory(pid, "VmHWM") - before for pid, before in self._before.items())


def _memory(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


def unsent_to(port: int) -> int:
    """Bytes that this host's kernel holds for whoever has this port, unacknowledged."""
    return sum(int(row[4].split(":")[0], 16) for row in _sockets() if row[2].endswith(_hex(port)))


def connecting_to(port: int) -> int:
    """How many sockets of this host wait for an answer to their SYN to this port."""
    return sum(row[2].endswith(_hex(port)) and row[3] == "02" for row in _sockets())


def _sockets() -> list[list[str]]:
    # proc(5): sl, local address, remote address, state, tx_queue:rx_queue, …
    return [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]


def _hex(port: int) -> str:
    return f":{port:04X}"
