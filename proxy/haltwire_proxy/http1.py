"""mitmproxy's HTTP/1, stricter: it reads no request that the door would not, and no response that can be read twice.

Stock mitmproxy takes bare LF and folded lines, answers in HTML that quotes the request, takes an interim
response for the final one, sends HTTP/2 bodies of unknown length unframed and cuts the connection at a trailer.
"""

from __future__ import annotations

import re

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from haltwire.wire.refusals import Refusal
from mitmproxy import http
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    HttpEvent,
    RequestData,
    RequestHeaders,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseTrailers,
)

from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.head import END_OF_HEAD, end_of_head, first_byte_fits, parse_head
from haltwire_proxy.one_authority import Unreadable, asked_upgrades
from haltwire_proxy.overload import exceeded
from haltwire_proxy.refuse import response_bytes

LINGER_S = 2.0
"How long a client whose request is no request may go on sending: an early reset would eat our answer."
MAX_CHUNK_BYTES = 2**63 - 1
"What fits a signed 64-bit number; beyond, other readers overflow."
MAX_CHUNK_LINE_BYTES = 4096
"A chunk's size and its extensions, which nobody uses."
MAX_INTERIM = 16
"Interim responses (100, 103) to one request. Nobody sends more than a handful."
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-5][0-9]{2}(?: |\Z)")
_NO_REQUEST = "not an HTTP/1.1 request"


class _TooLargeError(ValueError):
    """A head that is larger than heads may be."""


def install() -> None:
    """Have mitmproxy's HTTP layer make these; it looks their names up in its own module."""
    vars(http_layers).update(Http1Server=Http1Server, Http1Client=Http1Client)


