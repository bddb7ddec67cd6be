"""What each order has done here: the details that follow its acknowledgement, and those that come later.

A cut is told once. A drain is told again as connections end, a hold as peers give up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from haltwire.wire.messages import CutInstance, Report
from haltwire.wire.orders import DRAIN, HOLD, Kill

from haltwire_proxy.connections import Connection, Connections, Cut, facts_of
from haltwire_proxy.tally import KEPT_FOR, Tallies, Tally

REPORTED_FOR = KEPT_FOR
"An instance without a live connection is in a kill's report when it was seen within this time."

MANY, MANY_EVERY = 500, timedelta(seconds=1)
"An order that is about more connections than this is not told more often than that."


@dataclass(slots=True)
class _Record:
    """What has come of one drain or hold so far."""

    cuts: list[Cut] = field(default_factory=list)
    lost: Counter[Tally] = field(default_factory=Counter)
    residual: int = 0
    told: tuple[int, ...] | None = None
    "The gist of the latest report."
    told_at: datetime | None = None


class Reporting:
    """The reports of the orders in force."""

    def __init__(
        self, tallies: Tallies, connections: Connections, now: Callable[[], datetime]
    ) -> None:
        self._tallies = tallies
        self._connections = connections
        self._now = now
        self._records: dict[str, _Record] = {}

    def begin(self, order: Kill, cuts: Iterable[Cut]) -> None:
        """An order has been applied, and this is what it cut; anew when it has become another."""
        record = self._records.setdefault(order.kill_id, _Record())
        self.note_cuts(order, cuts)
        if order.mode == HOLD:
            record.residual = sum(one.residual for one in self._matching(order) if one.held)

    def note_cuts(self, order: Kill, cuts: Iterable[Cut]) -> None:
        """The order has cut what it matches of these."""
        self._records[order.kill_id].cuts += [
            cut for cut in cuts if order.matches(cut.identity.agent, cut.identity.instance)
        ]

    def note_lost(self, orders: Iterable[Kill], connection: Connection) -> None:
        """A peer of a held connection has given up."""
        identity = connection.identity
        for order in orders:
            record = self._records.get(order.kill_id)
            if record and order.mode == HOLD and order.matches(identity.agent, identity.instance):
                record.lost[connection.tally] += 1

    def take(self, order: Kill) -> Report:
        """The order's report as of now, which is about to be sent."""
        report = self._report(order)
        if order.mode in (DRAIN, HOLD):
            record = self._records.setdefault(order.kill_id, _Record())
            record.told, record.told_at = self._gist(order, record), report.now
        else:
            self._records.pop(order.kill_id, None)
        return report

    def take_final(self, order: Kill) -> Report:
        """The last report of a hold that was lifted: what goes on, and what was lost."""
        report = self._report(order)
        self._records.pop(order.kill_id, None)
        return report

    def take_changed(self, orders: Iterable[Kill]) -> list[Report]:
        """The reports of drains and holds that have something new to say."""
        return [self.take(order) for order in orders if self._has_news(order)]

    def tell_again(self) -> None:
        """Whoever is told next may know nothing: all that goes on is told anew."""
        for record in self._records.values():
            record.told = None

    def forget(self, order: Kill) -> None:
        """The order is no longer in force."""
        self._records.pop(order.kill_id, None)

    def _has_news(self, order: Kill) -> bool:
        record = self._records.get(order.kill_id)
        if record is None or order.mode not in (DRAIN, HOLD):
            return False
        gist = self._gist(order, record)
        if record.told is None or record.told_at is None or not gist[0]:
            return gist != record.told
        # The facts of many connections take a while to ask for.
        rested = sum(gist) < MANY or self._now() - record.told_at >= MANY_EVERY
        return rested and gist != record.told

    def _gist(self, order: Kill, record: _Record) -> tuple[int, ...]:
        """How many are alive, held, cut and lost: what cannot change without the report changing."""
        alive = self._alive(order)
        held = sum(one.held for one in alive)
        return len(alive), held, len(record.cuts), record.lost.total()

    def _alive(self, order: Kill) -> list[Connection]:
        """What the order lets be: the rest of a drain; whatever is under way or waits under a hold."""
        if order.mode == DRAIN:
            return [one for one in self._matching(order) if one.draining and one.is_busy]
        if order.mode == HOLD:
            return [one for one in self._matching(order) if one.is_busy or one.waiters]
        return []

    def _matching(self, order: Kill) -> list[Connection]:
        return self._connections.matching(
            order.selector.matches_agent,
            lambda one: order.matches(one.identity.agent, one.identity.instance),
        )

    def _report(self, order: Kill) -> Report:
        record = self._records.get(order.kill_id, _Record())
        now = self._now()
        cuts: dict[Tally, list[Cut]] = {
            tally: [] for tally in self._tallies.matching(order.matches, now - REPORTED_FOR)
        }
        for cut in record.cuts:
            cuts.setdefault(cut.tally, []).append(cut)
        alive: dict[Tally, list[Connection]] = {}
        for one in self._alive(order):
            alive.setdefault(one.tally, []).append(one)
        described = tuple(
            _describe(tally, own, alive.get(tally, []), record.lost[tally])
            for tally, own in cuts.items()
        )
        drains = order.mode == DRAIN
        return Report(
            order.kill_id,
            now,
            described,
            live=sum(map(len, alive.values())) if drains else 0,
            residual_bytes_max=record.residual if order.mode == HOLD else None,
        )


def _describe(tally: Tally, cuts: list[Cut], alive: list[Connection], lost: int) -> CutInstance:
    """What is known of one instance, whether or not it had a live connection."""
    last = tally.last_byte_at
    flights = [flight for cut in cuts for flight in cut.in_flight]
    flights += [flight for one in alive for flight in facts_of(one)]
    return CutInstance(
        agent=tally.agent,
        instance=tally.instance,
        seen_at=tally.last_seen_at,
        connections_cut=len(cuts),
        last_byte_at=datetime.fromtimestamp(last, timezone.utc) if last else None,
        completed_at=tuple(tally.completed),
        completed_known=not (tally.forgotten or tally.tunnelled),
        in_flight=tuple(flights),
        connections_live=sum(not one.held for one in alive),
        connections_held=sum(one.held for one in alive),
        lost_while_held=lost,
    )
