"""Who is there: the agents and instances that an order is about, as the ledger and the tokens know them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from haltwire.wire.names import AgentRef
from haltwire.wire.receipts import WAITING
from haltwire.wire.selectors import Selector

from haltwire_control.health import is_live
from haltwire_control.in_force import KillIndex
from haltwire_control.ledger import Instance
from haltwire_control.receipts import Known, similar
from haltwire_control.resumed import Freed, state_after, was_stopped
from haltwire_control.service import Service, now
from haltwire_control.watch import Watch

USAGE_WITHIN_S = 0.5
"After this, what a connected proxy had counted before an ack has come in: it tells every quarter second."


def known(service: Service, selector: Selector) -> Known:
    """Who is there to be stopped."""
    moment, ledger = now(), service.ledger
    live, agents = [], set()
    for agent in ledger.matching(selector):
        for instance in ledger.instances(agent):
            if selector.matches_instance(instance.instance):
                agents.add(agent)
                if is_live(instance.signs, moment):
                    live.append(instance)
    found = _named(service, selector, agents)
    return Known(tuple(live), found.agents, found.did_you_mean)


def named(service: Service, selector: Selector) -> Known:
    """The agents that the selector means, without their instances."""
    ledger = service.ledger
    seen = (
        agent
        for agent in ledger.matching(selector)
        if any(selector.matches_instance(i.instance) for i in ledger.instances(agent))
    )
    return _named(service, selector, seen)


def _named(service: Service, selector: Selector, seen: Iterable[AgentRef]) -> Known:
    # Those seen, and those of tokens, which are spelt right, too.
    tokens = [token.selector for token in service.state.tokens.values()]
    agents = {*seen, *(t.agent for t in tokens if t.agent and selector.covers(t))}
    if agents:
        return Known((), frozenset(agents))
    return Known((), frozenset(), similar(selector, known_agents(service)))


def freed(service: Service, watch: Watch) -> list[Freed]:
    """The instances that a resume is about, and how they are by now."""
    release, selector, moment = watch.request.release, watch.request.selector, now()
    if release is None:
        return []
    index = KillIndex(release.kills)
    stopped = [
        instance
        for agent in service.ledger.matching(selector)
        if (kills := index.about(agent))
        for instance in service.ledger.instances(agent)
        if selector.matches_instance(instance.instance) and was_stopped(release, instance, kills)
    ]
    is_counted = not watch.is_pending and time.monotonic() > watch.proven_at + USAGE_WITHIN_S
    if watch.baseline is None and is_counted:
        watch.baseline = {_name(one): _bytes(one) for one in stopped}
    for one in stopped:
        orders = [
            kill
            for kill in service.in_force.about(one.agent)
            if kill.matches(one.agent, one.instance)
        ]
        if any(kill.revision > watch.needed_revision for kill in orders):
            # Stopped anew: what is seen of it from now on is no sign of going on.
            watch.states.setdefault(_name(one), WAITING)
        else:
            watch.states[_name(one)] = state_after(
                one.signs,
                release.since,
                moment,
                moved=_has_moved(one, watch),
                stopped=bool(orders),
            )
    return [Freed(one, watch.states[_name(one)]) for one in stopped]


def known_agents(service: Service) -> tuple[AgentRef, ...]:
    """Agents that have been seen or that a live token names."""
    tokens = [token.selector.agent for token in service.state.tokens.values()]
    return tuple({*service.ledger.agents, *(agent for agent in tokens if agent)})


def _has_moved(instance: Instance, watch: Watch) -> bool:
    """Whether bytes have gone since the resume; what was counted late may be from before."""
    before = (watch.baseline or {}).get(_name(instance))
    return before is not None and _bytes(instance) > before


def _name(instance: Instance) -> tuple[AgentRef, str]:
    return instance.agent, instance.instance


def _bytes(instance: Instance) -> int:
    total = instance.total
    return total.bytes_up + total.bytes_down
