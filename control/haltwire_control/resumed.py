"""The receipt of a resume, or of an expiry: what was lifted, who lets it pass, and how the agents are since.

Lifting an order permits; it restarts nothing. So an instance is `running` only when there has been a
sign of it since, and what it does is never concluded from its having been let go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from haltwire.wire.messages import CutInstance, Report
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill
from haltwire.wire.receipts import (
    APPLIED,
    AWAY,
    NO_PROXY,
    PENDING,
    PROXY_PENDING,
    RUNNING,
    WAITING,
    InstanceState,
    Matched,
    ProxyState,
    Receipt,
    totals_of,
)

from haltwire_control.health import CRASHED, STALE, Signs, is_live, status_of
from haltwire_control.ledger import Instance
from haltwire_control.receipts import Evidence, Release, Request

type Name = tuple[AgentRef, str]


@dataclass(frozen=True, slots=True)
class Freed:
    """An instance that the resume is about, and how it is now."""

    instance: Instance
    state: str


def was_stopped(release: Release, instance: Instance, kills: Iterable[Kill]) -> bool:
    """Whether one of these lifted orders stopped the instance while it lived."""
    if instance.first_seen_at > release.since:
        return False
    return any(
        kill.matches(instance.agent, instance.instance) and _lived(instance.signs, kill.created_at)
        for kill in kills
    )


def state_after(signs: Signs, since: datetime, now: datetime, moved: bool, stopped: bool) -> str:
    """How an instance is after a resume: `running`, `waiting` or `gone`.

    `moved`: bytes of it have gone through a proxy since. `stopped`: another order stops it still, so
    no sign of it is one of going on.
    """
    if signs.finished_at is not None:
        return AWAY
    traffic = signs.traffic_at is not None and signs.traffic_at > since
    if (moved or traffic) and not stopped:
        return RUNNING
    if not is_live(signs, now):
        return AWAY
    if signs.heartbeat_at is None:
        return WAITING
    if status_of(signs, now) in (STALE, CRASHED):
        return AWAY
    return RUNNING if signs.heartbeat_at > since and not stopped else WAITING


def resume_receipt_of(
    request: Request,
    evidence: Iterable[Evidence],
    freed: Iterable[Freed],
    agents: frozenset[AgentRef],
    did_you_mean: tuple[str, ...] = (),
) -> Receipt:
    """The receipt of a resume as of now."""
    evidence = tuple(evidence)
    proxies = tuple(item.state for item in evidence)
    states = {proxy.state for proxy in proxies}
    because = PROXY_PENDING if PENDING in states else None if APPLIED in states else NO_PROXY
    counts = _merged(evidence)
    instances = tuple(
        _instance(one, counts.get((one.instance.agent, one.instance.instance))) for one in freed
    )
    agents |= {AgentRef.parse(i.agent_uri) for i in instances}
    return Receipt(
        ok=True,
        kill_id=request.kill_id,
        selector=request.selector,
        mode=request.mode,
        reason=request.reason,
        actor=request.actor,
        requested_at=request.requested_at,
        revision=request.revision,
        durable=request.durable,
        matched=Matched(len(agents), len(instances), len(proxies)),
        confirmed=because is None,
        unconfirmed_because=because,
        halted_at=None,
        halted_in_ms=None,
        still_killed_by=request.still_killed_by,
        escapable=False,
        proxies=proxies,
        instances=instances,
        totals=totals_of(instance.metadata for instance in instances),
        lifted=request.lifted,
        did_you_mean=did_you_mean if not agents else (),
    )


def let_go(released: Iterable[Report]) -> Mapping[Name, CutInstance]:
    """What one proxy has let go, by instance. Several holds on one instance were about the same connections."""
    found: dict[Name, CutInstance] = {}
    for report in released:
        for one in report.instances:
            known = found.setdefault((one.agent, one.instance), one)
            found[one.agent, one.instance] = replace(
                one,
                connections_live=max(known.connections_live, one.connections_live),
                connections_held=max(known.connections_held, one.connections_held),
                lost_while_held=max(known.lost_while_held, one.lost_while_held),
            )
    return found


def released_state(
    proxy_id: str, latency_ms: float | None, released: Iterable[Report]
) -> ProxyState:
    """A proxy that lets pass what was lifted."""
    instances = let_go(released).values()
    if not instances:
        return ProxyState(proxy_id, APPLIED, latency_ms)
    return ProxyState(
        proxy_id,
        APPLIED,
        latency_ms,
        connections_live=sum(one.connections_live for one in instances),
        connections_held=sum(one.connections_held for one in instances),
    )


def _merged(evidence: Iterable[Evidence]) -> dict[Name, tuple[int, int, int]]:
    """Over all proxies: connections that go on, that are held by another order, that were lost."""
    found: dict[Name, tuple[int, int, int]] = {}
    for item in evidence:
        for name, one in let_go(item.released).items():
            live, held, lost = found.get(name, (0, 0, 0))
            found[name] = (
                live + one.connections_live,
                held + one.connections_held,
                lost + one.lost_while_held,
            )
    return found


def _instance(freed: Freed, counts: tuple[int, int, int] | None) -> InstanceState:
    instance = freed.instance
    live, held, lost = counts or (None, None, None)
    return InstanceState(
        agent_uri=str(instance.agent),
        instance=instance.instance,
        seen_at_proxy=instance.seen_at_proxy,
        metadata=instance.metadata,
        metadata_at=instance.metadata_at,
        connections_live=live,
        connections_held=held,
        lost_while_held=lost,
        state=freed.state,
    )


def _lived(signs: Signs, at: datetime) -> bool:
    if signs.finished_at is not None and signs.finished_at >= at:
        signs = replace(signs, finished_at=None)
    return is_live(signs, at)
