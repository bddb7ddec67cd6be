"""mitmproxy's HTTP layer with bounds on what it keeps, and streams that refuse at once.

Stock mitmproxy answers a refusal only after the whole body, waits for heads that never end, and
keeps without limit what its peers do not take.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from haltwire.wire.refusals import Refusal
from mitmproxy import connection, flow
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook
from mitmproxy.proxy.layers.http._http1 import Http1Connection, Http1Server
from mitmproxy.proxy.layers.http._http2 import Http2Connection

from haltwire_proxy.addon import attach, refusal_of, refusal_response
from haltwire_proxy.agent_api import MAX_BODY_BYTES
from haltwire_proxy.head import MAX_HEAD_BYTES
from haltwire_proxy.refuse import response_bytes
from haltwire_proxy.transport import GatedWriter

MAX_PIPELINED_BYTES = 64 * 1024
"What is read of requests behind the one that is being answered."
MAX_PAUSED_EVENTS = 64
"What is read, in pieces of at most 64 KiB, for a request whose upstream is still being dialled."
MAX_HELD_BYTES = 4 * 1024 * 1024
"What is kept for HTTP/2 windows that are shut before we stop reading for them."


class RefusedDialError(str):
    """An error text for mitmproxy that carries why we did not connect."""

    refusal: Refusal

    @classmethod
    def of(cls, refusal: Refusal) -> RefusedDialError:
        """The text of a refusal."""
        text = cls(refusal.message)
        text.refusal = refusal
        return text


class Http(HttpLayer):
    """Their HTTP layer with bounds, and with streams that can refuse at once."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Their method; then a head, or a line of chunked coding, that does not end is not waited for."""
        yield from super()._handle_event(event)
        if not isinstance(event, events.DataReceived):
            return
        http1 = self.protocol(event.connection)
        if not isinstance(http1, Http1Connection) or len(http1.buf) <= MAX_HEAD_BYTES:
            return
        if http1.state not in (http1.read_headers, http1.read_body):
            return
        if http1.state == http1.read_headers and isinstance(http1, Http1Server):
            refusal = Refusal("headers_too_large", "The request head is larger than 64 KiB.")
            yield commands.SendData(event.connection, response_bytes(refusal, close=True))
            yield commands.CloseConnection(event.connection)
        else:
            yield from self.event_to_child(http1, events.ConnectionClosed(event.connection))
        http1.state = http1.done

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Their method with our stream class."""
        stream = _Stream(self.context.fork(), stream_id)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def protocol(self, of: connection.Connection) -> Http1Connection | Http2Connection | None:
        """What frames the messages on this connection."""
        found: Any = self.connections.get(of)
        while found is not None and not isinstance(found, (Http1Connection, Http2Connection)):
            found = getattr(found, "child_layer", None)
        return found

    def is_full(self, *, upward: bool) -> bool:
        """Whether more waits in memory, on its way up or down, than we read ahead."""
        client = self.context.client
        protocols = [(of, self.protocol(of)) for of in self.connections]
        if any(
            held_bytes(one) > MAX_HELD_BYTES
            for of, one in protocols
            if isinstance(one, Http2Connection) and (of != client) is upward
        ):
            return True
        if not upward:
            return False
        if any(len(one._paused_event_queue) > MAX_PAUSED_EVENTS for one in self.streams.values()):
            return True
        http1 = self.protocol(client)
        return (
            isinstance(http1, Http1Server)
            and http1.state == http1.wait
            and len(http1.buf) > MAX_PIPELINED_BYTES
        )


def held_bytes(http2: Http2Connection) -> int:
    """What HTTP/2 keeps back until its peer opens a window or lets it begin another stream."""
    waiting = sum(
        len(piece.data) for pieces in http2.h2_conn.stream_buffers.values() for piece in pieces
    )
    for unsent in getattr(http2, "stream_queue", {}).values():
        waiting += 1 + sum(len(event.data) for event in unsent if isinstance(event, RequestData))
    return waiting


class _Stream(HttpStream):
    """A stream that answers a refusal in requestheaders at once, not after the whole body."""

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        """Called by them after each hook."""
        refusal = refusal_of(self.flow)
        if refusal is None:
            return (yield from super().check_killed(emit_error_hook))
        yield from self._answer(refusal)
        return True

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """Their method; then it is known over which socket the request goes."""
        opened = yield from super().make_server_connection()
        side = getattr(self.context.server, "side", None)
        if opened and isinstance(side, GatedWriter):
            http = self.context.layers[self.context.layers.index(self) - 1]
            framing = http.protocol(self.context.server) if isinstance(http, Http) else None
            if isinstance(framing, Http2Connection):
                attach(self.flow, side, partial(held_bytes, framing))
            else:
                attach(self.flow, side)
        return opened

    def state_stream_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Their method, but a reset is not the end of a response without a length."""
        side = getattr(self.context.server, "side", None)
        if (
            isinstance(event, ResponseEndOfMessage)
            and isinstance(side, GatedWriter)
            and side.broken
        ):
            error = "the upstream has reset the connection"
            yield from self.handle_protocol_error(
                ResponseProtocolError(self.stream_id, error, ErrorCode.GENERIC_SERVER_ERROR)
            )
            return
        yield from super().state_stream_response_body(event)

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Only calls of the agent API are read whole; their size is bounded."""
        if isinstance(event, RequestData) and len(self.request_body_buf) > MAX_BODY_BYTES:
            self.request_body_buf.clear()
            yield from self._answer(Refusal("request_too_large", "A call's body is at most 1 MiB."))
            return
        yield from super().state_consume_request_body(event)

    def handle_protocol_error(self, event: Any) -> layer.CommandGenerator[None]:
        """An upstream that could not be had is a typed answer, not their error page."""
        if (
            isinstance(event, ResponseProtocolError)
            and self.flow.response is None
            and self.client_state != self.state_errored
        ):
            message = event.message
            refusal = (
                message.refusal
                if isinstance(message, RefusedDialError)
                else Refusal(
                    "upstream_unreachable",
                    f"{self.flow.request.host} did not give a whole answer.",
                )
            )
            self.flow.error = flow.Error(refusal.message)
            yield HttpErrorHook(self.flow)
            yield from self._answer(refusal)
            return
        yield from super().handle_protocol_error(event)

    def _answer(self, refusal: Refusal) -> Generator[commands.Command, Any, None]:
        response = refusal_response(refusal, body=self.flow.request.method != "HEAD")
        body = response.raw_content or b""
        client = self.context.client
        if client.alpn != b"h2":
            response.headers["Connection"] = "close"
        self.flow.response = response
        yield SendHttp(ResponseHeaders(self.stream_id, response, end_stream=not body), client)
        if body:
            yield SendHttp(ResponseData(self.stream_id, body), client)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored
