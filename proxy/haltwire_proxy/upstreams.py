"""How an inspected connection gets an upstream: judged, dialled, judged again, begun anew after a hold, and let go of."""

from __future__ import annotations

import asyncio
import contextlib

from haltwire.wire.refusals import Refusal
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import server

from haltwire_proxy import overload, sever
from haltwire_proxy.connections import Connection
from haltwire_proxy.destinations import Dialer
from haltwire_proxy.enforcer import Enforcer, HeldUpError, failed
from haltwire_proxy.streams import Http, hold_up
from haltwire_proxy.transport import (
    HIGH_WATER,
    GatedReader,
    GatedWriter,
    StreamProtocol,
    raw_socket,
)


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
        with contextlib.ExitStack() as unused:
            unused.callback(dialled.abort)
            decision = failed() if owned.severed else enforcer.decide(owned.identity)
            decision = decision or overload.upstream(enforcer, raw_socket(dialled).fileno())
            if decision is None:
                writer = GatedWriter(dialled, protocol, reader, enforcer, owned, upward=True)
                unused.pop_all()
                return reader, writer
        if isinstance(decision, Refusal):
            return decision


def drop_unused(handler: server.ConnectionHandler, owned: Connection) -> None:
    """A freeze: upstreams that are not in use are let go of, since their peers would not wait for us.

    One that is idle is closed; one that is not ready is reset, and opened anew by who asked for it.
    """
    http = next((one for one in handler.layer.context.layers if isinstance(one, Http)), None)
    used = [exchange.upstream for exchange in owned.exchanges]
    for target, io in handler.transports.items():
        side = io.writer
        if target is handler.client or not isinstance(side, GatedWriter) or io.handler is None:
            continue
        if http.awaits(target) if http else target.tls and not target.tls_established:
            hold_up(target)
            sever.reset(side.fileno())
            side.abort()
        elif http is None or side in used:
            continue
        target.state = ConnectionState.CLOSED
        io.handler.cancel()
