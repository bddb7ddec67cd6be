"""A receipt that an earlier control server left unfinished, completed with what its silent proxies came to. Pure.

What was proven then stays as it is: that process alone heard the reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from haltwire.wire.messages import CutInstance
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import HOLD
from haltwire.wire.receipts import (
    APPLIED,
    FENCED,
    PENDING,
    InstanceState,
    ProxyState,
    Receipt,
    SinceMetadata,
    unconfirmed_because,
)

from haltwire_control.receipts import Evidence, state_in

UNFINISHED = (PENDING, FENCED)
"States that a later word of the proxy, or its end, replaces."


def completed(before: Receipt, evidence: Iterable[Evidence]) -> Receipt:
    """The receipt of a cut or hold as of now; `evidence` is of this process, about the same proxies."""
    found = {item.state.proxy_id: item for item in evidence}
    news = [
        found[old.proxy_id]
        for old in before.proxies
        if old.proxy_id in found and _is_news(old, found[old.proxy_id].state)
    ]
    by_name = {item.state.proxy_id: state_in(item, before.matched.agents) for item in news}
    proxies = tuple(by_name.get(old.proxy_id, old) for old in before.proxies)
    pending = any(proxy.state == PENDING for proxy in proxies)
    instances = _instances(before, news, pending)
    agents = max(before.matched.agents, len({i.agent_uri for i in instances}))
    because = unconfirmed_because(proxies, instances, agents)
    # Whatever has come in since the start is later than all that came in before it.
    halts = [item.halted_at for item in news if item.halted_at is not None]
    halted_at = before.halted_at or (None if pending else max(halts, default=None))
    return replace(
        before,
        matched=replace(before.matched, agents=agents, instances=len(instances)),
        confirmed=because is None,
        unconfirmed_because=because,
        halted_at=halted_at,
        proxies=proxies,
        instances=instances,
    )


def _is_news(old: ProxyState, new: ProxyState) -> bool:
    if old.state == FENCED:
        return new.state not in UNFINISHED
    return old.state == PENDING and new.state != PENDING


def _instances(before: Receipt, news: list[Evidence], pending: bool) -> tuple[InstanceState, ...]:
    rows = {(AgentRef.parse(i.agent_uri), i.instance): i for i in before.instances}
    for item in news:
        for cut in item.report.instances if item.report else ():
            name = cut.agent, cut.instance
            row = rows.get(name) or InstanceState(str(cut.agent), cut.instance)
            rows[name] = _joined(row, cut, item.clock_offset, before.mode)
    unread = any(item.state.state in (APPLIED, FENCED) and item.report is None for item in news)
    return tuple(_finished(row, pending, unread) for _, row in sorted(rows.items()))


def _joined(row: InstanceState, cut: CutInstance, offset: timedelta, mode: str) -> InstanceState:
    """What an instance has lost, with what it lost at one more proxy."""
    last_bytes = [row.last_byte_at, cut.last_byte_at and cut.last_byte_at + offset]
    held = mode == HOLD
    return replace(
        row,
        seen_at_proxy=row.seen_at_proxy or cut.seen_at + offset,
        connections_cut=(row.connections_cut or 0) + cut.connections_cut,
        connections_held=(row.connections_held or 0) + cut.connections_held if held else None,
        last_byte_at=max((at for at in last_bytes if at), default=None),
        # How much was completed since the metadata was for the earlier process to add up.
        since_metadata=SinceMetadata(None, None),
        in_flight=(
            *row.in_flight,
            *(replace(one, started_at=one.started_at + offset) for one in cut.in_flight),
        ),
    )


def _finished(row: InstanceState, pending: bool, unread: bool) -> InstanceState:
    if unread:
        row = replace(row, since_metadata=SinceMetadata(None, None), last_byte_at=None)
    if not pending and row.seen_at_proxy is not None:
        row = replace(row, stopped_by="proxy")
    return row
