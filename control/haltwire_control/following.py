"""Follows one proxy from its hello to the end of its link. It is stored before it learns anything."""

from __future__ import annotations

import logging
import os
from functools import partial

from haltwire.wire.messages import Ack, Bye, Hello, Message, Renew, Report, Usage
from haltwire.wire.selectors import Selector

from haltwire_control import access
from haltwire_control.authorities import is_certificate
from haltwire_control.hub import Peer
from haltwire_control.ledger import Instance
from haltwire_control.link import Link
from haltwire_control.service import Service, now
from haltwire_control.state import SYSTEM, Actor, NewEvent, ProxyRecord, State
from haltwire_control.store import StoreError

log = logging.getLogger(__name__)
SILENT_LEASES = 5
SILENT_AT_LEAST_S = 10.0
"A proxy renews four times a lease: after 20 missed renewals its socket is a dead one."


class Following:
    """The use case of a proxy."""

    def __init__(self, service: Service, lease_ms: int) -> None:
        self._service = service
        self._patience_s = max(SILENT_AT_LEAST_S, SILENT_LEASES * lease_ms / 1000)

    async def serve(self, link: Link, hello: Hello, actor: Actor) -> None:
        """Follow a proxy until its link ends."""
        service = self._service
        peer = await self._join(hello, actor)
        if peer is None:
            return
        key = actor.actor_id or actor.name
        if peer.key not in (None, key):
            log.error(
                "%s is not let in: it says that it is proxy %s", actor.name, peer.record.proxy_id
            )
            return
        if actor.actor_id is not None and not _is_live(actor.actor_id, service.state):
            return  # revoked since it was shown: who comes later is refused at the door
        peer.key = key
        if hello.authority is not None and is_certificate(hello.authority):
            peer.authority = hello.authority
        if hello.epoch == service.state.epoch and hello.revision > service.state.revision:
            await self._begin_epoch(hello)
        service.hub.attach(peer, hello, link, service.state)
        how = "link lost"
        try:
            while (message := await link.receive(self._patience_s)) is not None:
                if isinstance(message, Bye):
                    how = "bye"
                    service.hub.end(peer)
                    break
                self._take(peer, message)
        except TimeoutError:
            how = "silent"
        finally:
            if service.hub.detach(peer, link):
                service.sweep()
                service.spawn(
                    service.store.commit(
                        partial(
                            access.lose_proxy, proxy_id=peer.record.proxy_id, how=how, now=now()
                        )
                    ),
                    "note a lost proxy",
                )

    async def _join(self, hello: Hello, actor: Actor) -> Peer | None:
        """The peer, stored; None when it cannot be stored and so must not pass anything."""
        service = self._service
        known = service.hub.find(hello)
        if known is not None and not known.gone:
            # It counts already, so it need not wait for a store that may be failing.
            service.spawn(self._note(known.record, actor), "note a proxy")
            return known
        record = ProxyRecord(
            hello.proxy_id,
            hello.host,
            hello.boot_id,
            hello.pid,
            hello.pid_namespace,
            hello.started_ticks,
            hello.version,
            now(),
            on_stale=hello.on_stale,
            agent_residual_max=hello.agent_residual_max,
            key_id=actor.actor_id,
        )
        try:
            # The worker before this one often had the same name.
            for ended in service.hub.ended():
                await service.end(ended)
            await self._note(record, actor)
        except StoreError as error:
            log.error("proxy %s is not let in: %s", hello.proxy_id, error)
            return None
        return service.hub.find(hello)

    async def _note(self, record: ProxyRecord, actor: Actor) -> None:
        step = partial(access.note_proxy, proxy=record, now=now(), actor=actor)
        await self._service.store.commit(step)

    async def _begin_epoch(self, hello: Hello) -> None:
        """The store lacks what this proxy has applied: nobody may take our revisions for the lost ones."""
        service = self._service
        known = service.in_force.by_id.keys()
        log.error(
            "proxy %s has applied revision %d, the store has %d; orders that the store lost: %s",
            hello.proxy_id,
            hello.revision,
            service.state.revision,
            ", ".join(sorted(set(hello.kill_ids) - known)) or "none",
        )
        await service.store.commit(partial(access.renew_epoch, epoch=os.urandom(8).hex()))
        service.hub.drop_links("a new epoch")

    def _take(self, peer: Peer, message: Message) -> None:
        service = self._service
        hub, state = service.hub, service.state
        peer.heard_at = now()
        if isinstance(message, Renew):
            hub.renew(peer, message, state)
        elif isinstance(message, Ack):
            hub.acknowledge(peer, message, state)
        elif isinstance(message, Report):
            hub.report(peer, message)
        elif isinstance(message, Usage):
            self._use(peer, message)
        else:
            raise ValueError(f"a proxy does not send {type(message).__name__.lower()}")

    def _use(self, peer: Peer, usage: Usage) -> None:
        service, moment = self._service, now()
        peer.connections = usage.connections
        service.metrics.totals.use(peer.usage_key, usage.totals)
        fresh = service.ledger.use(peer.usage_key, usage.instances, peer.clock_offset, moment)
        events = [seen_event(instance) for instance in fresh]
        for m in usage.mismatches:
            event = service.mismatches.add(m.source, m.kind, m.agent, m.count, moment)
            if event is not None:
                events.append(event)
        service.note(*events)


def _is_live(key_id: str, state: State) -> bool:
    return any(key.key_id == key_id for key in state.keys.values())


def seen_event(instance: Instance) -> NewEvent:
    """The event of an instance that was not known before."""
    details = {
        "instance": instance.instance,
        "by": "proxy" if instance.seen_at_proxy else "heartbeat",
    }
    try:
        selector = Selector.of(instance.agent, instance.instance)
    except ValueError:
        selector = Selector.of(instance.agent)  # a proxy of another version may allow other names
    return NewEvent("instance.seen", now(), SYSTEM, selector, details=details)
