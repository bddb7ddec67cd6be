"""What each instance has done at this proxy: totals since its start, for reports and receipts.

Totals, never differences: a message that is lost then loses nothing. A token that is not bound to an
instance can invent names without end, so how many of them count at once is bounded by token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from haltwire.wire.messages import InstanceUsage, Mismatch
from haltwire.wire.names import AgentRef, source_of
from haltwire.wire.refusals import Refusal

REMEMBERED_COMPLETIONS = 1000
INSTANCES_PER_TOKEN = 1000
KEPT_FOR = timedelta(minutes=15)
"""How long an instance without a live connection is kept: a receipt looks back that far. After it, its
place may be had by another name, so a fleet whose instances are named at random goes on for ever."""
SWEPT_BEYOND = 10_000
"Tallies of all tokens beyond which those are dropped that nobody asks for any more."
MISMATCHES = 1000
OTHERS = "others"
"The source under which mismatches are counted beyond `MISMATCHES`."


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


_Name = tuple[AgentRef, str]


class Tallies:
    """All tallies, and which of them have changed since they were last told."""

    def __init__(self) -> None:
        self._tallies: dict[_Name, Tally] = {}
        self._named: dict[str, dict[_Name, Tally]] = {}
        "The instances that each token has shown, by its id."
        self._sweep_at = SWEPT_BEYOND
        self._changed: list[Tally] = []
        self._mismatches: dict[tuple[str, str, str | None], int] = {}
        self.totals: dict[str, int] = {}
        "What this proxy has done since its start, by name, without saying for whom."
        self._told: dict[str, int] = {}
        self.on_new: Callable[[], None] = lambda: None
        "Called for an instance's first sign of life: who may kill it should know its name soon."

    def room(self, token_id: str, agent: AgentRef, instance: str, now: datetime) -> Refusal | None:
        """Why this token may not show one more instance now; None for one that it has shown, or when it may."""
        named = self._named.get(token_id)
        if named is None or len(named) < INSTANCES_PER_TOKEN or (agent, instance) in named:
            return None
        self._forget_quiet(named, now)
        if len(named) < INSTANCES_PER_TOKEN:
            return None
        return Refusal(
            "too_many_instances",
            f"This token has shown {len(named)} instances in the last"
            f" {KEPT_FOR.seconds // 60} minutes, which is as many as it may: give instances that go"
            " on the same name, or tokens of their own.",
            str(agent),
        )

    def seen(self, token_id: str, agent: AgentRef, instance: str, now: datetime) -> Tally:
        """The instance's tally, made when it is new, with its last sign of life. Ask for `room` first."""
        tally = self._tallies.get((agent, instance))
        if tally is None:
            if len(self._tallies) >= self._sweep_at:
                self._sweep(now)
            tally = self._tallies[agent, instance] = Tally(agent, instance, now, now)
            self.on_new()
        self._named.setdefault(token_id, {})[agent, instance] = tally
        tally.last_seen_at = now
        self.touch(tally)
        return tally

    def refused(self, token_id: str, agent: AgentRef, instance: str, now: datetime) -> None:
        """Count a refusal; that of an instance without room is nobody's."""
        if self.room(token_id, agent, instance, now) is None:
            self.seen(token_id, agent, instance, now).refused += 1

    def touch(self, tally: Tally) -> None:
        """Have the tally told with the next report."""
        if not tally.changed:
            tally.changed = True
            self._changed.append(tally)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a total: `requests`, `refused.CODE`, `limit.NAME`, `leases_lost`, `leases_overrun`, `stale_ms`."""
        self.totals[name] = self.totals.get(name, 0) + by

    def take_totals(self) -> dict[str, int]:
        """All totals when any has changed since the last call, else nothing."""
        if self.totals == self._told:
            return {}
        self._told = dict(self.totals)
        return dict(self.totals)

    def mismatch(self, source: str, kind: str, agent: str | None) -> None:
        """Count credentials that did not fit."""
        key = (source_of(source), kind, agent)
        if key not in self._mismatches and len(self._mismatches) >= MISMATCHES:
            key = (OTHERS, kind, None)
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

    def _forget_quiet(self, named: dict[_Name, Tally], now: datetime) -> None:
        for name, tally in tuple(named.items()):
            if _is_quiet(tally, now):
                del named[name]
                self._tallies.pop(name, None)

    def _sweep(self, now: datetime) -> None:
        # Tokens come and go, each `haltwire run` has one of its own.
        for token_id, named in tuple(self._named.items()):
            self._forget_quiet(named, now)
            if not named:
                del self._named[token_id]
        self._sweep_at = max(SWEPT_BEYOND, 2 * len(self._tallies))


def _is_quiet(tally: Tally, now: datetime) -> bool:
    # What is still to be told is not forgotten.
    return not tally.connections and not tally.changed and now - tally.last_seen_at > KEPT_FOR
