"""What operators do in the property test: they cut, drain, hold, strengthen and resume, also while bytes are on their way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import hypothesis.strategies as st
from haltwire.wire.messages import Report
from haltwire.wire.orders import Kill
from haltwire_proxy.connections import Connection
from haltwire_proxy.enforcer import Enforced
from hypothesis.stateful import precondition, rule

from support.ends import Client, client_port, ports, soon
from support.lines import AGENTS, INSTANCES, Lines, anyone, sizes
from support.model import CUT, DRAIN, HOLD, INSPECTED, MODES, TUNNEL, Order, Outcome, Told, Who

SELECTORS = (
    *AGENTS,
    *(f"{agent}~{instance}" for agent in AGENTS for instance in INSTANCES),
    *("agent://acme/prod/*", "agent://acme/prod/*er", "agent://*/prod/mailer"),
    *("agent://acme/**", "agent://**", "agent://other/**"),
)
ESTABLISHED = len(b"HTTP/1.1 200 Connection established\r\n\r\n")
GRACE_S = 3600.0
QUIET_S = 0.02
selectors, modes = st.sampled_from(SELECTORS), st.sampled_from(MODES)


class Orders(Lines):
    """Orders come one after the other; each is checked against what it must have done at once."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: dict[Who, dict[tuple[int, int], int]] = {}
        "For each who is cut or frozen: what may ever have arrived over each connection, by its ports."
        self.told: dict[str, Report] = {}
        "The latest report of each order."

    @rule(selector=selectors, mode=modes)
    def kill(self, selector: str, mode: str) -> None:
        self.runner.run(self._kill(selector, mode, ()))

    @rule(
        selector=selectors,
        mode=modes,
        senders=st.integers(1, 5),
        turns=st.integers(0, 14),
        up=sizes,
        down=sizes,
    )
    def kill_while_sending(
        self, selector: str, mode: str, senders: int, turns: int, up: int, down: int
    ) -> None:
        """An order that comes while requests and streams are on their way."""
        self.runner.run(self._race(selector, mode, senders, turns, up, down))

    async def _race(
        self, selector: str, mode: str, senders: int, turns: int, up: int, down: int
    ) -> None:
        racing = [one for one in self._free() if not one.line.held][:senders]
        racing = [one for one in racing if self.model.fate(one.line.who) is None]
        for client in racing:
            self.send(client, "idle")
        for client in self._streams():
            self.push(client, up, down)
        for _ in range(turns):
            await asyncio.sleep(0)
        await self._kill(selector, mode, racing)

    async def _kill(self, selector: str, mode: str, racing: Sequence[Client]) -> None:
        order = Order(f"K{self.world.revision + 1:012d}", selector, mode)
        for client in racing:
            client.line.asks = client.line.known = True
        await self._in_force(
            order,
            lambda: self.world.kill(selector, mode=mode, grace_s=GRACE_S),
            lambda: self.model.kill(order),
            racing,
        )

    @precondition(lambda self: self._weaker())
    @rule(which=anyone, mode=modes)
    def strengthen(self, which: int, mode: str) -> None:
        """The same order again, in a stronger mode, or, of a drain, with no grace at all."""
        weaker = self._weaker()
        order = weaker[which % len(weaker)]
        if MODES.index(mode) > MODES.index(order.mode) or order.mode == mode == DRAIN:
            self.runner.run(self._strengthen(order, mode))

    async def _strengthen(self, order: Order, mode: str) -> None:
        grace_s = 0.0 if order.mode == DRAIN else GRACE_S
        again = replace(self._in_world(order), mode=mode, grace_s=grace_s)

        def apply() -> Enforced:
            enforced = self.world._delta(kills=(again,))
            assert enforced is not None
            return enforced

        await self._in_force(order, apply, lambda: self.model.strengthen(order, mode))

    @precondition(lambda self: self._drains())
    @rule(which=anyone)
    def end_grace(self, which: int) -> None:
        """A drain's grace is over."""
        drains = self._drains()
        self.runner.run(self._end_grace(drains[which % len(drains)]))

    async def _end_grace(self, order: Order) -> None:
        enforcer = self.world.enforcer
        enforcer.replica._drain_ends[order.kill_id] = 0.0
        enforcer.end_drains()
        self._note_limits(self.model.end_grace(order))
        await self._come_true(self._outcome)

    @precondition(lambda self: self.model.orders)
    @rule(which=anyone)
    def resume(self, which: int) -> None:
        order = self.model.orders[which % len(self.model.orders)]
        self.runner.run(self._resume(order))

    @precondition(lambda self: len(self.model.orders) > 1)
    @rule()
    def resume_all(self) -> None:
        for order in tuple(self.model.orders):
            self.runner.run(self._resume(order))

    async def _resume(self, order: Order) -> None:
        enforced = self.world.resume(order.kill_id)
        assert enforced is not None
        self._note_limits(self.model.lift(order))
        reports = enforced.reports()
        assert [report.kill_id for report in reports] == [order.kill_id] * (order.mode == HOLD)
        for report in reports:
            assert of_each(report) == self.model.told(order), (report, self.model)
        self.told.pop(order.kill_id, None)
        await self._come_true(self._outcome)

    # What comes of it.

    async def _in_force(
        self,
        order: Order,
        apply: Callable[[], Enforced],
        decide: Callable[[], Outcome],
        racing: Sequence[Client] = (),
    ) -> None:
        registered = self.world.enforcer.connections.count
        enforced = apply()
        cut = registered - self.world.enforcer.connections.count
        self._note_limits(decide())
        assert (enforced.ack.kills, enforced.ack.connections_cut) == ((order.kill_id,), cut)
        if not racing:
            assert cut == len(self._outcome.cut)
        (report,) = enforced.reports()
        self.told[order.kill_id] = report
        if order.mode == CUT and not racing:
            assert of_each(report) == self.model.told(order), (report, self.model)
        for client in racing:
            await self._raced(client)
        await self._come_true(self._outcome)

    def _note_limits(self, outcome: Outcome) -> None:
        """Whoever is stopped from now on may not have more than has left us; asked before anything else runs."""
        self._outcome = outcome
        held = self.world.enforcer.connections.held
        left = {ports(side.fileno()): side.written for one in held for side in one.upstreams}
        by_port = {client_port(one): one for one in held}
        for who, origin in self.origins.items():
            fate = self.model.fate(who)
            if fate not in (CUT, HOLD):
                self.limits.pop(who, None)
            elif who not in self.limits or fate == CUT:
                arrived = {(one.port, origin.port): one.arrived() for one in origin.arrivals}
                self.limits[who] = {**arrived, **(left if fate == HOLD else {})}
        for client in self.clients:
            if not client.line.held:
                client.limit = None
            elif client.limit is None:
                one = by_port.get(client.end.port)
                opened = 0 if client.line.kind not in (TUNNEL, INSPECTED) else ESTABLISHED
                client.limit = one.client.written + opened if one else client.end.got()

    async def _raced(self, client: Client) -> None:
        """What has become of a request that was on its way is seen, and the model told."""
        line, end = client.line, client.end
        if line in self._outcome.cut:
            return
        await soon(lambda: self._is_decided(client), lambda: (line, self._book(client)))
        answered = end.whole()
        if answered is None:
            book = self._book(client)
            line.admitted = line.kind == TUNNEL or (book is not None and not book.waiters)
            if line.held and line.kind != TUNNEL and line.admitted:
                await asyncio.sleep(QUIET_S)  # an answer that had been read is handled
                line.kept = book is not None and not book.is_busy
            client.stands = not line.admitted and book is not None and book.is_busy
        elif answered[0].status == 403:
            self.model.lines.remove(line)
            await self.is_refused(client)
        else:
            self.is_answered(client, await end.answer())

    def _is_decided(self, client: Client) -> bool:
        """Whether it has been answered, waits, or has been frozen behind what its client has got of it."""
        if client.end.whole() is not None:
            return True
        book = self._book(client)
        if book is None or not client.line.held:
            return False
        if client.line.kind == TUNNEL:
            return client.end.got() == client.limit
        return bool(book.waiters) or any(one.upstream is not None for one in book.exchanges)

    def _book(self, client: Client) -> Connection | None:
        everything = self.world.enforcer.connections.everything()
        return next((one for one in everything if client_port(one) == client.end.port), None)

    async def _come_true(self, outcome: Outcome) -> None:
        for client in list(self.clients):
            if client.line in outcome.cut:
                self._was_cut(client, await client.end.is_ended())
            elif client.line in outcome.refused:
                if client.stands and self.model.fate(client.line.who) == HOLD:
                    await self._is_not_told(client)
                else:
                    await self.is_refused(client)
            elif client.line in outcome.left:
                self.model.lines.remove(client.line)
                self.clients.remove(client)
        for client in list(self.clients):
            await self.catch_up(client)
        await self.settled()

    async def _is_not_told(self, client: Client) -> None:
        """It would be told of its refusal when it goes on; it does not wait for that."""
        book = self._book(client)
        assert book is not None
        await soon(lambda: not book.waiters and not book.is_busy, lambda: client.line)
        client.end.close(reset=True)
        self.clients.remove(client)

    def _was_cut(self, client: Client, said: bytes) -> None:
        # What had been answered before may still be read; a head that had not been read is refused.
        head, _, body = said.partition(b"\r\n\r\n")
        if said.startswith(b"HTTP/1.1 403"):
            answer = client.end.whole()
            assert answer is not None
            self.says_refusal(client, answer[0])
        elif body:
            assert head.startswith(b"HTTP/1.1 200")
        self.clients.remove(client)

    def _in_world(self, order: Order) -> Kill:
        view = self.world.enforcer.replica.view
        assert view is not None
        return next(one for one in view.orders if one.kill_id == order.kill_id)

    def _weaker(self) -> list[Order]:
        return [order for order in self.model.orders if order.mode != CUT]

    def _drains(self) -> list[Order]:
        return [order for order in self.model.orders if order.mode == DRAIN and not order.over]


def of_each(report: Report) -> dict[Who, Told]:
    """What a report says, without those that have nothing to their names."""
    said = {
        (str(one.agent), one.instance): Told(
            one.connections_live, one.connections_held, one.lost_while_held, one.connections_cut
        )
        for one in report.instances
    }
    return {who: told for who, told in said.items() if told != Told(0, 0, 0, 0)}
