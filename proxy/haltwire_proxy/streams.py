"""mitmproxy's HTTP layer with bounds on what it keeps, and streams that refuse at once.

Stock mitmproxy answers a refusal only after the whole body, waits for heads that never end, and
keeps without limit what its peers do not take.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from h2.errors import ErrorCodes
from h2.stream import StreamClosedBy
from haltwire.wire.refusals import Refusal
from mitmproxy import connection, flow
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    DropStream,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpRequestHeadersHook
from mitmproxy.proxy.layers.http._http1 import Http1Connection, Http1Server
from mitmproxy.proxy.layers.http._http2 import Http2Connection

from haltwire_proxy import http1, one_authority
from haltwire_proxy.addon import (
    attach,
    complete,
    end,
    give_up,
    has_given_up,
    keep_back,
    note_wrong,
    passed,
    refusal_of,
    refusal_response,
)
from haltwire_proxy.agent_api import MAX_BODY_BYTES
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.floods import FloodError, Overdue, Rest, header_block_bytes, pieces
from haltwire_proxy.overload import exceeded
from haltwire_proxy.refuse import response_bytes
from haltwire_proxy.transport import GatedWriter
from haltwire_proxy.waiting import (
    MAX_HELD_BYTES,
    MAX_PIPELINED_BYTES,
    MAX_WAITING_BYTES,
    held_bytes,
    kept_back,
    waiting_bytes,
)

_ENDED = (StreamClosedBy.SEND_END_STREAM, StreamClosedBy.RECV_END_STREAM)
_JOINED_BYTES = 16 * 1024
"Smaller pieces are joined: a body can come in chunks of one byte."


http1.install()


class RefusedDialError(str):
    """An error text for mitmproxy that carries why we did not connect."""

    refusal: Refusal

    @classmethod
    def of(cls, refusal: Refusal) -> RefusedDialError:
        """The text of a refusal."""
        text = cls(refusal.message)
        text.refusal = refusal
        return text


def hold_up(upstream: connection.Connection) -> None:
    """Note that a hold has dropped this upstream before it was ready."""
    upstream.held_up = True  # type: ignore[attr-defined]


def was_held_up(upstream: connection.Connection) -> bool:
    """Whether it was a hold that ended it; asked once."""
    held_up = getattr(upstream, "held_up", False)
    upstream.held_up = False  # type: ignore[attr-defined]
    return bool(held_up)


class Http(HttpLayer):
    """Their HTTP layer with bounds, and with streams that can refuse at once."""

    def __init__(self, context: Context, mode: HTTPMode) -> None:
        super().__init__(context, mode)
        self._enforcer: Enforcer = context.client.enforcer  # type: ignore[attr-defined]
        self._head_bytes = self._enforcer.limits.head_bytes
        self.ended: list[layer.Layer] = []
        "Streams that were alive when the client ended."
        self._answered: dict[int, HTTPFlow] = {}
        "Requests of an HTTP/2 client whose response has been read, until the client's window has let it go."

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Their method; then a head, or a line of chunked coding, that does not end is not waited for."""
        if isinstance(event, events.ConnectionClosed) and event.connection is self.context.client:
            self.ended += self.streams.values()
        if isinstance(event, Overdue):
            yield from self._end_client(event.limit)
            return
        parts = pieces(event)
        for part in parts:
            if isinstance(part, events.ConnectionEvent) and part.connection not in self.connections:
                return  # a hold, or what came before, has dropped it
            yield from super()._handle_event(part)
            if len(parts) > 1:
                yield Rest()
        if self._answered:
            self._complete()
        if isinstance(event, events.Start):
            client = self.protocol(self.context.client)
            if isinstance(client, Http2Connection):
                client.h2_conn.decoder.max_header_list_size = self._head_bytes
        if not isinstance(event, events.DataReceived):
            return
        framed = self.protocol(event.connection)
        if isinstance(framed, Http2Connection) and header_block_bytes(framed) > self._head_bytes:
            raise FloodError("a header block that does not end", "head_bytes")
        if not isinstance(framed, Http1Connection) or len(framed.buf) <= self._head_bytes:
            return
        if framed.state not in (framed.read_headers, framed.read_body):
            return
        if framed.state == framed.read_headers and isinstance(framed, Http1Server):
            yield from self._refuse_head("head_bytes")
        else:
            self._enforcer.tallies.count("limit.head_bytes")
            yield from self.event_to_child(framed, events.ConnectionClosed(event.connection))
        if framed.state != getattr(framed, "discard", None):
            framed.state = framed.done

    def _refuse_head(self, limit: str) -> layer.CommandGenerator[None]:
        refusal = exceeded(limit, self._enforcer.tallies)
        self._enforcer.tallies.count(f"refused.{refusal.code}")
        yield commands.SendData(self.context.client, response_bytes(refusal, close=True))
        yield commands.CloseConnection(self.context.client)

    def _end_client(self, limit: str) -> layer.CommandGenerator[None]:
        """Nothing is asked, or it takes too long to ask: say so where something has been said."""
        client = self.context.client
        framing = self.protocol(client)
        if isinstance(framing, Http1Connection):
            if framing.buf and limit != "idle_s":
                yield from self._refuse_head(limit)
                framing.state = framing.done
                return
        elif isinstance(framing, Http2Connection):
            code = ErrorCodes.NO_ERROR if limit == "idle_s" else ErrorCodes.ENHANCE_YOUR_CALM
            framing.h2_conn.close_connection(code, limit.encode())
            yield commands.SendData(client, framing.h2_conn.data_to_send())
        self._enforcer.tallies.count(f"limit.{limit}")
        yield commands.CloseConnection(client)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Their method with our stream class."""
        stream = _Stream(self, stream_id)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def answered(self, stream_id: int, flow: HTTPFlow, framing: Http2Connection) -> None:
        """The flow's response has been read, and some of it may be kept back."""
        self._answered[stream_id] = flow
        keep_back(flow, lambda: bool(framing.h2_conn.stream_buffers.get(stream_id)))

    def _complete(self) -> None:
        framing = self.protocol(self.context.client)
        if not isinstance(framing, Http2Connection):
            return
        for stream_id, answered in tuple(self._answered.items()):
            if framing.h2_conn.stream_buffers.get(stream_id):
                continue
            del self._answered[stream_id]
            how = framing.h2_conn._stream_closed_by(stream_id)
            if framing.is_closed(stream_id) and how not in _ENDED:
                end(answered)  # reset: the client has not got all of it
            else:
                complete(answered)

    def register_connection(self, command: RegisterHttpConnection) -> layer.CommandGenerator[None]:
        """Their method, but an upstream that a hold has dropped is asked for anew; who waits for it sees nothing."""
        if not was_held_up(command.connection):
            yield from super().register_connection(command)
            return
        del self.connections[command.connection]
        for asked in self.waiting_for_establishment.pop(command.connection):
            yield from self.get_connection(asked)

    def awaits(self, upstream: connection.Connection) -> bool:
        """Whether the upstream is not ready yet, and somebody waits for it."""
        return upstream in self.waiting_for_establishment

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
        if any(waiting_bytes(one) > MAX_WAITING_BYTES for one in self.streams.values()):
            return True
        framed = self.protocol(client)
        return (
            isinstance(framed, Http1Server)
            and framed.state == framed.wait
            and len(framed.buf) > MAX_PIPELINED_BYTES
        )


