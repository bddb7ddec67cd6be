"""What has been seen of every instance: heartbeats, metadata, traffic. In memory, and a quarter second behind on disk.

Nothing that stops an agent depends on it, so no volume of it can delay a kill.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from haltwire.wire.messages import InstanceUsage
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import Selector

from haltwire_control.health import DEFAULT_INTERVAL_S, Signs, is_live

INSTANCES_PER_TOKEN = 1000
"""Live instances that one token's heartbeats may name: one not bound to an instance can invent any. By
token, so that whoever fills it up locks out no other token of the same agent."""
INSTANCES_PER_AGENT = 10_000
"Instances of one agent that are kept, the live ones aside: who ended longest ago is dropped beyond them."
INSTANCES_KEPT = 100_000
"The same for all agents together, since a token for many agents can invent agents too."
KEPT_FOR = timedelta(days=7)
"How long an instance without any sign stays in the ledger."


@dataclass(frozen=True, slots=True)
class Traffic:
    """Totals through one proxy process, or through all that have ended."""

    requests: int = 0
    refused: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.requests + other.requests,
            self.refused + other.refused,
            self.bytes_up + other.bytes_up,
            self.bytes_down + other.bytes_down,
            self.connections + other.connections,
        )

    def is_before(self, other: Traffic) -> bool:
        """Whether `other` may be what these totals have grown to."""
        return all(
            getattr(self, name) <= getattr(other, name)
            for name in ("requests", "refused", "bytes_up", "bytes_down")
        )


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat says."""

    status: str | None = None
    metadata: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] | None = None
    interval_s: float | None = None


@dataclass(slots=True)
class Instance:
    """All that is known of one instance. Values are replaced, never changed in place."""

    agent: AgentRef
    instance: str
    first_seen_at: datetime
    heartbeat_at: datetime | None = None
    interval_s: float = DEFAULT_INTERVAL_S
    declared_status: str | None = None
    finished_at: datetime | None = None
    metadata: Mapping[str, Any] | None = None
    metadata_at: datetime | None = None
    metrics: Mapping[str, float] | None = None
    seen_at_proxy: datetime | None = None
    past: Traffic = field(default_factory=Traffic)
    "Through proxies that have ended."
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    "By proxy process."

    @property
    def total(self) -> Traffic:
        """Through all proxies."""
        return sum(self.traffic.values(), self.past)

    @property
    def signs(self) -> Signs:
        """What its status depends on."""
        return Signs(
            self.heartbeat_at,
            self.interval_s,
            self.finished_at,
            self.seen_at_proxy,
            self.total.connections,
        )


class TooManyInstancesError(Exception):
    """A heartbeat names one more instance than its token may; the API answers 429."""


_Name = tuple[AgentRef, str]


