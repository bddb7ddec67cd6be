"""When orders end by themselves, on a clock that no wall clock moves. Pure: both clocks are arguments.

A deadline is fixed when a time is first seen, from how far it lies ahead of the wall clock then. What
the wall clock does afterwards neither ends an order early nor keeps it for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from heapq import heapify, heappop, heappush

from haltwire_control.lifetimes import Due
from haltwire_control.state import Order

EXPIRES, HARDENS = "expires", "hardens"
_STALE_ALLOWED = 1000
"Entries whose order has changed since, before they are cleared away."


class Deadlines:
    """The deadlines of all orders in force."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[datetime, float]] = {}
        "By order and kind: the time, and its deadline on the steady clock."
        self._soonest: list[tuple[float, str, str]] = []
        "A heap. Entries that `_known` does not bear out are void."

    def note(self, order: Order, now: datetime, clock: float) -> bool:
        """Follow an order as it is now, lifted or not; whether a deadline is new or void."""
        kill, in_force = order.kill, order.lifted is None
        changed = False
        for kind, at in ((EXPIRES, kill.expires_at), (HARDENS, kill.hold_until)):
            name = kill.kill_id, kind
            at = at if in_force else None
            known = self._known.get(name)
            if (known[0] if known else None) == at:
                continue
            changed = True
            if at is None:
                del self._known[name]
                continue
            deadline = clock + (at - now).total_seconds()
            self._known[name] = at, deadline
            heappush(self._soonest, (deadline, *name))
        if len(self._soonest) > len(self._known) + _STALE_ALLOWED:
            self._soonest = [(deadline, *name) for name, (_, deadline) in self._known.items()]
            heapify(self._soonest)
        return changed

    def begin(self, orders: Iterable[Order], now: datetime, clock: float) -> None:
        """Follow the orders in force as they were left."""
        for order in orders:
            self.note(order, now, clock)

    def left(self, clock: float) -> float | None:
        """Seconds until the next one, 0.0 when it is due; None when there is none."""
        while self._soonest and not self._holds(self._soonest[0]):
            heappop(self._soonest)
        return max(0.0, self._soonest[0][0] - clock) if self._soonest else None

    def due(self, clock: float) -> dict[str, list[Due]]:
        """What is due, by kind. It stays due until its order has changed."""
        found: dict[str, list[Due]] = {EXPIRES: [], HARDENS: []}
        if self.left(clock) == 0.0:
            for (kill_id, kind), (at, deadline) in self._known.items():
                if deadline <= clock:
                    found[kind].append(Due(kill_id, at))
        return found

    def _holds(self, entry: tuple[float, str, str]) -> bool:
        deadline, kill_id, kind = entry
        known = self._known.get((kill_id, kind))
        return known is not None and known[1] == deadline
