"""When orders end by themselves, on a clock that no wall clock moves. Pure: both clocks are arguments.

A deadline is fixed when a time is first seen, from what is kept with the order and from how far the time
lies ahead of the wall clock then: an order is lifted when both say so, a hold made a cut when either does.
What the wall clock does afterwards neither ends an order early nor keeps it for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from heapq import heapify, heappop, heappush

from haltwire_control.ends import Clock, ahead
from haltwire_control.lifetimes import Due
from haltwire_control.state import Order

EXPIRES, HARDENS = "expires", "hardens"
_SAFER = {EXPIRES: max, HARDENS: min}
"Of several deadlines, the one at which nothing is let go too early."
_STALE_ALLOWED = 1000
"Entries whose order has changed since, before they are cleared away."


class Deadlines:
    """The deadlines of all orders in force."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Due, float]] = {}
        "By order and kind: the time, and its deadline on the steady clock."
        self._soonest: list[tuple[float, str, str]] = []
        "A heap. Entries that `_known` does not bear out are void."

    def note(self, order: Order, now: datetime, clock: Clock) -> bool:
        """Follow an order as it is now, lifted or not; whether a deadline is new or void."""
        changed = False
        for kind, end in _ends(order):
            name = order.kill.kill_id, kind
            known = self._known.get(name)
            if (known[0] if known else None) == end:
                continue
            changed = True
            if end is None:
                del self._known[name]
                continue
            found = [ahead(end.at, now, clock.seconds)]
            if end.steady is not None and clock.shares(order.ends.boot_id):
                found.append(end.steady)
            if known is not None:
                # An order that is ordered again can only last longer, and harden sooner.
                found.append(known[1])
            deadline = _SAFER[kind](found)
            self._known[name] = end, deadline
            heappush(self._soonest, (deadline, *name))
        if len(self._soonest) > len(self._known) + _STALE_ALLOWED:
            self._soonest = [(deadline, *name) for name, (_, deadline) in self._known.items()]
            heapify(self._soonest)
        return changed

    def begin(self, orders: Iterable[Order], now: datetime, clock: Clock) -> float:
        """Follow the orders in force as they were left.

        By how many seconds the wall clock was set forward since one of them was issued, as far as that
        can be told; of several the most, and less than nothing when it was set back.
        """
        most = 0.0
        for order in orders:
            self.note(order, now, clock)
            for _, end in _ends(order):
                if end and end.steady is not None and clock.shares(order.ends.boot_id):
                    set_by = end.steady - ahead(end.at, now, clock.seconds)
                    most = max(most, set_by, key=abs)
        return most

    def left(self, clock: float) -> float | None:
        """Seconds until the next one, 0.0 when it is due; None when there is none."""
        while self._soonest and not self._holds(self._soonest[0]):
            heappop(self._soonest)
        return max(0.0, self._soonest[0][0] - clock) if self._soonest else None

    def due(self, clock: float) -> dict[str, list[Due]]:
        """What is due, by kind. It stays due until its order has changed."""
        found: dict[str, list[Due]] = {EXPIRES: [], HARDENS: []}
        if self.left(clock) == 0.0:
            for (_, kind), (end, deadline) in self._known.items():
                if deadline <= clock:
                    found[kind].append(end)
        return found

    def _holds(self, entry: tuple[float, str, str]) -> bool:
        deadline, kill_id, kind = entry
        known = self._known.get((kill_id, kind))
        return known is not None and known[1] == deadline


def _ends(order: Order) -> Iterator[tuple[str, Due | None]]:
    """Both ends of an order; None for one that it does not have."""
    kill, ends, in_force = order.kill, order.ends, order.lifted is None
    for kind, at, seconds in (
        (EXPIRES, kill.expires_at, ends.expires),
        (HARDENS, kill.hold_until, ends.hardens),
    ):
        yield kind, Due(kill.kill_id, at, seconds) if in_force and at is not None else None
