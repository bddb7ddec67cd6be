"""Who owns which live connection, what it is doing, and how a kill ends or freezes it.

Every connection is registered before its first await. Cutting is one synchronous sweep: facts,
then resets of all upstreams, then both sides of each connection; no loop turn lies between.
Freezing is one, too: from then on nothing is read or written, and what was on its way waits in order.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from haltwire.wire.names import AgentRef
from haltwire.wire.receipts import InFlight

from haltwire_proxy import sever
from haltwire_proxy.identity import Identity
from haltwire_proxy.tally import Tallies, Tally

log = logging.getLogger(__name__)
LOOKED_AT = 500
"Held connections that one look asks the kernel about: the loop has kills to apply."


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
    held: bool = False
    "Whether an order has frozen it."
    lost: bool = False
    "While held: whether a peer has given up and that is counted, or had ended before."
    draining: bool = False
    "Whether it lived when a drain was applied that covers it."
    residual: int = 0
    "While held: what had left us at the freeze and the upstream had not acknowledged."
    waiters: dict[asyncio.Future[None], None] = field(default_factory=dict)
    "Requests that wait for a hold to end, in the order in which they came."
    dials: dict[asyncio.Task[None], bool] = field(default_factory=dict)
    "Tasks that a freeze interrupts, and whether it has: what they were opening is opened anew afterwards."
    on_freeze: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_busy(self) -> bool:
        """Whether bytes may be on their way: of an idle one only the next request matters."""
        return self.kind == "tunnel" or bool(self.exchanges)

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


@dataclass(frozen=True, slots=True)
class Cut:
    """One severed connection: whose it was, and what was in flight on it."""

    identity: Identity
    tally: Tally
    in_flight: tuple[InFlight, ...]


class Connections:
    """The registry of live connections."""

    def __init__(self, tallies: Tallies, now: Callable[[], datetime]) -> None:
        self._tallies = tallies
        self._now = now
        self._by_agent: dict[AgentRef, set[Connection]] = {}
        self._numbers = itertools.count(1)
        self.count = 0
        self.held: dict[Connection, None] = {}
        "The frozen ones, in the order in which they were frozen."
        self._to_look_at: list[Connection] = []
        self.on_lost: Callable[[Connection], None] = lambda _: None
        "Called when a peer of a held connection gives up."

    def register(self, identity: Identity, kind: str, host: str, client: Side) -> Connection:
        """Note a connection; nothing may be awaited between the gate's decision and this call."""
        now = self._now()
        tally = self._tallies.seen(identity.token_id, identity.agent, identity.instance, now)
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
        connection.tally.last_seen_at = self._now()
        self.count -= 1
        self._tallies.touch(connection.tally)
        if connection in self.held:
            del self.held[connection]
            if not connection.severed:
                self._lose(connection)

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
        cuts = [Cut(one.identity, one.tally, facts_of(one)) for one in doomed]
        self._end(doomed)
        return cuts

    def freeze(self, connections: Iterable[Connection]) -> None:
        """Stop them where they stand. A side that cannot be frozen is cut with its connection."""
        for connection in connections:
            if connection.held or connection.severed:
                continue
            try:
                connection.held = True
                self.held[connection] = None
                connection.residual = _residual(connection)
                connection.lost = peers_left(connection)
                for side in _moving_sides(connection):
                    side.freeze()
                for drop in tuple(connection.on_freeze):
                    drop()
                for task in connection.dials:
                    connection.dials[task] = True
                    task.cancel()
            except Exception:
                log.exception("a connection could not be frozen: it is cut")
                self.cut([connection])

    def thaw(self, connections: Iterable[Connection]) -> None:
        """Let them go on: first what was under way, then the requests that waited."""
        for connection in connections:
            if not connection.held or connection.severed:
                continue
            try:
                if peers_left(connection):
                    self._lose(connection)
                self.held.pop(connection, None)
                connection.held = connection.lost = False
                connection.residual = 0
                for side in (*connection.upstreams, connection.client):
                    side.thaw()
                ask_again(connection)
            except Exception:
                log.exception("a connection could not go on: it is cut")
                self.cut([connection])

    def look_for_lost(self) -> None:
        """Notice which peers of held connections have given up: nothing is read from them that would tell.

        A call looks at a bounded number of them; the next one goes on from there.
        """
        if not self._to_look_at:
            self._to_look_at = list(self.held)
        for connection in self._to_look_at[:LOOKED_AT]:
            if not connection.held or connection.severed:
                continue
            if client_left(connection):
                self.abandon(connection)
            elif peers_left(connection):
                self._lose(connection)
        del self._to_look_at[:LOOKED_AT]

    def abandon(self, connection: Connection) -> None:
        """The client of a held connection has gone: nobody is there to get an answer, now or later."""
        if not connection.severed:
            self._lose(connection)
            connection.severed = True
            self._end([connection])

    def _end(self, doomed: list[Connection]) -> None:
        for connection in doomed:
            for side in connection.upstreams:
                _reset(side)
        for connection in doomed:
            for task in connection.tasks:
                task.cancel()
            for side in (*connection.upstreams, connection.client):
                _abort(side)
            try:
                self.forget(connection)
            except Exception:
                log.exception("a connection that was cut could not be forgotten")

    def _lose(self, connection: Connection) -> None:
        if not connection.lost and (connection.is_busy or connection.waiters):
            connection.lost = True
            self.on_lost(connection)


def facts_of(connection: Connection) -> tuple[InFlight, ...]:
    """Its facts, or none: nothing that is asked for a report may stand in the way of a cut."""
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


def _moving_sides(connection: Connection) -> list[Side]:
    # A client of which nothing is under way may still shake hands and send a request, which then waits.
    client = [connection.client] if connection.is_busy else []
    return [*connection.upstreams, *client]


def _residual(connection: Connection) -> int:
    waiting = 0
    for side in connection.upstreams:
        queued = sever.queued(side.fileno())
        waiting += side.unwritten() + (queued.unacknowledged if queued else 0)
    return waiting


def ask_again(connection: Connection) -> None:
    """Have the requests that wait judged anew, in the order in which they came."""
    for waiter in connection.waiters:
        if not waiter.done():
            waiter.set_result(None)


def client_left(connection: Connection) -> bool:
    """Whether the client of a held connection has gone, as its kernel says."""
    ending = sever.ending(connection.client.fileno())
    # A tunnel's client may end one direction and go on listening; one that waits for a response may not.
    return ending == "reset" or (ending == "ended" and connection.kind != "tunnel")


def peers_left(connection: Connection) -> bool:
    """Whether an upstream of a held connection has given up: it has nothing more to say."""
    return any(
        sever.ending(side.fileno()) is not None and not sever.readable(side.fileno())
        for side in connection.upstreams
    )