class _Body(_http1.Http1Connection):
    """How a message's body is read on either side."""

    @property
    def enforcer(self) -> Enforcer:
        """That of the worker."""
        enforcer: Enforcer = self.context.client.enforcer  # type: ignore[attr-defined]
        return enforcer

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Their method, but trailers are left out: between two HTTP/1 parties an intermediary may."""
        assert self.stream_id is not None
        while True:
            try:
                if isinstance(event, events.DataReceived):
                    read = self.body_reader(self.buf)
                else:
                    read = self.body_reader.read_eof()
            except h11.ProtocolError:
                yield from self.broken()
                return
            if read is None:
                return
            if isinstance(read, h11.Data):
                if read.data:
                    yield ReceiveHttp(self.ReceiveData(self.stream_id, bytes(read.data)))
                continue
            yield ReceiveHttp(self.ReceiveEndOfMessage(self.stream_id))
            yield from self.body_done()
            return

    def broken(self) -> layer.CommandGenerator[None]:
        """The body does not end as its head said."""
        raise NotImplementedError

    def body_done(self) -> layer.CommandGenerator[None]:
        """The body has been read to its end."""
        raise NotImplementedError


class Http1Server(_Body, _http1.Http1Server):
    """The client's side. A head is first what the door takes for one, then what mitmproxy does."""

    _ended = False
    "Whether we have said our last word: an upstream may still answer what its client has broken off."

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Their method; what is no request ends the connection with a typed answer, and nothing behind it is read."""
        if not isinstance(event, events.DataReceived):
            yield from super().read_headers(event)
            return
        try:
            raw = self._next_head()
            if raw is None:
                return
            request, size = _request_of(raw)
        except ValueError as error:
            refusal = Refusal("malformed_request", f"{error}.")
            if isinstance(error, _TooLargeError):
                refusal = exceeded("head_bytes", self.enforcer.tallies)
            self.request = Unreadable.because(refusal)
            self.state = self.discard
            self.buf = type(self.buf)()
            yield ReceiveHttp(RequestHeaders(self.stream_id, self.request, end_stream=False))
            return
        self.request = request
        yield ReceiveHttp(RequestHeaders(self.stream_id, request, end_stream=size == 0))
        self.body_reader = _body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Their method; an HTTP/2 upstream's trailers are left out, as is a piece that would end a chunked body."""
        is_empty = isinstance(event, ResponseData) and not event.data
        if self._ended or is_empty or isinstance(event, ResponseTrailers):
            return
        stream_id = self.stream_id
        yield from super().send(event)
        # The end of an answer may have begun the next request: that one is not answered yet.
        is_answered = isinstance(event, ResponseEndOfMessage) and stream_id == self.stream_id
        if is_answered and self.state == self.discard:
            yield from self._linger()

    def discard(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Nothing is read any more; the client has our answer, or soon will."""
        self.buf = type(self.buf)()
        if isinstance(event, (events.ConnectionClosed, events.Wakeup)):
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def broken(self) -> layer.CommandGenerator[None]:
        """Told to the client if it can still be, and to the upstream by an end before the body's."""
        answered = self.response is not None and self.response.status_code != 100
        self.state = self.discard
        yield ReceiveHttp(
            self.ReceiveProtocolError(
                self.stream_id, "the body is malformed", self.ReceiveProtocolError.code
            )
        )
        if answered:
            yield commands.CloseConnection(self.conn)
            self.state = self.done
        else:
            refusal = Refusal("malformed_request", "The request's body is malformed.")
            yield commands.SendData(self.conn, response_bytes(refusal, close=True))
            yield from self._linger()

    def body_done(self) -> layer.CommandGenerator[None]:
        """The request has been read."""
        yield from self.mark_done(request=True)

    def _next_head(self) -> bytes | None:
        data: bytearray = self.buf._data
        while data[:2] == b"\r\n":  # RFC 9112, 2.2: old clients end a body with an empty line
            self.buf.maybe_extract_at_most(2)
        if data and not first_byte_fits(data) and data != b"\r":
            raise ValueError("another protocol where a request should begin")
        end = end_of_head(data)
        if end > self.enforcer.limits.head_bytes:
            raise _TooLargeError
        if end < 0:
            return None
        return bytes(self.buf.maybe_extract_at_most(end + len(END_OF_HEAD)) or b"")

    def _linger(self) -> layer.CommandGenerator[None]:
        self._ended = True
        yield commands.CloseTcpConnection(self.conn, half_close=True)
        yield commands.RequestWakeup(LINGER_S)


class Http1Client(_Body, _http1.Http1Client):
    """The upstream's side. One request has one response, and what is behind that is nobody's."""

    _interim = 0

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Their method; interim responses are passed over, and a response that can be read twice is none."""
        if not isinstance(event, events.DataReceived) or self.request is None:
            yield from super().read_headers(event)
            return
        assert self.stream_id is not None
        while True:
            before = len(self.buf)
            lines = self.buf.maybe_extract_lines()
            if lines is None:
                return
            if before - len(self.buf) > self.enforcer.limits.head_bytes:
                self.enforcer.tallies.count("limit.head_bytes")
                yield from self.broken()
                return
            if not lines:
                continue
            try:
                self.response = response = _response_of([bytes(one) for one in lines], self.request)
                size = http1.expected_http_body_size(self.request, response)
            except ValueError:
                yield from self.broken()
                return
            if response.status_code >= 200 or response.status_code == 101:
                break
            self._interim += 1
            self.response = None
            if self._interim > MAX_INTERIM:
                yield from self.broken()
                return
        self._interim = 0
        yield ReceiveHttp(ResponseHeaders(self.stream_id, response, end_stream=size == 0))
        self.body_reader = _body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Their method; a body that HTTP/2 frames and whose length nobody has said goes up in chunks."""
        if isinstance(event, RequestTrailers) or (
            isinstance(event, RequestData) and not event.data
        ):
            return
        if isinstance(event, RequestHeaders) and not event.end_stream:
            headers = event.request.headers
            if event.request.is_http2 and "content-length" not in headers:
                headers["Transfer-Encoding"] = "chunked"
        yield from super().send(event)

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """What comes behind a whole response, while its request is still sent, ends the connection."""
        if self.response_done:
            yield commands.CloseConnection(self.conn)
            self.state = self.done
        else:
            yield from super().read_body(event)

    def broken(self) -> layer.CommandGenerator[None]:
        """No response, or no whole one."""
        assert self.stream_id is not None
        self.state = self.done
        yield commands.CloseConnection(self.conn)
        yield ReceiveHttp(
            self.ReceiveProtocolError(
                self.stream_id, "the response is malformed", self.ReceiveProtocolError.code
            )
        )

    def body_done(self) -> layer.CommandGenerator[None]:
        """The response has been read."""
        yield from self.mark_done(response=True)


def _body_reader(size: int | None) -> _http1.TBodyReader:
    return _Chunks() if size is None else _http1.make_body_reader(size)


class _Chunks(ChunkedReader):
    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._bytes_in_chunk == 0 and not self._reading_trailer:
            end = buf._data.find(b"\r\n", len(self._bytes_to_discard))
            if (end if end >= 0 else len(buf)) > MAX_CHUNK_LINE_BYTES:
                raise h11.RemoteProtocolError("a chunk's size line without end")
        read = super().__call__(buf)
        if self._bytes_in_chunk > MAX_CHUNK_BYTES:
            raise h11.RemoteProtocolError("a chunk longer than any")
        return read


def _request_of(raw: bytes) -> tuple[http.Request, int | None]:
    parse_head(raw)
    try:
        request = http1.read_request_head(raw.removesuffix(END_OF_HEAD).split(b"\r\n"))
        return request, http1.expected_http_body_size(request)
    except ValueError:  # theirs quotes the line
        raise ValueError(_NO_REQUEST) from None


def _response_of(lines: list[bytes], request: http.Request) -> http.Response:
    if not _STATUS_LINE.match(lines[0]):
        raise ValueError("not an HTTP/1.1 response")
    response = http1.read_response_head(lines)
    if response.status_code == 101:
        taken = response.headers.get("upgrade", "").strip().lower()
        if request.is_http2 or taken not in asked_upgrades(request.headers):
            raise ValueError("an upgrade that nobody has asked for")
    return response
