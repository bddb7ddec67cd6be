"""What a worker enforces: the replica's word on every request and on every live connection.

Applying a message and cutting, freezing or thawing what it names happen in one call without an await.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from haltwire.wire.messages import Ack, Delta, Renewed, Report, Snapshot, TokenRule
from haltwire.wire.orders import CUT, DRAIN, HOLD, Kill
from haltwire.wire.refusals import Refusal

from haltwire_proxy import gate
from haltwire_proxy.connections import Connection, Connections, Cut, ask_again
from haltwire_proxy.faults import FailClosed
from haltwire_proxy.gate import Held
from haltwire_proxy.identity import Identity
from haltwire_proxy.lease import Lease
from haltwire_proxy.limits import DEFAULTS, MOST_DESCRIPTORS, Limits, fitted
from haltwire_proxy.replica import Change, Replica, View
from haltwire_proxy.reporting import Reporting
from haltwire_proxy.staleness import DEFAULT, Rule
from haltwire_proxy.tally import Tallies

log = logging.getLogger(__name__)
GAVE_UP = 70
"Exit code of a worker that could not carry out an order; its supervisor starts it anew."


class HeldUpError(Exception):
    """A hold interrupted what was being opened; it is to be begun again."""


@dataclass(frozen=True, slots=True)
class Enforced:
    """What applying a message did: first the acknowledgement, then, put together afterwards, the details."""

    ack: Ack
    reports: Callable[[], list[Report]]
    "Asked once, when the acknowledgement is on its way."


class Enforcer:
    """The one place that turns orders into cuts and questions into decisions."""

    def __init__(
        self,
        boottime: Callable[[], float],
        now: Callable[[], datetime],
        limits: Limits = DEFAULTS,
        descriptors: int = MOST_DESCRIPTORS,
        rule: Rule = DEFAULT,
    ) -> None:
        self.limits = fitted(limits, descriptors)
        self.descriptors = descriptors
        "How many this process may have open."
        self.replica = Replica(boottime())
        self.tallies = Tallies()
        self.connections = Connections(self.tallies, now)
        self.connections.on_lost = self._note_lost
        self.reporting = Reporting(self.tallies, self.connections, now)
        self.lease = Lease(self.replica, self.connections, self.tallies, boottime, rule)
        self.lease.judge_anew = self._judge_anew
        self.lease.on_cut = self._note_cuts
        self.lease.give_up = lambda: self.give_up()
        self._boottime = boottime
        self._ended: frozenset[str] = frozenset()
        "Drains whose rest has been cut."
        self.now = now
        self.give_up: Callable[[], object] = lambda: os._exit(GAVE_UP)
        """What is done when an order cannot be carried out. A view that is in force, with connections
        that it should have ended, is worse than no worker: with the process all its sockets are reset."""

    @property
    def tokens(self) -> Mapping[str, TokenRule] | None:
        """The token rules in force by digest, or None before the first snapshot."""
        view = self.replica.view
        return None if view is None else view.tokens

    def lease_left(self) -> float:
        """Seconds for which traffic may still pass."""
        return self.lease.left()

    def may_pass(self) -> bool:
        """Asked before every forwarding write. Without a lease everything live stands still, then is cut."""
        return self.lease.may_pass()

    def decide(self, identity: Identity) -> Refusal | Held | None:
        """None lets the request through. A decision that fails refuses."""
        try:
            left, view = (float("inf") if self.may_pass() else 0.0), self.replica.view
            if view is None:
                return Held(None) if self.lease.waits else NO_WORD
            return gate.decide(view, identity, left, waits=self.lease.waits)
        except Exception:
            log.exception("a decision failed")
            return failed()

    def room(self, identity: Identity) -> Refusal | None:
        """Why this identity may not be one more of its token's instances, or None when it may."""
        return self.tallies.room(identity.token_id, identity.agent, identity.instance, self.now())

    async def admission(self, connection: Connection) -> Refusal | None:
        """Ask for a request of this connection, and wait as long as it is held; None lets it through."""
        while isinstance(decision := self.decide(connection.identity), Held):
            if connection.severed:
                return failed()
            waiter = asyncio.get_running_loop().create_future()
            connection.waiters[waiter] = None
            if decision.kill is None:
                self.connections.freeze_stale([connection])
            else:
                self.connections.freeze([connection])
            try:
                await waiter
            finally:
                del connection.waiters[waiter]
        return decision

    async def undisturbed[T](self, connection: Connection, opening: Awaitable[T]) -> T:
        """Await what opens an upstream. HeldUpError when a hold came in between: then it was dropped."""
        task = asyncio.current_task()
        assert task is not None
        connection.dials[task] = False
        try:
            return await opening
        except asyncio.CancelledError:
            # As asyncio.timeout does it: whoever else wants this task ended gets his will.
            if connection.dials.get(task) and task.uncancel() == 0:
                raise HeldUpError from None
            raise
        finally:
            connection.dials.pop(task, None)

    def renewed(self, message: Renewed) -> None:
        """Take a lease: what has waited for it goes on. What had waited too long by then is cut first."""
        self.lease.look()
        self.replica.renewed(message, self._boottime())
        self.lease.look()

    def apply(self, message: Snapshot | Delta) -> Enforced | None:
        """Put a message in force and do to live connections what it says. None when it changed nothing."""
        with FailClosed("an order could not be carried out: this worker ends", self.give_up):
            return self._apply(message)
        return None

    def _apply(self, message: Snapshot | Delta) -> Enforced | None:
        self.lease.look()  # what an order lets go on may not go on beyond the lease
        before = self.replica.view
        change = self.replica.apply(message, self._boottime())
        view = self.replica.view
        if view is None or (view is before and not change.acknowledge):
            return None
        cuts = self._settle(view, change)
        for order in change.lifted:
            if order.mode != HOLD:
                self.reporting.forget(order)
        named = set(change.acknowledge)
        begun = [order for order in view.orders if order.kill_id in named]
        for order in begun:
            self.reporting.begin(order, cuts)
        if isinstance(message, Snapshot):
            self.reporting.tell_again()
        ack = Ack(view.epoch, view.revision, tuple(change.acknowledge), len(cuts))
        return Enforced(ack, lambda: self._first_reports(begun, change.lifted))

    def end_drains(self) -> None:
        """Cut what is left under drains whose grace is over."""
        with FailClosed("a drain could not be ended: this worker ends", self.give_up):
            self._end_drains()

    def _end_drains(self) -> None:
        view, drained = self.replica.view, self.replica.drained(self._boottime())
        fresh = drained - self._ended
        self._ended = drained
        if view is None or not fresh:
            return
        ended = tuple(order for order in view.orders if order.kill_id in fresh)
        cuts = self._settle(view, Change(touched=ended))
        for order in ended:
            self.reporting.note_cuts(order, cuts)

    def _judge_anew(self) -> None:
        """The lease is back: what orders and tokens no longer allow is not let go on with the rest."""
        self.end_drains()
        view, drained = self.replica.view, self.replica.drained(self._boottime())
        if view is None:
            return
        held = []
        for one in tuple(self.connections.stale):
            mode = view.live_mode(one.identity.agent, one.identity.instance, drained)
            if mode == CUT or one.identity.token_id not in view.token_ids:
                self.connections.cut([one])
            elif mode == HOLD:
                held.append(one)
        self.connections.freeze(held)

    def _note_cuts(self, cuts: list[Cut]) -> None:
        """The end of the lease has cut what drains and holds tell of."""
        view = self.replica.view
        for order in view.orders if view else ():
            if order.mode in (DRAIN, HOLD):
                self.reporting.note_cuts(order, cuts)

    def next_drain_end(self) -> float | None:
        """Seconds until `end_drains` has something to do."""
        return self.replica.next_drain_end(self._boottime())

    def changed_reports(self) -> list[Report]:
        """What drains and holds have to tell since they were last asked."""
        view = self.replica.view
        return [] if view is None else self.reporting.take_changed(view.orders)

    def _settle(self, view: View, change: Change) -> list[Cut]:
        """Bring the live connections that a change is about to where the orders want them."""
        try:
            judged = self._judge(view, change)
        except Exception:
            # The view is in force and will be acknowledged: who is not known to be spared is cut.
            log.exception("whom a change stops could not be told: everything is cut")
            judged = [(one, CUT) for one in self.connections.everything()]
        cuts = self.connections.cut(one for one, mode in judged if mode == CUT)
        self.connections.freeze(one for one, mode in judged if mode == HOLD)
        for one, mode in judged:
            if mode == HOLD:
                ask_again(one)  # a drain that has come on top refuses what waits
        drains = [x for x in change.touched if x.mode == DRAIN and x not in change.lifted]
        for one, mode in judged:
            # Also one that a hold has frozen: what the drain waits for may yet go on.
            agent, instance = one.identity.agent, one.identity.instance
            if mode != CUT and any(order.matches(agent, instance) for order in drains):
                one.draining = True
        self.connections.thaw(one for one, mode in judged if mode in (DRAIN, None))
        return cuts

    def _judge(self, view: View, change: Change) -> list[tuple[Connection, str | None]]:
        if change.everything:
            return [(one, CUT) for one in self.connections.everything()]
        if not change.touched and not change.missed and not change.revoked:
            return []
        drained = self.replica.drained(self._boottime())
        about = (*change.touched, *change.missed)

        def mode_of(one: Connection) -> str | None:
            identity = one.identity
            agent, instance = identity.agent, identity.instance
            if identity.token_id in change.revoked:
                return CUT
            if any(order.matches(agent, instance) for order in change.missed):
                return CUT
            return view.live_mode(agent, instance, drained)

        concerned = self.connections.matching(
            lambda agent: (
                bool(change.revoked) or any(order.selector.matches_agent(agent) for order in about)
            ),
            lambda _: True,
        )
        return [(one, mode_of(one)) for one in concerned]

    def _first_reports(self, begun: list[Kill], lifted: tuple[Kill, ...]) -> list[Report]:
        reports = []
        for order in (*begun, *lifted):
            try:
                if order in lifted:
                    if order.mode == HOLD:
                        reports.append(self.reporting.take_final(order))
                else:
                    reports.append(self.reporting.take(order))
            except Exception:
                log.exception("a report failed")
        return reports

    def _note_lost(self, connection: Connection) -> None:
        view = self.replica.view
        if view is not None:
            self.reporting.note_lost(view.orders, connection)


NO_WORD = Refusal(
    "enforcement_unknown", "The proxy has no word yet on who may pass. Try again soon."
)


def failed() -> Refusal:
    """The refusal for a fault of our own."""
    return Refusal("enforcement_failed", "The proxy failed to decide, so it refused.")
