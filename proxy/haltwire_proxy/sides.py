"""The two sockets of a connection as whoever cuts and freezes them sees them, and what their kernels say of the peers."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from haltwire_proxy import sever

log = logging.getLogger(__name__)


class Side(Protocol):
    """One socket of a connection."""

    written: int
    "Bytes taken for it so far, those that still wait here included."

    def fileno(self) -> int:
        """Its descriptor, -1 when it is closed."""

    def unwritten(self) -> int:
        """Bytes that wait in our own buffer."""

    def abort(self) -> None:
        """Close it now and drop what is buffered."""

    def freeze(self) -> None:
        """Read nothing more, and keep what is to be written. Idempotent."""

    def thaw(self) -> None:
        """Write what was kept, in its order, and read again. Idempotent."""


def reset(side: Side) -> None:
    """Have the kernel drop what it holds for the peer; one socket that fails must not save those behind it."""
    try:
        fd = side.fileno()
        if fd >= 0:
            sever.reset(fd)
    except Exception:
        log.exception("an upstream could not be reset; it will be aborted")


def abort(side: Side) -> None:
    """Close it, whatever becomes of the attempt."""
    try:
        side.abort()
    except Exception:
        log.exception("a socket could not be aborted")


def on_the_way(upstreams: Iterable[Side]) -> int:
    """Bytes that were given to these sides and that their peers' kernels have not acknowledged."""
    waiting = 0
    for side in upstreams:
        queued = sever.queued(side.fileno())
        waiting += side.unwritten() + (queued.unacknowledged if queued else 0)
    return waiting


def has_left(side: Side, *, half: bool) -> bool:
    """Whether its peer has gone, as the kernel says; `half`: whether one that only sends no more has."""
    ending = sever.ending(side.fileno())
    return ending == "reset" or (half and ending == "ended")


def any_left(upstreams: Iterable[Side]) -> bool:
    """Whether an upstream has given up: it has nothing more to say."""
    return any(
        sever.ending(side.fileno()) is not None and not sever.readable(side.fileno())
        for side in upstreams
    )
