"""The receipt of a kill, put together from what proxies have proven and instances have said.

It never says more than it knows: without an ack a proxy is pending, or fenced once it certainly has no
lease, and without a reading a count is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from heapq import nlargest

from haltwire.wire.messages import CutInstance, Report
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import DRAIN, HOLD, Kill, overlap
from haltwire.wire.receipts import (
    APPLIED,
    FENCED,
    PENDING,
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
    halted_at: datetime | None = None
    "From when on nothing that the order matches moved there any more."
    halted_in_ms: float | None = None
    released: tuple[Report, ...] = ()
    "After a resume: the last word on the holds that it lifted."
    agent_residual_max: int | None = None
    "Of a fenced one: bytes that its kernel may still send for one agent, at most."


@dataclass(frozen=True, slots=True)
class Release:
    """Whom a resume, or an expiry, is about."""

    since: datetime
    "When it had been committed: a sign of life from then on is one of an agent that goes on."
    kills: tuple[Kill, ...]
    "The orders that it lifted, or took something out of."
    holds: frozenset[str] = frozenset()
    "Ids of the holds among those that it lifted."


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
    grace_s: float | None = None
    expires_at: datetime | None = None
    hold_until: datetime | None = None
    release: Release | None = None
    "Of a resume."


@dataclass(frozen=True, slots=True)
class Known:
    """Who is known to be there."""

    instances: tuple[Instance, ...]
    "Live ones that the request matches."
    agents: frozenset[AgentRef]
    "Known ones that the request matches: seen, or named by a token."
    did_you_mean: tuple[str, ...] = ()


def receipt_of(request: Request, evidence: Iterable[Evidence], known: Known) -> Receipt:
    """The receipt of a kill as of now."""
    evidence = tuple(evidence)
    enforcing = [item for item in evidence if item.state.state in (APPLIED, FENCED)]
    unread = any(item.report is None for item in enforcing)
    pending = any(item.state.state == PENDING for item in evidence)
    instances = _instances(request.mode, evidence, known.instances, unread)
    if pending:
        instances = tuple(replace(instance, stopped_by=None) for instance in instances)
    elif any(item.state.state == FENCED for item in evidence):
        instances = tuple(map(_seen_in_part, instances))
    agents = known.agents | {AgentRef.parse(i.agent_uri) for i in instances}
    proxies = tuple(state_in(item, len(agents)) for item in evidence)
    because = unconfirmed_because(proxies, instances, len(agents))
    # Who has ended without a word may have passed something until then.
    halts = [(i.halted_at, i.halted_in_ms) for i in evidence if i.halted_at is not None]
    halted = bool(enforcing) and not pending and all(i.halted_at for i in enforcing)
    return Receipt(
        ok=request.durable,
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
        halted_at=max(at for at, _ in halts) if halted else None,
        halted_in_ms=max((ms for _, ms in halts if ms is not None), default=None)
        if halted
        else None,
        still_killed_by=request.still_killed_by,
        escapable=request.escapable,
        proxies=proxies,
        instances=instances,
        totals=totals_of(instance.metadata for instance in instances),
        did_you_mean=known.did_you_mean if not agents else (),
        grace_s=request.grace_s,
        expires_at=request.expires_at,
        hold_until=request.hold_until,
    )


def applied_state(
    mode: str,
    proxy_id: str,
    latency_ms: float | None,
    connections_cut: int | None,
    report: Report | None,
    ended: bool,
) -> ProxyState:
    """A proxy that enforces an order: `connections_cut` when it began, and its report since.

    `ended`: its reports have said that nothing is alive any more.
    """
    state = ProxyState(proxy_id, APPLIED, latency_ms, connections_cut)
    if mode not in (DRAIN, HOLD):
        return replace(state, residual_bytes_max=0)
    if report is None:
        return replace(state, connections_cut=None)
    state = replace(state, connections_cut=sum(i.connections_cut for i in report.instances))
    if mode == DRAIN:
        residual = 0 if ended else None
        return replace(state, connections_live=report.live, residual_bytes_max=residual)
    held = sum(i.connections_held for i in report.instances)
    return replace(state, connections_held=held, residual_bytes_max=report.residual_bytes_max)


def state_in(evidence: Evidence, agents: int) -> ProxyState:
    """A proxy's state in a receipt: what a fenced one may still send grows with the agents that are matched."""
    most = evidence.agent_residual_max
    if evidence.state.state != FENCED or most is None or agents == 0:
        return evidence.state
    return replace(evidence.state, residual_bytes_max=most * agents)


def _seen_in_part(instance: InstanceState) -> InstanceState:
    """What the other proxies know of an instance, when one is fenced: that there was more is not known, nor that there was none."""
    return replace(
        instance,
        connections_cut=instance.connections_cut or None,
        connections_live=instance.connections_live or None,
        connections_held=instance.connections_held or None,
        lost_while_held=instance.lost_while_held or None,
        last_byte_at=None,
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
    mode: str, evidence: tuple[Evidence, ...], known: Iterable[Instance], unread: bool
) -> tuple[InstanceState, ...]:
    ledger = {(i.agent, i.instance): i for i in known}
    cuts: dict[tuple[AgentRef, str], list[tuple[CutInstance, timedelta]]] = {}
    for item in evidence:
        for cut in item.report.instances if item.report else ():
            cuts.setdefault((cut.agent, cut.instance), []).append((cut, item.clock_offset))
    return tuple(
        _instance(mode, name, ledger.get(name), cuts.get(name, []), unread)
        for name in sorted({*ledger, *cuts})
    )


def _instance(
    mode: str,
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
    live, held, lost = _counts(mode, [cut for cut, _ in cuts])
    goes_on = mode == DRAIN and (unread or bool(live))
    return InstanceState(
        agent_uri=str(name[0]),
        instance=name[1],
        seen_at_proxy=max(seen, default=None),
        stopped_by="proxy" if seen and not goes_on else None,
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
        connections_live=live,
        connections_held=held,
        lost_while_held=lost,
    )


def _counts(mode: str, cuts: list[CutInstance]) -> tuple[int | None, int | None, int | None]:
    """Live, held and lost ones: None where the mode has none."""
    if not cuts:
        return None, None, None
    lost = sum(cut.lost_while_held for cut in cuts)
    if mode == DRAIN:
        return sum(cut.connections_live for cut in cuts), None, None
    if mode == HOLD:
        return None, sum(cut.connections_held for cut in cuts), lost
    return None, None, lost or None  # of a cut that was a hold before


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
