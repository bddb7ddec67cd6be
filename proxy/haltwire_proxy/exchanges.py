"""One request and its response on an inspected connection, and what the kernel knows of how far they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from haltwire.wire.receipts import InFlight

from haltwire_proxy import sever


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


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its response on an inspected connection."""

    method: str
    host: str
    path: str | None
    started_at: datetime
    upstream: Side | None = None
    upstream_start: int = 0
    "What `upstream` had been given when this request began."
    upstream_end: int | None = None
    "What it had been given with the end of this request: over HTTP/2 others go on behind that."
    bytes_up: int = 0
    bytes_down: int = 0
    request_complete: bool = False
    answered_at: datetime | None = None
    "When the last part of the response was about to be passed on."
    upgraded: bool = False
    "Whether it has become a WebSocket or the like: then nobody knows where a request ends."
    held: Callable[[], int | None] = lambda: 0
    "Bytes of it that are kept back for an HTTP/2 window; None while `upstream` has not let it begin."


@dataclass(slots=True)
class Load:
    """What one agent has under way."""

    connections: int = 0
    requests: int = 0
    "Those that are read inside: passed on and not answered yet, or waiting for a hold to end."
    calls: int = 0
    "Of haltwire.internal, on connections that are kept for other requests too."


def exchange_facts(exchange: Exchange) -> InFlight:
    """What was in flight of one request, asked of the kernel."""
    side, held = exchange.upstream, exchange.held()
    acked: int | None = 0
    sent = "none"
    if side is not None and held is not None and side.written > exchange.upstream_start:
        queued = sever.queued(side.fileno())
        if queued is None or exchange.upgraded:
            sent, acked = "unknown", None
        else:
            waiting = side.unwritten()
            arrived = side.written - waiting - queued.unacknowledged
            left_here = side.written - waiting - queued.unsent
            # TLS makes the queue longer than the body bytes in it, so this never says too much.
            acked = max(0, exchange.bytes_up - held - waiting - queued.unacknowledged)
            end = side.written if exchange.upstream_end is None else exchange.upstream_end
            if exchange.request_complete and not held and arrived >= end:
                sent, acked = "whole", exchange.bytes_up
            elif arrived > exchange.upstream_start:
                sent = "partly"
            elif left_here > exchange.upstream_start:
                sent = "unknown"
    return InFlight(
        method=exchange.method,
        host=exchange.host,
        path=exchange.path,
        started_at=exchange.started_at,
        bytes_up=exchange.bytes_up,
        bytes_up_acked=acked,
        bytes_down=exchange.bytes_down,
        sent=sent,
    )
