"""The receipt of a kill or resume, put together from what proxies have proven and instances have said.

It never says more than it knows: without an ack a proxy is pending, without a reading a count is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from heapq import nlargest

from haltwire.wire.messages import CutInstance, Report
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import overlap
from haltwire.wire.receipts import (
    APPLIED,
    NO_PROXY,
    PENDING,
    PROXY_PENDING,
    InstanceState,
    Matched,
    ProxyState,
    Receipt,
    SinceMetadata,
    totals_of,
    unconfirmed_because,
)
from haltwire.wire.selectors import Selector

from haltwire_control.ledger import Instance

SIMILAR_COMPARED = 500
RESUME = "resume"
"The `mode` of a resume's receipt."


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one proxy has proven."""

    state: ProxyState
    applied_at: datetime | None = None
    report: Report | None = None
    clock_offset: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, and what became of it in the store."""

    kill_id: str | None
    selector: Selector
    mode: str
    reason: str | None
    actor: str
    requested_at: datetime
    revision: int
    durable: bool
    still_killed_by: tuple[str, ...] = ()
    escapable: bool = False
    lifted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """Who is known to be there."""

    instances: tuple[Instance, ...]
    "Live ones that the request matches."
    agents: frozenset[AgentRef]
    "Known ones that the request matches: seen, or named by a token."
    did_you_mean: tuple[str, ...] = ()


def receipt_of(request: Request, evidence: Iterable[Evidence], known: Known) -> Receipt:
    """The receipt as of now."""
    evidence = tuple(evidence)
    proxies = tuple(item.state for item in evidence)
    is_kill = request.mode != RESUME
    unread = is_kill and any(e.state.state == APPLIED and e.report is None for e in evidence)
    instances = _instances(evidence, known.instances, unread)
    pending = any(proxy.state == PENDING for proxy in proxies)
    applied = [item for item in evidence if item.state.state == APPLIED]
    agents = known.agents | {AgentRef.parse(i.agent_uri) for i in instances}
    if is_kill:
        because = unconfirmed_because(proxies, instances, len(agents))
    else:
        because = PROXY_PENDING if pending else None if applied else NO_PROXY
    halted = bool(applied) and not pending and is_kill
    if pending or not is_kill:
        instances = tuple(replace(instance, stopped_by=None) for instance in instances)
    times = [item.applied_at for item in applied if item.applied_at]
    latencies = [p.latency_ms for p in proxies if p.state == APPLIED and p.latency_ms is not None]
    return Receipt(
        ok=request.durable or not is_kill,
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
        halted_at=max(times, default=None) if halted else None,
        halted_in_ms=max(latencies, default=None) if halted else None,
        still_killed_by=request.still_killed_by,
        escapable=request.escapable,
        proxies=proxies,
        instances=instances,
        totals=totals_of(instance.metadata for instance in instances),
        lifted=request.lifted,
        did_you_mean=known.did_you_mean if not agents else (),
    )


def is_escapable(selector: Selector, tokens: Iterable[Selector]) -> bool:
    """Whether some token lets its holder be inside the selector now and call itself something outside it next."""
    return any(overlap(token, selector) and not selector.covers(token) for token in tokens)


def similar(selector: Selector, agents: Iterable[AgentRef]) -> tuple[str, ...]:
    """Known agents that the selector may have meant."""
    # Comparing texts is slow, so only those are compared that share most segments.
    asked = set(selector.segments)
    near = nlargest(
        SIMILAR_COMPARED, agents, key=lambda agent: len(asked.intersection(agent.segments))
    )
    by_label = {agent.label: agent for agent in near}
    found = get_close_matches(".".join(selector.segments), by_label, n=3, cutoff=0.7)
    return tuple(str(by_label[label]) for label in found)


def _instances(
    evidence: tuple[Evidence, ...], known: Iterable[Instance], unread: bool
) -> tuple[InstanceState, ...]:
    ledger = {(i.agent, i.instance): i for i in known}
    cuts: dict[tuple[AgentRef, str], list[tuple[CutInstance, timedelta]]] = {}
    for item in evidence:
        for cut in item.report.instances if item.report else ():
            cuts.setdefault((cut.agent, cut.instance), []).append((cut, item.clock_offset))
    names = sorted({*ledger, *cuts})
    return tuple(_instance(name, ledger.get(name), cuts.get(name, []), unread) for name in names)


def _instance(
    name: tuple[AgentRef, str],
    known: Instance | None,
    cuts: list[tuple[CutInstance, timedelta]],
    unread: bool,
) -> InstanceState:
    seen = [cut.seen_at + offset for cut, offset in cuts]
    if known is not None and known.seen_at_proxy is not None:
        seen.append(known.seen_at_proxy)
    last_bytes = [cut.last_byte_at + offset for cut, offset in cuts if cut.last_byte_at]
    metadata_at = known.metadata_at if known else None
    return InstanceState(
        agent_uri=str(name[0]),
        instance=name[1],
        seen_at_proxy=max(seen, default=None),
        stopped_by="proxy" if seen else None,
        connections_cut=sum(cut.connections_cut for cut, _ in cuts) if cuts else None,
        last_byte_at=max(last_bytes, default=None),
        metadata=known.metadata if known else None,
        metadata_at=metadata_at,
        since_metadata=_since(metadata_at, cuts, unread),
        in_flight=tuple(
            replace(flight, started_at=flight.started_at + offset)
            for cut, offset in cuts
            for flight in cut.in_flight
        ),
    )


def _since(
    metadata_at: datetime | None, cuts: list[tuple[CutInstance, timedelta]], unread: bool
) -> SinceMetadata | None:
    if not cuts and not unread:
        return None  # no proxy has anything to say of it
    if unread or not all(cut.completed_known for cut, _ in cuts):
        return SinceMetadata(None, None)
    completed = sum(
        metadata_at is None or moment + offset > metadata_at
        for cut, offset in cuts
        for moment in cut.completed_at
    )
    uncertain = sum(flight.sent != "none" for cut, _ in cuts for flight in cut.in_flight)
    return SinceMetadata(completed, uncertain)
