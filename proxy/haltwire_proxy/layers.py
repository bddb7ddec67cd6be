"""What speaks inside a CONNECT that we read, which of mitmproxy's layers reads it, and how TLS is set up for that."""

from __future__ import annotations

import re

from haltwire.wire.refusals import Refusal
from mitmproxy.addons import tlsconfig
from mitmproxy.proxy import events, layer, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tls as tls_layers
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.tls import TlsData

from haltwire_proxy.clienthello import record_kind
from haltwire_proxy.connections import Connection
from haltwire_proxy.floods import FloodError
from haltwire_proxy.one_authority import another_sni
from haltwire_proxy.streams import Http, was_held_up

_OTHER_RECORDS = (20, 21)
"TLS records that some servers skip before a ClientHello; unread, they would let all that follows pass unread."
_H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LONGEST_METHOD = 32


def choose(undecided: layer.NextLayer) -> None:
    """TLS, then HTTP; else bytes, passed on unread."""
    context, data = undecided.context, undecided.data_client()
    inside_tls = any(isinstance(done, tls_layers.ClientTLSLayer) for done in context.layers)
    if not data:
        return
    if not inside_tls and data[0] in _OTHER_RECORDS:
        kind = record_kind(data)
        if isinstance(kind, Refusal):
            raise FloodError(kind.message)
        if kind is None:
            return
    if not inside_tls and _H2_PREFACE.startswith(data[: len(_H2_PREFACE)]):
        if len(data) > 2:  # fewer could also begin a PUT or POST
            # HTTP/2 from the first byte on, as gRPC without TLS speaks it: nothing else negotiates it.
            context.client.alpn = b"h2"
            undecided.layer = Http(context, HTTPMode.transparent)
        return
    if not inside_tls and data[0] == 0x16:
        outer = ServerTls(context)
        outer.child_layer = tls_layers.ClientTLSLayer(context)
        undecided.layer = outer
        return
    is_http = context.client.alpn in (b"h2", b"http/1.1", b"http/1.0") or begins_http(data)
    if is_http or (inside_tls and _is_misdirected(context)):
        undecided.layer = Http(context, HTTPMode.transparent)
    elif is_http is False:
        undecided.layer = Unread(context, ignore=True)


def begins_http(data: bytes) -> bool | None:
    """Whether an upstream could take this for the beginning of a request; None when more has to come.

    Empty lines before it are skipped by many, and a method may be any token.
    """
    begun = data.lstrip(b"\r\n")
    if begun[:3].isalpha() or b" HTTP/" in begun.partition(b"\n")[0]:
        return True
    token = _TOKEN.match(begun)
    if token is None or (token.end() == len(begun) and len(begun) <= _LONGEST_METHOD):
        return None if token or not begun else False
    return begun[token.end() : token.end() + 1] == b" " or token.end() > _LONGEST_METHOD


def _is_misdirected(context: Context) -> bool:
    # Then none of it may pass unread: the addon refuses it.
    address = context.server.address
    return address is None or another_sni(context.client.sni, address[0]) is not None


class Unread(layers.TCPLayer):
    """Bytes that nobody reads, from when their upstream is open a tunnel like any other."""

    def start(self, event: events.Start) -> layer.CommandGenerator[None]:
        """Their method; then its receipt must no longer say that all of it was read."""
        yield from super().start(event)
        if self._handle_event == self.relay_messages:
            owned: Connection = self.context.client.owned  # type: ignore[attr-defined]
            owned.kind = "tunnel"
            owned.tally.requests += 1  # not among the totals: this layer knows no enforcer
            owned.tally.tunnelled = True

    _handle_event = start


class ServerTls(tls_layers.ServerTLSLayer):
    """Their TLS with an upstream, for bytes that are not HTTP: a handshake that a hold dropped begins anew."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        asked = self.command_to_reply_to
        if (
            asked is not None
            and isinstance(event, events.ConnectionClosed)
            and event.connection == self.conn
            and was_held_up(self.conn)
        ):
            self.tls = None  # type: ignore[assignment]
            yield from self._handle_command(asked)
        else:
            yield from super()._handle_event(event)


class TlsConfig(tlsconfig.TlsConfig):
    """Their TLS set-up with our authority; the store is set, never made from options."""

    def configure(self, updated: set[str]) -> None:
        """Nothing: see Inspector."""

    def tls_start_client(self, tls_start: TlsData) -> None:
        """Their method, but HTTP/2 wins where it is offered, as on most servers: httpx offers it last."""
        client = tls_start.context.client
        if b"h2" in client.alpn_offers:
            client.alpn = b"h2"
        super().tls_start_client(tls_start)
