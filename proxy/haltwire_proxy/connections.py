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
from functools import partial

from haltwire.wire.names import AgentRef
from haltwire.wire.receipts import InFlight

from haltwire_proxy import sever, sides
from haltwire_proxy.exchanges import Exchange, Load, exchange_facts
from haltwire_proxy.faults import FailClosed
from haltwire_proxy.identity import Identity
from haltwire_proxy.sides import Side
from haltwire_proxy.tally import Tallies, Tally

log = logging.getLogger(__name__)
LOOKED_AT = 500
"Frozen connections that one look asks the kernel about: the loop has kills to apply."


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
    load: Load = field(default_factory=Load)
    "Its agent's while it is registered; afterwards nobody's."
    upstreams: list[Side] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    "Dials and handlers in progress: cancelled by a cut."
    exchanges: list[Exchange] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    severed: bool = False
    held: bool = False
    "Whether an order has frozen it."
    stale: bool = False
    "Whether the end of the lease has frozen it, which is no order's doing."
    lost: bool = False
    "While held: whether a peer has given up and that is counted, or had ended before."
    draining: bool = False
    "Whether it lived when a drain was applied that covers it."
    calling: bool = False
    "Whether a call of haltwire.internal is read or answered on it."
    residual: int = 0
    "While held: what had left us at the freeze and the upstream had not acknowledged."
    waiters: dict[asyncio.Future[None], None] = field(default_factory=dict)
    "Requests that wait for a hold to end, in the order in which they came."
    dials: dict[asyncio.Task[None], bool] = field(default_factory=dict)
    "Tasks that a freeze interrupts, and whether it has: what they were opening is opened anew afterwards."
    on_freeze: list[Callable[[], None]] = field(default_factory=list)

    @property
    def frozen(self) -> bool:
        """Whether it stands still, for whatever reason."""
        return self.held or self.stale

    def begin(self, exchange: Exchange) -> None:
        """A request is under way."""
        self.exchanges.append(exchange)
        self.load.requests += 1

    def finish(self, exchange: Exchange) -> None:
        """It no longer is. Idempotent."""
        if exchange in self.exchanges:
            self.exchanges.remove(exchange)
            self.load.requests -= 1

    def begin_call(self) -> None:
        """A call of haltwire.internal has begun to be read. There is one at a time."""
        self.calling = True
        self.load.calls += 1

    def finish_call(self) -> None:
        """It has been answered. Idempotent; a connection that is forgotten has finished its call."""
        if self.calling:
            self.calling = False
            self.load.calls -= 1

    @property
    def is_busy(self) -> bool:
        """Whether bytes may be on their way: of an idle one only the next request matters."""
        return self.kind == "tunnel" or bool(self.exchanges)

    def facts(self) -> tuple[InFlight, ...]:
        """What was in flight, asked of the kernel before anything is reset."""
        if self.kind == "tunnel":
            return (self._tunnel_facts(),)
        return tuple(exchange_facts(exchange) for exchange in self.exchanges)

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
        self._loads: dict[AgentRef, Load] = {}
        self._numbers = itertools.count(1)
        self.count = 0
        self.held: dict[Connection, None] = {}
        "Those that orders have frozen, in the order in which they were frozen."
        self.stale: dict[Connection, None] = {}
        "Those that the end of the lease has frozen."
        self._to_look_at: list[Connection] = []
        self.on_lost: Callable[[Connection], None] = lambda _: None
        "Called when a peer of a held connection gives up."

    def register(self, identity: Identity, kind: str, host: str, client: Side) -> Connection:
        """Note a connection; nothing may be awaited between the gate's decision and this call."""
        now = self._now()
        tally = self._tallies.seen(identity.token_id, identity.agent, identity.instance, now)
        load = self._loads.setdefault(identity.agent, Load())
        load.connections += 1
        connection = Connection(next(self._numbers), identity, tally, kind, host, now, client, load)
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
        load = connection.load
        load.connections -= 1
        load.requests -= len(connection.exchanges)
        connection.finish_call()
        connection.load = Load(requests=len(connection.exchanges))
        if not owned:
            del self._by_agent[connection.identity.agent]
            del self._loads[connection.identity.agent]
        connection.tally.connections -= 1
        connection.tally.last_seen_at = self._now()
        self.count -= 1
        self._tallies.touch(connection.tally)
        self.stale.pop(connection, None)
        if connection in self.held:
            del self.held[connection]
            if not connection.severed:
                self._lose(connection)

    def load_of(self, agent: AgentRef) -> Load:
        """What the agent has under way."""
        return self._loads.get(agent) or Load()

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
        """An order stops them where they stand. A side that cannot be frozen is cut with its connection."""
        for connection in connections:
            if connection.held or connection.severed:
                continue
            with FailClosed(
                "a connection could not be frozen: it is cut", partial(self.cut, [connection])
            ):
                connection.held = True
                self.held[connection] = None
                connection.residual = sides.on_the_way(connection.upstreams)
                connection.lost = sides.any_left(connection.upstreams)
                if not connection.stale:
                    _stop(connection)
                    _drop_unused(connection)

    def freeze_stale(self, connections: Iterable[Connection]) -> None:
        """The same at the end of the lease, which may be found out in the midst of anything, also of a write."""
        for connection in connections:
            if connection.stale or connection.severed:
                continue
            with FailClosed(
                "a connection could not be frozen: it is cut", partial(self.cut, [connection])
            ):
                connection.stale = True
                self.stale[connection] = None
                if connection.held:
                    continue
                _stop(connection)
                if connection.on_freeze:
                    asyncio.get_running_loop().call_soon(_drop_unused, connection)

    def thaw(self, connections: Iterable[Connection]) -> None:
        """Let them go on: first what was under way, then the requests that waited."""
        for connection in connections:
            if not connection.held or connection.severed:
                continue
            with FailClosed(
                "a connection could not go on: it is cut", partial(self.cut, [connection])
            ):
                if sides.any_left(connection.upstreams):
                    self._lose(connection)
                self.held.pop(connection, None)
                connection.held = connection.lost = False
                connection.residual = 0
                self._go_on(connection)

    def thaw_stale(self, connections: Iterable[Connection]) -> None:
        """The same for those that the end of the lease has frozen; what an order holds stays held."""
        for connection in connections:
            if not connection.stale or connection.severed:
                continue
            with FailClosed(
                "a connection could not go on: it is cut", partial(self.cut, [connection])
            ):
                self.stale.pop(connection, None)
                connection.stale = False
                self._go_on(connection)

    @staticmethod
    def _go_on(connection: Connection) -> None:
        for side in (*connection.upstreams, connection.client):
            if connection.frozen:  # for another reason, or again: the lease may end within a write
                break
            side.thaw()
        ask_again(connection)

    def look_for_lost(self) -> None:
        """Notice which peers of frozen connections have given up: nothing is read from them that would tell.

        A call looks at a bounded number of them; the next one goes on from there.
        """
        if not self._to_look_at:
            self._to_look_at = list({**self.held, **self.stale})
        for connection in self._to_look_at[:LOOKED_AT]:
            if not connection.frozen or connection.severed:
                continue
            if _client_left(connection):
                self.abandon(connection)
            elif sides.any_left(connection.upstreams):
                self._lose(connection)
        del self._to_look_at[:LOOKED_AT]

    def abandon(self, connection: Connection) -> None:
        """The client of a frozen connection has gone: nobody is there to get an answer, now or later."""
        if not connection.severed:
            self._lose(connection)
            connection.severed = True
            self._end([connection])

    def _end(self, doomed: list[Connection]) -> None:
        for connection in doomed:
            for side in connection.upstreams:
                sides.reset(side)
        for connection in doomed:
            for task in connection.tasks:
                task.cancel()
            for side in (*connection.upstreams, connection.client):
                sides.abort(side)
            try:
                self.forget(connection)
            except Exception:
                log.exception("a connection that was cut could not be forgotten")

    def _lose(self, connection: Connection) -> None:
        if not connection.held or connection.lost:
            return
        if connection.is_busy or connection.waiters:
            connection.lost = True
            self.on_lost(connection)


def facts_of(connection: Connection) -> tuple[InFlight, ...]:
    """Its facts, or none: nothing that is asked for a report may stand in the way of a cut."""
    try:
        return connection.facts()
    except Exception:
        log.exception("the facts of a connection could not be read")
        return ()


def _moving_sides(connection: Connection) -> list[Side]:
    # A client of which nothing is under way may still shake hands and send a request, which then waits.
    client = [connection.client] if connection.is_busy else []
    return [*connection.upstreams, *client]


def _stop(connection: Connection) -> None:
    for side in _moving_sides(connection):
        side.freeze()
    for task in connection.dials:
        connection.dials[task] = True
        task.cancel()


def _drop_unused(connection: Connection) -> None:
    if connection.frozen and not connection.severed:
        for drop in tuple(connection.on_freeze):
            drop()


def ask_again(connection: Connection) -> None:
    """Have the requests that wait judged anew, in the order in which they came."""
    for waiter in connection.waiters:
        if not waiter.done():
            waiter.set_result(None)


def _client_left(connection: Connection) -> bool:
    # A tunnel's client may end one direction and go on listening; one that waits for a response may not.
    return sides.has_left(connection.client, half=connection.kind != "tunnel")
