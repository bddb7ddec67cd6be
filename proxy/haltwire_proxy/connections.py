"""Who owns which live connection, what it is doing, and how a kill ends it.

Every connection is registered before its first await. Cutting is one synchronous sweep: facts,
then resets of all upstreams, then both sides of each connection; no loop turn lies between.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Protocol

from haltwire.wire.messages import CutInstance
from haltwire.wire.names import AgentRef
from haltwire.wire.receipts import InFlight

from haltwire_proxy import sever
from haltwire_proxy.identity import Identity
from haltwire_proxy.tally import Tallies, Tally

log = logging.getLogger(__name__)


class Side(Protocol):
    """One socket of a connection."""

    written: int
    "Bytes handed to the transport so far."

    def fileno(self) -> int:
        """Its descriptor, -1 when it is closed."""

    def unwritten(self) -> int:
        """Bytes that wait in our own buffer."""

    def abort(self) -> None:
        """Close it now and drop what is buffered."""


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
    bytes_up: int = 0
    bytes_down: int = 0
    request_complete: bool = False
    answered_at: datetime | None = None
    "When the last part of the response was about to be passed on."
    upgraded: bool = False
    "Whether it has become a WebSocket or the like: then nobody knows where a request ends."
    held: Callable[[], int] = lambda: 0
    "Bytes that are kept back for an HTTP/2 window and not yet given to `upstream`."


@dataclass(slots=True, eq=False)
class Connection:
    """A client connection of an agent's instance with everything that hangs on it."""

    number: int
    identity: Identity
    tally: Tally
    kind: str
    "`tunnel`, `inspected` or `plain`."
    host: str
    opened_at: datetime
    client: Side
    upstreams: list[Side] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    "Dials and handlers in progress: cancelled by a cut."
    exchanges: list[Exchange] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    severed: bool = False

    def facts(self) -> tuple[InFlight, ...]:
        """What was in flight, asked of the kernel before anything is reset."""
        if self.kind == "tunnel":
            return (self._tunnel_facts(),)
        return tuple(_exchange_facts(exchange) for exchange in self.exchanges)

    def _tunnel_facts(self) -> InFlight:
        acknowledged = None
        if self.upstreams:
            side = self.upstreams[0]
            queued = sever.queued(side.fileno())
            if queued is not None:
                acknowledged = max(0, side.written - side.unwritten() - queued.unacknowledged)
        return InFlight(
            method="CONNECT",
            host=self.host,
            path=None,
            started_at=self.opened_at,
            bytes_up=self.bytes_up,
            bytes_up_acked=acknowledged,
            bytes_down=self.bytes_down,
            sent="unknown" if self.upstreams else "none",
        )


def _exchange_facts(exchange: Exchange) -> InFlight:
    side = exchange.upstream
    acked: int | None = 0
    sent = "none"
    if side is not None and side.written > exchange.upstream_start:
        queued = sever.queued(side.fileno())
        if queued is None or exchange.upgraded:
            sent, acked = "unknown", None
        else:
            waiting, held = side.unwritten(), exchange.held()
            arrived = side.written - waiting - queued.unacknowledged
            left_here = side.written - waiting - queued.unsent
            # TLS makes the queue longer than the body bytes in it, so this never says too much.
            acked = max(0, exchange.bytes_up - held - waiting - queued.unacknowledged)
            if exchange.request_complete and not held and arrived >= side.written:
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


@dataclass(frozen=True, slots=True)
class Cut:
    """One severed connection and what was in flight on it."""

    connection: Connection
    in_flight: tuple[InFlight, ...]


class Connections:
    """The registry of live connections."""

    def __init__(self, tallies: Tallies, now: Callable[[], datetime]) -> None:
        self._tallies = tallies
        self._now = now
        self._by_agent: dict[AgentRef, set[Connection]] = {}
        self._numbers = itertools.count(1)
        self.count = 0

    def register(self, identity: Identity, kind: str, host: str, client: Side) -> Connection:
        """Note a connection; nothing may be awaited between the gate's decision and this call."""
        now = self._now()
        tally = self._tallies.seen(identity.agent, identity.instance, now)
        connection = Connection(next(self._numbers), identity, tally, kind, host, now, client)
        self._by_agent.setdefault(identity.agent, set()).add(connection)
        tally.connections += 1
        self.count += 1
        return connection

    def forget(self, connection: Connection) -> None:
        """The connection has ended. Idempotent."""
        owned = self._by_agent.get(connection.identity.agent)
        if owned is None or connection not in owned:
            return
        owned.remove(connection)
        if not owned:
            del self._by_agent[connection.identity.agent]
        connection.tally.connections -= 1
        self.count -= 1
        self._tallies.touch(connection.tally)

    def matching(
        self, agents: Callable[[AgentRef], bool], one: Callable[[Connection], bool]
    ) -> list[Connection]:
        """The live connections of agents that pass the first question and that pass the second."""
        return [
            connection
            for agent, owned in self._by_agent.items()
            if agents(agent)
            for connection in owned
            if one(connection)
        ]

    def everything(self) -> list[Connection]:
        """All live connections."""
        return self.matching(lambda _: True, lambda _: True)

    def cut(self, connections: Iterable[Connection]) -> list[Cut]:
        """End them now: when this returns, not a byte more is sent to or taken from an upstream."""
        doomed = [connection for connection in connections if not connection.severed]
        for connection in doomed:
            connection.severed = True
        cuts = [Cut(connection, _facts_of(connection)) for connection in doomed]
        for connection in doomed:
            for side in connection.upstreams:
                _reset(side)
        for connection in doomed:
            for task in connection.tasks:
                task.cancel()
            for side in (*connection.upstreams, connection.client):
                _abort(side)
            self.forget(connection)
        return cuts


def _facts_of(connection: Connection) -> tuple[InFlight, ...]:
    # Nothing that is asked for a report may stand in the way of the cut.
    try:
        return connection.facts()
    except Exception:
        log.exception("the facts of a connection could not be read")
        return ()


def _reset(side: Side) -> None:
    # One socket that fails must not save those behind it.
    try:
        fd = side.fileno()
        if fd >= 0:
            sever.reset(fd)
    except Exception:
        log.exception("an upstream could not be reset; it will be aborted")


def _abort(side: Side) -> None:
    try:
        side.abort()
    except Exception:
        log.exception("a socket could not be aborted")


def describe(tally: Tally, cuts: Iterable[Cut]) -> CutInstance:
    """What is known of one instance at a kill, whether or not it had a live connection."""
    own = [cut for cut in cuts if cut.connection.tally is tally]
    last = tally.last_byte_at
    return CutInstance(
        agent=tally.agent,
        instance=tally.instance,
        seen_at=tally.last_seen_at,
        connections_cut=len(own),
        last_byte_at=datetime.fromtimestamp(last, timezone.utc) if last else None,
        completed_at=tuple(tally.completed),
        completed_known=not (tally.forgotten or tally.tunnelled),
        in_flight=tuple(flight for cut in own for flight in cut.in_flight),
    )
