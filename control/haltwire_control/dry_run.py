"""What a kill would do, as a receipt of nothing: nobody is told, nothing is kept."""

from __future__ import annotations

from collections.abc import Iterable

from haltwire.wire.orders import Kill
from haltwire.wire.receipts import DRY_RUN, InstanceState, Matched, Receipt, totals_of

from haltwire_control.ledger import Instance
from haltwire_control.receipts import Known


def rehearsal_of(
    demanded: Kill,
    known: Known,
    *,
    revision: int,
    proxies: int,
    already: Iterable[Kill],
    escapable: bool,
) -> Receipt:
    """The receipt of an order that was not given.

    `demanded` is the order as it would be, `proxies` how many would be asked, `already` the orders in
    force that stop some of it. Nothing is confirmed and nothing is durable.
    """
    instances = tuple(map(_instance, known.instances))
    return Receipt(
        ok=True,
        kill_id=None,
        selector=demanded.selector,
        mode=demanded.mode,
        reason=demanded.reason,
        actor=demanded.actor,
        requested_at=demanded.created_at,
        revision=revision,
        durable=False,
        matched=Matched(len(known.agents), len(instances), proxies),
        confirmed=False,
        unconfirmed_because=DRY_RUN,
        halted_at=None,
        halted_in_ms=None,
        still_killed_by=tuple(kill.kill_id for kill in already),
        escapable=escapable,
        proxies=(),
        instances=instances,
        totals=totals_of(instance.metadata for instance in instances),
        did_you_mean=known.did_you_mean if not known.agents else (),
        grace_s=demanded.grace_s,
        expires_at=demanded.expires_at,
        hold_until=demanded.hold_until,
        dry_run=True,
    )


def _instance(known: Instance) -> InstanceState:
    return InstanceState(
        agent_uri=str(known.agent),
        instance=known.instance,
        seen_at_proxy=known.seen_at_proxy,
        metadata=known.metadata,
        metadata_at=known.metadata_at,
        connections_live=known.total.connections,
    )
