"""How long the client of an inspected connection may take: to shake hands, to send a head, to ask for anything.

A look now and then, not a timer per event: what is under way costs nothing. A head is therefore ended up
to half its time late, never early. While an order holds the connection no time counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mitmproxy.connection import Client
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http._http1 import Http1Connection
from mitmproxy.proxy.layers.http._http2 import Http2Connection

from haltwire_proxy.connections import Connection
from haltwire_proxy.floods import header_block_bytes
from haltwire_proxy.limits import Limits
from haltwire_proxy.lobby import Lobby
from haltwire_proxy.streams import Http


class _Layers(Protocol):
    layers: list[layer.Layer]
    client: Client


class Patience:
    """One per inspected connection."""

    def __init__(
        self,
        limits: Limits,
        owned: Connection,
        context: _Layers,
        give_up: Callable[[str], None],
        lobby: Lobby,
    ) -> None:
        """`give_up` is called once, with the name of the limit. It waits in the lobby till a look finds it asking."""
        self._limits = limits
        self._owned = owned
        self._context = context
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._waited_for = waited_for(owned, context)
        self._since = self._loop.time()
        self._timer = self._loop.call_later(self._next(), self._look)
        self._lobby = lobby
        lobby.enter(self, owned.identity.agent, 0)

    def make_way(self, limit: str) -> None:
        """The agent has too many that ask nothing (see lobby.Guest); this may meanwhile be none of them."""
        if waited_for(self._owned, self._context) in _FIRST:
            self.end()
            self._give_up(limit)

    def end(self) -> None:
        """Idempotent."""
        self._timer.cancel()
        self._lobby.leave(self, self._owned.identity.agent)

    def _look(self) -> None:
        now = self._loop.time()
        wanted = waited_for(self._owned, self._context)
        if wanted not in _FIRST:
            self._lobby.leave(self, self._owned.identity.agent)
        if wanted != self._waited_for:
            self._waited_for, self._since = wanted, now
        elif wanted is not None and now - self._since >= getattr(self._limits, wanted[0]):
            self._give_up(wanted[0])
            return
        self._timer = self._loop.call_later(self._next(), self._look)

    def _next(self) -> float:
        half = self._limits.head_s / 2
        if self._waited_for is None:
            return half
        over = self._since + float(getattr(self._limits, self._waited_for[0]))
        # A look that comes a hair too early would cost another half of the time.
        return min(half, max(0.0, over - self._loop.time()) + 0.001)


_FIRST = (
    ("handshake_s", None),
    ("head_s", None),
    ("head_s", 0),
    ("head_s", (0, "block")),
    ("head_s", 1),
)
"What is waited for as long as nothing has been asked."


def waited_for(owned: Connection, context: _Layers) -> tuple[str, object] | None:
    """The limit that applies to what the client has to do next, and which one of these it is; None: nothing."""
    if owned.frozen or owned.kind == "tunnel":
        return None
    http = next((one for one in context.layers if isinstance(one, Http)), None)
    if http is None:
        return ("head_s" if context.client.tls_established else "handshake_s", None)
    framing = http.protocol(context.client)
    if isinstance(framing, Http1Connection):
        if framing.state != framing.read_headers:
            return None
        asks = bool(framing.buf) or framing.stream_id == 1
        return ("head_s" if asks else "idle_s", framing.stream_id)
    if isinstance(framing, Http2Connection):
        latest = framing.h2_conn.highest_inbound_stream_id
        if header_block_bytes(framing):
            return ("head_s", (latest, "block"))
        if http.streams:
            return None
        return ("idle_s" if latest else "head_s", latest)
    return ("head_s", None)
