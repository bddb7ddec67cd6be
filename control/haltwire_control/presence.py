"""Whether a proxy's process has ended, as far as this machine can see. Not seeing is not ending."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from haltwire_control.state import ProxyRecord

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where this control server runs."""

    host: str
    boot_id: str
    pid_namespace: str


def this_machine() -> Machine:
    """The machine that this process sees; empty ids where the system does not tell."""
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        namespace = str(_PID_NAMESPACE.readlink())
    except OSError:
        boot_id = namespace = ""
    return Machine(socket.gethostname(), boot_id, namespace)


def has_ended(proxy: ProxyRecord, here: Machine) -> bool:
    """True only when no process of that proxy can exist any more."""
    if not here.boot_id or proxy.host != here.host:
        return False
    if proxy.boot_id != here.boot_id:
        # Ours ended when this machine was started anew. One that came by itself may run on another
        # machine: many have the name of the image that they were made from.
        return proxy.key_id is None
    if proxy.pid_namespace != here.pid_namespace:
        return False
    return not _runs(proxy.pid, proxy.started_ticks)


def _runs(pid: int, started_ticks: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    # proc(5): the name in parentheses may hold anything, so count from the last one.
    fields = text.rpartition(")")[2].split()
    state, threads, started = fields[0], int(fields[17]), int(fields[19])
    if started != started_ticks:
        return False
    # A zombie has closed its sockets, but a leader that is one may have threads that live on.
    return not (state in "ZXx" and threads <= 1)