class _Stream(HttpStream):
    """A stream that answers a refusal in requestheaders at once, not after the whole body."""

    def __init__(self, http: Http, stream_id: int) -> None:
        super().__init__(http.context.fork(), stream_id)
        self._http = http
        self._answered = False

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Their method; what comes while it waits is kept in few pieces, and a reset ends the wait.

        A reset that came in one read with its request would else never be seen.
        """
        if isinstance(event, RequestHeaders) and self._is_reset():
            yield DropStream(self.stream_id)
            return
        if self._paused and isinstance(event, RequestData) and self._join(event):
            return
        yield from super().handle_event(event)
        if self._paused and isinstance(event, RequestProtocolError):
            give_up(self.flow)
        elif not self._paused and isinstance(event, (RequestEndOfMessage, events.HookCompleted)):
            passed(self.flow)

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        """Called by them with each head, before they change it. Their error pages would quote it."""
        server = self.context.server
        if request:
            destination = server.address if self.mode is HTTPMode.transparent else None
            wrong = one_authority.judge(self.flow.request, destination, tls=server.tls)
            if wrong is not None:
                note_wrong(self.flow, wrong)
                yield HttpRequestHeadersHook(self.flow)
                yield from self.check_killed(True)
            return wrong is not None
        if self.flow.response is not None and one_authority.is_sound(self.flow.response):
            return False
        self.flow.response, why = None, "the response is malformed"
        code = ErrorCode.GENERIC_SERVER_ERROR
        yield SendHttp(RequestProtocolError(self.stream_id, why, code), server)
        yield from self.handle_protocol_error(ResponseProtocolError(self.stream_id, why, code))
        return True

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        """Called by them after each hook."""
        if has_given_up(self.flow):
            yield from self._drop()
            return True
        refusal = refusal_of(self.flow)
        if refusal is None or self._answered:
            return (yield from super().check_killed(emit_error_hook))
        if self.flow.response is not None:
            yield from self._cancel_upstream()
        yield from self._answer(refusal)
        return True

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """Their method; then it is known over which socket the request goes, if it still does."""
        opened = yield from super().make_server_connection()
        if opened and (yield from self.check_killed(True)):
            return False  # its client has gone while the upstream was opened
        side = getattr(self.context.server, "side", None)
        if opened and isinstance(side, GatedWriter):
            framing = self._http.protocol(self.context.server)
            if isinstance(framing, Http2Connection):
                attach(self.flow, side, partial(kept_back, framing, self.stream_id))
            else:
                attach(self.flow, side)
        return opened

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        """Their method; what an HTTP/2 client's window keeps back is not passed on yet."""
        framing = self._http.protocol(self.context.client)
        if isinstance(framing, Http2Connection):
            self._http.answered(self.stream_id, self.flow, framing)
        yield from super().send_response(already_streamed)

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
        end(self.flow)

    def _answer(self, refusal: Refusal) -> Generator[commands.Command, Any, None]:
        self._answered = True
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
        yield from self._drop()

    def _cancel_upstream(self) -> layer.CommandGenerator[None]:
        end(self.flow)
        cancel = RequestProtocolError(self.stream_id, "not wanted", ErrorCode.CANCEL)
        yield SendHttp(cancel, self.context.server)

    def _drop(self) -> layer.CommandGenerator[None]:
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored
        yield DropStream(self.stream_id)

    def _is_reset(self) -> bool:
        framing = self._http.protocol(self.context.client)
        return isinstance(framing, Http2Connection) and framing.is_closed(self.stream_id)

    def _join(self, more: RequestData) -> bool:
        last = self._paused_event_queue[-1] if self._paused_event_queue else None
        if not isinstance(last, RequestData) or len(last.data) > _JOINED_BYTES:
            return False
        last.data += more.data
        return True
