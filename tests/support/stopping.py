"""The processes of a running `haltwire up`, stood still and let go on. Only its own are touched, by their pid."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from support.system import System


def children(system: System, role: str) -> list[int]:
    """The pids of its control server (`control`) or of its workers (`proxy`)."""
    parent = system.process.pid
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has just ended
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if arguments[-2:] == [role.encode(), b""]:
                found.append(int(pid))
    return found


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT in the end. Waits until every thread stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            while "\nState:\tT" not in (task / "status").read_text():
                pass
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def unsupervised(system: System) -> contextlib.AbstractContextManager[None]:
    """Nobody ends or restarts a process that a test has stopped: its supervisor stands still too."""
    return stopped(system.process.pid)