class Ledger:
    """Every instance by agent. What changed is kept apart until the file takes it."""

    def __init__(self, instances: Iterable[Instance] = ()) -> None:
        self._agents: dict[AgentRef, dict[str, Instance]] = {}
        self._changed: dict[_Name, Instance] = {}
        self._dropped: set[_Name] = set()
        "What the file still has and is to forget."
        self._named: dict[str, dict[_Name, Instance]] = {}
        "Whom the heartbeats of each token have named, by its id, since this process started."
        self._count = 0
        for instance in instances:
            self._agents.setdefault(instance.agent, {})[instance.instance] = instance
            self._count += 1

    @property
    def agents(self) -> tuple[AgentRef, ...]:
        """Every agent that has been seen."""
        return tuple(self._agents)

    def matching(self, selector: Selector) -> list[AgentRef]:
        """The agents that the selector matches, by name."""
        if selector.agent is not None:
            return [selector.agent] if selector.agent in self._agents else []
        return sorted(filter(selector.matches_agent, self._agents))

    def instances(self, agent: AgentRef) -> tuple[Instance, ...]:
        """The agent's instances, oldest first."""
        found = self._agents.get(agent, {}).values()
        return tuple(sorted(found, key=lambda i: (i.first_seen_at, i.instance)))

    def __iter__(self) -> Iterator[Instance]:
        for instances in self._agents.values():
            yield from instances.values()

    def beat(
        self,
        agent: AgentRef,
        instance: str,
        beat: Beat,
        now: datetime,
        token_id: str | None = None,
    ) -> tuple[Instance, bool]:
        """Note a heartbeat; the instance, and whether it was not known before. None: a key's, which is trusted."""
        if token_id is not None:
            self._make_room(token_id, (agent, instance), now)
        found, is_new = self._get(agent, instance, now)
        if token_id is not None:
            self._named[token_id][agent, instance] = found
        found.heartbeat_at = now
        found.declared_status = beat.status
        found.finished_at = now if beat.status == "finished" else None
        # One that says nothing of its interval keeps the one it has declared.
        found.interval_s = beat.interval_s or found.interval_s
        if beat.metadata is not None:
            found.metadata, found.metadata_at = beat.metadata, now
        if beat.metrics is not None:
            found.metrics = beat.metrics
        return found, is_new

    def use(
        self, proxy: str, usages: Iterable[InstanceUsage], offset: timedelta, now: datetime
    ) -> list[Instance]:
        """Note a proxy's totals; the instances that were not known before."""
        fresh = []
        for usage in usages:
            found, is_new = self._get(usage.agent, usage.instance, now)
            if is_new:
                found.first_seen_at = min(now, usage.first_seen_at + offset)
                fresh.append(found)
            # Its clock may be ahead of ours; nothing was seen in the future.
            seen = min(now, usage.last_seen_at + offset)
            if found.finished_at is not None and seen > found.finished_at and usage.connections:
                found.finished_at = None  # it said goodbye and goes on
            found.seen_at_proxy = max(seen, found.seen_at_proxy or seen)
            totals = Traffic(
                usage.requests, usage.refused, usage.bytes_up, usage.bytes_down, usage.connections
            )
            before = found.traffic.get(proxy)
            if before is not None and not before.is_before(totals):
                # The proxy had forgotten a quiet instance and counts anew.
                found.past += replace(before, connections=0)
            found.traffic = {**found.traffic, proxy: totals}
        return fresh

    def end_proxies(self, alive: Iterable[str]) -> None:
        """Fold the totals of proxies that have ended; their connections are no more."""
        keep = set(alive)
        for instance in self:
            ended = [t for proxy, t in instance.traffic.items() if proxy not in keep]
            if ended:
                past = sum(ended, instance.past)
                instance.past = replace(past, connections=0)
                instance.traffic = {p: t for p, t in instance.traffic.items() if p in keep}
                self._changed[instance.agent, instance.instance] = instance

    def take_changed(self) -> list[Instance]:
        """Copies of what changed since the last call."""
        changed = [replace(instance) for instance in self._changed.values()]
        self._changed.clear()
        return changed

    def take_dropped(self) -> set[tuple[AgentRef, str]]:
        """The instances dropped since the last call, and not known again."""
        dropped, self._dropped = self._dropped, set()
        return dropped

    def put_back(self, instances: Iterable[Instance], dropped: Iterable[_Name] = ()) -> None:
        """The file did not take these; what has changed since then is newer."""
        self._dropped.update(
            name for name in dropped if name[1] not in self._agents.get(name[0], {})
        )
        for old in instances:
            found = self._agents.get(old.agent, {}).get(old.instance)
            if found is not None:
                self._changed[old.agent, old.instance] = found

    def forget(self, now: datetime) -> None:
        """Drop what has shown no sign for a long time."""
        for agent, instances in list(self._agents.items()):
            for name, instance in list(instances.items()):
                if not instance.total.connections and now - _last_of(instance) > KEPT_FOR:
                    self._drop(agent, name)
        for token_id, named in list(self._named.items()):
            _forget_ended(named, now)
            if not named:
                del self._named[token_id]

    def _get(self, agent: AgentRef, instance: str, now: datetime) -> tuple[Instance, bool]:
        instances = self._agents.get(agent, {})
        found = instances.get(instance)
        is_new = found is None
        if found is None:
            if len(instances) >= INSTANCES_PER_AGENT:
                self._drop_ended(instances.values(), INSTANCES_PER_AGENT // 10, now)
            if self._count >= INSTANCES_KEPT:
                self._drop_ended(self, INSTANCES_KEPT // 10, now)
            found = Instance(agent, instance, now)
            self._agents.setdefault(agent, {})[instance] = found
            self._count += 1
            self._dropped.discard((agent, instance))
        self._changed[agent, instance] = found
        return found, is_new

    def _make_room(self, token_id: str, name: _Name, now: datetime) -> None:
        named = self._named.setdefault(token_id, {})
        if name in named or len(named) < INSTANCES_PER_TOKEN:
            return
        _forget_ended(named, now)
        if len(named) >= INSTANCES_PER_TOKEN:
            raise TooManyInstancesError(
                f"this token has {len(named)} live instances, which is as many as it may"
            )

    def _drop_ended(self, among: Iterable[Instance], most: int, now: datetime) -> None:
        # Many at once: all of them have to be looked at for one.
        ended = sorted((one for one in among if not is_live(one.signs, now)), key=_last_of)
        for one in ended[: max(1, most)]:
            self._drop(one.agent, one.instance)

    def _drop(self, agent: AgentRef, instance: str) -> None:
        del self._agents[agent][instance]
        if not self._agents[agent]:
            del self._agents[agent]
        self._count -= 1
        self._changed.pop((agent, instance), None)
        self._dropped.add((agent, instance))


def _last_of(instance: Instance) -> datetime:
    return instance.signs.last_at or instance.first_seen_at


def _forget_ended(named: dict[_Name, Instance], now: datetime) -> None:
    for name, instance in list(named.items()):
        if not is_live(instance.signs, now):
            del named[name]
