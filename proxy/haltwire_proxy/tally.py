"""What each instance has done at this proxy: totals since its start, for reports and receipts.

Totals, never differences: a message that is lost then loses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from haltwire.wire.messages import InstanceUsage, Mismatch
from haltwire.wire.names import AgentRef

REMEMBERED_COMPLETIONS = 1000


@dataclass(slots=True, eq=False)
class Tally:
    """One instance's totals."""

    agent: AgentRef
    instance: str
    first_seen_at: datetime
    last_seen_at: datetime
    connections: int = 0
    requests: int = 0
    refused: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    last_byte_at: float = 0.0
    "On the wall clock, seconds; 0 before any byte."
    completed: deque[datetime] = field(default_factory=lambda: deque(maxlen=REMEMBERED_COMPLETIONS))
    forgotten: bool = False
    "Whether completions have fallen out of `completed`."
    tunnelled: bool = False
    "Whether some of its requests went through a tunnel, unread."
    changed: bool = False

    def complete(self, now: datetime) -> None:
        """Note that a request has been answered in full."""
        self.forgotten = self.forgotten or len(self.completed) == REMEMBERED_COMPLETIONS
        self.completed.append(now)

    def usage(self) -> InstanceUsage:
        """The totals as they travel."""
        return InstanceUsage(
            self.agent,
            self.instance,
            self.first_seen_at,
            self.last_seen_at,
            self.connections,
            self.requests,
            self.refused,
            self.bytes_up,
            self.bytes_down,
        )


class Tallies:
    """All tallies, and which of them have changed since they were last told."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[AgentRef, str], Tally] = {}
        self._changed: list[Tally] = []
        self._mismatches: dict[tuple[str, str, str | None], int] = {}
        self.totals: dict[str, int] = {}
        "What this proxy has done since its start, by name, without saying for whom."
        self._told: dict[str, int] = {}
        self.on_new: Callable[[], None] = lambda: None
        "Called for an instance's first sign of life: who may kill it should know its name soon."

    def seen(self, agent: AgentRef, instance: str, now: datetime) -> Tally:
        """The instance's tally, made when it is new, with its last sign of life."""
        tally = self._tallies.get((agent, instance))
        if tally is None:
            tally = self._tallies[agent, instance] = Tally(agent, instance, now, now)
            self.on_new()
        tally.last_seen_at = now
        self.touch(tally)
        return tally

    def touch(self, tally: Tally) -> None:
        """Have the tally told with the next report."""
        if not tally.changed:
            tally.changed = True
            self._changed.append(tally)

    def count(self, name: str) -> None:
        """Add one to a total: `requests`, `refused.CODE`, `limit.NAME`, `leases_lost`."""
        self.totals[name] = self.totals.get(name, 0) + 1

    def take_totals(self) -> dict[str, int]:
        """All totals when any has changed since the last call, else nothing."""
        if self.totals == self._told:
            return {}
        self._told = dict(self.totals)
        return dict(self.totals)

    def mismatch(self, source: str, kind: str, agent: str | None) -> None:
        """Count credentials that did not fit."""
        key = (source, kind, agent)
        if key in self._mismatches or len(self._mismatches) < 1000:
            self._mismatches[key] = self._mismatches.get(key, 0) + 1

    def take_changes(self) -> tuple[InstanceUsage, ...]:
        """What has changed since the last call."""
        changed, self._changed = self._changed, []
        for tally in changed:
            tally.changed = False
        return tuple(tally.usage() for tally in changed)

    def take_mismatches(self) -> tuple[Mismatch, ...]:
        """The mismatches since the last call."""
        counted, self._mismatches = self._mismatches, {}
        return tuple(Mismatch(*key, count) for key, count in counted.items())

    def matching(self, matches: Callable[[AgentRef, str], bool], since: datetime) -> list[Tally]:
        """The tallies of matching instances that are connected or were seen since then."""
        return [
            tally
            for (agent, instance), tally in self._tallies.items()
            if (tally.connections or tally.last_seen_at >= since) and matches(agent, instance)
        ]

    def all(self) -> tuple[InstanceUsage, ...]:
        """Everything, for a control server that may know nothing."""
        self.take_changes()
        return tuple(tally.usage() for tally in self._tallies.values())
