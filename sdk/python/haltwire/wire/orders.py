"""Kills: orders in force, which of them decide about an instance, and what a resume lifts.

Orders are latched: they stay until lifted, and they also cover agents first seen later.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from datetime import datetime

from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import Selector

CUT, DRAIN, HOLD = "cut", "drain", "hold"
MODES = (HOLD, DRAIN, CUT)
"From the weakest to the strongest."


@dataclass(frozen=True, slots=True)
class Kill:
    """One order in force."""

    kill_id: str
    selector: Selector
    mode: str
    """`cut`: refuse new requests, sever live connections. `drain`: live ones may finish within `grace_s`.
    `hold`: new requests wait, live connections stop moving. A mode that a reader does not know is enforced as `cut`."""
    reason: str | None
    actor: str
    created_at: datetime
    revision: int
    "The revision that issued it."
    expires_at: datetime | None = None
    excepted: tuple[Selector, ...] = ()
    "What a resume with carve-out took out of it."
    grace_s: float | None = None
    "Of a drain: for how long each proxy, from when it applied the order, lets live connections finish."
    hold_until: datetime | None = None
    "Of a hold: when the control server makes it a cut; None is never."

    def matches(self, agent: AgentRef, instance: str) -> bool:
        """Whether it stops this instance of this agent."""
        return self.selector.matches(agent, instance) and not any(
            exception.matches(agent, instance) for exception in self.excepted
        )


@dataclass(frozen=True, slots=True)
class Lifted:
    """What a resume does to the orders in force."""

    lifted: tuple[Kill, ...]
    still_killed_by: tuple[Kill, ...]
    "Orders that go on stopping some of what the resume named: those that are wider, or cross it."


def deciding_kill(orders: Iterable[Kill], agent: AgentRef, instance: str) -> Kill | None:
    """The order that decides on a new request, or None when nothing stops the instance.

    It is refused when any cut or drain matches, else it waits when a hold does; the oldest speaks.
    """
    return min(
        (order for order in orders if order.matches(agent, instance)),
        key=lambda order: (order.mode == HOLD, order.revision, order.kill_id),
        default=None,
    )


def live_mode(matching: Iterable[Kill], drained: Container[str]) -> str | None:
    """What becomes of a live connection that these orders match; `drained`: drains whose grace is over.

    It is cut when any cut or ended drain matches, else frozen when a hold does, else it may finish
    (`drain`) or, with None, go on.
    """
    found: str | None = None
    for order in matching:
        if order.mode == HOLD:
            found = HOLD
        elif order.mode != DRAIN or order.kill_id in drained:
            return CUT
        elif found is None:
            found = DRAIN
    return found


def lift(orders: Iterable[Kill], resumed: Selector, kill_id: str | None = None) -> Lifted:
    """Split the orders by a resume of a selector, or of the one order `kill_id` whose selector it is.

    A resume lifts orders equal to its selector or wholly inside it, and nothing else.
    """
    lifted, still = [], []
    for order in sorted(orders, key=lambda order: (order.revision, order.kill_id)):
        named = order.kill_id == kill_id if kill_id else resumed.covers(order.selector)
        if named:
            lifted.append(order)
        elif overlap(order.selector, resumed) and not any(
            exception.covers(resumed) for exception in order.excepted
        ):
            still.append(order)
    return Lifted(tuple(lifted), tuple(still))


def overlap(one: Selector, other: Selector) -> bool:
    """Whether some instance of some agent could be matched by both."""
    return _paths_overlap(one.segments, other.segments) and (
        one.instance is None
        or other.instance is None
        or _globs_overlap(one.instance, other.instance)
    )


def _paths_overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    for position in range(max(len(one), len(other))):
        left = one[position] if position < len(one) else None
        right = other[position] if position < len(other) else None
        if left == "**" or right == "**":
            return left is not None and right is not None
        if left is None or right is None or not _globs_overlap(left, right):
            return False
    return True


def _globs_overlap(one: str, other: str) -> bool:
    # Dynamic programming over both globs; a '*' may swallow nothing or one character more.
    reachable = {(0, 0)}
    waiting = [(0, 0)]
    while waiting:
        i, j = waiting.pop()
        if i == len(one) and j == len(other):
            return True
        left = one[i] if i < len(one) else ""
        right = other[j] if j < len(other) else ""
        steps = []
        if left == "*":
            steps.append((i + 1, j))
            if right and right != "*":
                steps.append((i, j + 1))
        if right == "*":
            steps.append((i, j + 1))
            if left and left != "*":
                steps.append((i + 1, j))
        if left and left == right:
            steps.append((i + 1, j + 1))
        for step in steps:
            if step not in reachable:
                reachable.add(step)
                waiting.append(step)
    return False
