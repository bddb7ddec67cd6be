"""What a worker enforces: the replica's word on every request and on every live connection.

Applying a message and cutting what it kills happen in one call without an await.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from haltwire.wire.messages import Ack, Delta, Renewed, Report, Snapshot, TokenRule
from haltwire.wire.orders import Kill
from haltwire.wire.refusals import Refusal

from haltwire_proxy import gate
from haltwire_proxy.connections import Connection, Connections, Cut, describe
from haltwire_proxy.identity import Identity
from haltwire_proxy.replica import Change, Replica
from haltwire_proxy.tally import Tallies, Tally

log = logging.getLogger(__name__)
REPORTED_FOR = timedelta(minutes=15)
"An instance without a live connection is in a kill's report when it was seen within this time."


@dataclass(frozen=True, slots=True)
class Enforced:
    """What applying a message did: first the acknowledgement, then the details."""

    ack: Ack
    reports: tuple[Report, ...]


class Enforcer:
    """The one place that turns orders into cuts and questions into decisions."""

    def __init__(self, boottime: Callable[[], float], now: Callable[[], datetime]) -> None:
        self.replica = Replica()
        self.tallies = Tallies()
        self.connections = Connections(self.tallies, now)
        self._boottime = boottime
        self.now = now

    @property
    def tokens(self) -> Mapping[str, TokenRule] | None:
        """The token rules in force by digest, or None before the first snapshot."""
        view = self.replica.view
        return None if view is None else view.tokens

    def lease_left(self) -> float:
        """Seconds for which traffic may still pass."""
        return self.replica.lease_left(self._boottime())

    def may_pass(self) -> bool:
        """Asked before every forwarding write. Without a lease everything live is cut."""
        if self.replica.lease_left(self._boottime()) > 0:
            return True
        self.lose_lease()
        return False

    def decide(self, identity: Identity) -> Refusal | None:
        """None lets the request through. A decision that fails refuses."""
        try:
            view = self.replica.view
            if view is None:
                return Refusal("enforcement_unknown", _STALE)
            return gate.decide(view, identity, self.lease_left())
        except Exception:
            log.exception("a decision failed")
            return failed()

    def lose_lease(self) -> None:
        """Cut everything: what may pass is no longer known."""
        doomed = self.connections.everything()
        if doomed:
            log.warning("lease lost: cutting %d connections", len(doomed))
            self.connections.cut(doomed)

    def renewed(self, message: Renewed) -> None:
        """Take a lease."""
        self.replica.renewed(message, self._boottime())

    def apply(self, message: Snapshot | Delta) -> Enforced | None:
        """Put a message in force and cut what it kills. None when it changed nothing."""
        before = self.replica.view
        change = self.replica.apply(message)
        view = self.replica.view
        if view is None or (view is before and not change.acknowledge):
            return None
        try:
            doomed = self._doomed(change)
        except Exception:
            # The view is in force and will be acknowledged: who is not known to be spared is cut.
            log.exception("whom a change stops could not be told: everything is cut")
            doomed = self.connections.everything()
        cuts = self.connections.cut(doomed)
        ack = Ack(view.epoch, view.revision, tuple(change.acknowledge), len(cuts))
        named = set(change.acknowledge)
        reports: tuple[Report, ...] = ()
        try:
            reports = tuple(
                self._report(order, cuts) for order in view.orders if order.kill_id in named
            )
        except Exception:
            log.exception("a report failed; the acknowledgement does not wait for it")
        return Enforced(ack, reports)

    def _doomed(self, change: Change) -> list[Connection]:
        if change.everything:
            return self.connections.everything()
        if not change.kills and not change.revoked:
            return []

        def is_doomed(connection: Connection) -> bool:
            identity = connection.identity
            return identity.token_id in change.revoked or any(
                kill.matches(identity.agent, identity.instance) for kill in change.kills
            )

        if change.revoked:
            return self.connections.matching(lambda _: True, is_doomed)
        return self.connections.matching(
            lambda agent: any(kill.selector.matches_agent(agent) for kill in change.kills),
            is_doomed,
        )

    def _report(self, kill: Kill, cuts: list[Cut]) -> Report:
        since = self.now() - REPORTED_FOR
        own: dict[Tally, list[Cut]] = {
            tally: [] for tally in self.tallies.matching(kill.matches, since)
        }
        for cut in cuts:
            identity = cut.connection.identity
            if kill.matches(identity.agent, identity.instance):
                own.setdefault(cut.connection.tally, []).append(cut)
        described = tuple(describe(tally, its_cuts) for tally, its_cuts in own.items())
        return Report(kill.kill_id, self.now(), described)


_STALE = "The proxy has no fresh word on who may pass, so nothing passes. It tries again by itself."


def failed() -> Refusal:
    """The refusal for a fault of our own."""
    return Refusal("enforcement_failed", "The proxy failed to decide, so it refused.")
