"""How an inspected connection gets an upstream: judged, dialled, judged again, and begun anew after a hold."""

from __future__ import annotations

import asyncio

from haltwire.wire.refusals import Refusal

from haltwire_proxy.connections import Connection
from haltwire_proxy.destinations import Dialer
from haltwire_proxy.enforcer import Enforcer, HeldUpError, failed
from haltwire_proxy.transport import HIGH_WATER, GatedReader, GatedWriter, StreamProtocol


async def open_upstream(
    enforcer: Enforcer, dialer: Dialer, owned: Connection, address: tuple[str, int] | None
) -> tuple[GatedReader, GatedWriter] | Refusal:
    """An upstream, or why there is none. It waits while the connection is held.

    The gate is asked before the dial, since bytes that are neither TLS nor HTTP come here unjudged,
    and again once the dial is done.
    """
    if address is None:
        return failed()
    host, port = address[:2]
    loop = asyncio.get_running_loop()
    while True:
        refusal = await enforcer.admission(owned)
        if refusal is not None:
            return refusal
        reader = GatedReader(limit=HIGH_WATER, loop=loop)
        protocol = StreamProtocol(reader, loop=loop)
        is_connect = owned.kind != "plain"
        dialling = dialer.dial(host, port, owned.identity.agent, protocol, is_connect)
        try:
            dialled = await enforcer.undisturbed(owned, dialling)
        except HeldUpError:
            continue
        if isinstance(dialled, Refusal):
            return dialled
        decision = failed() if owned.severed else enforcer.decide(owned.identity)
        if decision is None:
            return reader, GatedWriter(dialled, protocol, reader, enforcer, owned, upward=True)
        dialled.abort()
        if isinstance(decision, Refusal):
            return decision
