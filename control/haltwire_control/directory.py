"""Agents as the API lists them: pure, from the ledger's instances and the orders in force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from haltwire.wire.codec import encode
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill, deciding_kill

from haltwire_control.health import (
    HEALTH_OF,
    HEALTHS,
    HELD,
    KILLED,
    STATUSES,
    covers_agent,
    is_live,
    status_of,
    status_under,
    worst,
)
from haltwire_control.ledger import Instance


def agent_document(
    agent: AgentRef, instances: Iterable[Instance], kills: Iterable[Kill], now: datetime
) -> dict[str, Any]:
    """One agent in a list."""
    instances = tuple(instances)
    kills = tuple(kills)
    live = [i for i in instances if is_live(i.signs, now)]
    status = status_under(covers_agent(kills, agent)) or worst(
        status_of(i.signs, now) for i in live or instances
    )
    stopped = Counter(status_under(deciding_kill(kills, agent, i.instance)) for i in live)
    signs = [i.signs.last_at for i in instances]
    told = [i for i in instances if i.metadata_at is not None]
    latest = max(told, key=lambda i: (i.metadata_at is not None, i.metadata_at), default=None)
    return {
        "agent_uri": str(agent),
        "address_id": agent.label,
        "status": status,
        "health_status": HEALTH_OF[status],
        "instances": len(live),
        "instances_killed": stopped[KILLED],
        "instances_held": stopped[HELD],
        "last_seen_at": encode(max((t for t in signs if t), default=None)),
        "metadata": latest.metadata if latest else None,
        "requests": sum(i.total.requests for i in instances),
    }


def instance_document(instance: Instance, kills: Iterable[Kill], now: datetime) -> dict[str, Any]:
    """One instance of an agent that is shown alone."""
    kill = deciding_kill(kills, instance.agent, instance.instance)
    under = status_under(kill)
    status = under or status_of(instance.signs, now)
    total = instance.total
    return {
        "instance": instance.instance,
        "status": status,
        "health_status": HEALTH_OF[status],
        "live": is_live(instance.signs, now),
        "killed_by": kill.kill_id if kill and under == KILLED else None,
        "held_by": kill.kill_id if kill and under == HELD else None,
        "declared_status": instance.declared_status,
        "first_seen_at": encode(instance.first_seen_at),
        "last_seen_at": encode(instance.signs.last_at),
        "last_heartbeat_at": encode(instance.heartbeat_at),
        "interval_s": instance.interval_s,
        "seen_at_proxy": encode(instance.seen_at_proxy),
        "finished_at": encode(instance.finished_at),
        "metadata": instance.metadata,
        "metadata_at": encode(instance.metadata_at),
        "metrics": instance.metrics,
        "connections": total.connections,
        "requests": total.requests,
        "refused": total.refused,
        "bytes_up": total.bytes_up,
        "bytes_down": total.bytes_down,
    }


def summary_of(agents: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many agents are how, in both vocabularies."""
    agents = tuple(agents)
    statuses = Counter(agent["status"] for agent in agents)
    healths = Counter(agent["health_status"] for agent in agents)
    return {
        "total": len(agents),
        **{status: statuses[status] for status in STATUSES},
        **{health: healths[health] for health in HEALTHS},
    }
