"""How agents and their instances are: statuses from heartbeats and traffic, in haltwire's and AXME's words.

An agent's status is its worst live instance's, and `killed` or `held` when an order covers the whole agent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from haltwire.wire.names import AgentRef
from haltwire.wire.orders import HOLD, Kill
from haltwire.wire.selectors import Selector

ACTIVE, IDLE, FINISHED, STALE, CRASHED, KILLED, HELD = (
    "active",
    "idle",
    "finished",
    "stale",
    "crashed",
    "killed",
    "held",
)
STATUSES = (ACTIVE, IDLE, FINISHED, STALE, CRASHED, KILLED, HELD)
HEALTH_OF = {
    ACTIVE: "healthy",
    IDLE: "healthy",
    FINISHED: "healthy",
    STALE: "degraded",
    CRASHED: "unreachable",
    KILLED: "killed",
    HELD: "held",
}
"AXME's word for each status; it has none for one that is held."
HEALTHS = ("healthy", "degraded", "unreachable", "killed", "held")

DEFAULT_INTERVAL_S = 30.0
MISSED_UNTIL_STALE = 3
MISSED_UNTIL_CRASHED = 10
TRAFFIC_LATELY = timedelta(seconds=30)
"For an instance that sends no heartbeats: as long as one default interval."
FORGOTTEN_AFTER = timedelta(hours=1)
"An instance without any sign for this long is no longer a live one, whether it crashed or just left."

_BADNESS = {FINISHED: 0, IDLE: 1, ACTIVE: 2, STALE: 3, CRASHED: 4}


@dataclass(frozen=True, slots=True)
class Signs:
    """What has been seen of one instance."""

    heartbeat_at: datetime | None = None
    interval_s: float = DEFAULT_INTERVAL_S
    finished_at: datetime | None = None
    traffic_at: datetime | None = None
    connections: int = 0

    @property
    def last_at(self) -> datetime | None:
        """The latest sign of any kind."""
        seen = [t for t in (self.heartbeat_at, self.traffic_at, self.finished_at) if t is not None]
        return max(seen, default=None)


def status_of(signs: Signs, now: datetime) -> str:
    """The status of an instance, orders apart."""
    if signs.finished_at is not None:
        return FINISHED
    if signs.heartbeat_at is not None:
        missed = (now - signs.heartbeat_at).total_seconds() / signs.interval_s
        if missed > MISSED_UNTIL_CRASHED:
            return CRASHED
        return STALE if missed > MISSED_UNTIL_STALE else ACTIVE
    lately = signs.traffic_at is not None and now - signs.traffic_at <= TRAFFIC_LATELY
    return ACTIVE if signs.connections or lately else IDLE


def is_live(signs: Signs, now: datetime) -> bool:
    """Whether the instance may still be running."""
    if signs.finished_at is not None:
        return False
    if signs.connections:
        return True
    last = signs.last_at
    # A long heartbeat interval is a promise to be silent for that long.
    patience = max(FORGOTTEN_AFTER, timedelta(seconds=signs.interval_s * MISSED_UNTIL_CRASHED))
    return last is not None and now - last <= patience


def covers_agent(kills: Iterable[Kill], agent: AgentRef) -> Kill | None:
    """The order that decides on every instance of the agent, or None: the oldest, a hold after all others."""
    whole = Selector.of(agent)
    return min(
        (
            kill
            for kill in kills
            if kill.selector.covers(whole)
            and not any(exception.matches_agent(agent) for exception in kill.excepted)
        ),
        key=lambda kill: (kill.mode == HOLD, kill.revision, kill.kill_id),
        default=None,
    )


def status_under(order: Kill | None) -> str | None:
    """The status of whom this order decides on; None when there is no order."""
    if order is None:
        return None
    return HELD if order.mode == HOLD else KILLED


def worst(statuses: Iterable[str]) -> str:
    """The status of an agent whose live instances have these; `finished` without any."""
    return max(statuses, key=_BADNESS.__getitem__, default=FINISHED)
