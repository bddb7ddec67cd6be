"""How an event goes through mitmproxy's layers without keeping the event loop for itself, whatever a peer sends.

HTTP/2 frames of 13 bytes cost up to 50 us each, and opening and resetting streams costs the resetter
nothing (CVE-2023-44487).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mitmproxy import connection
from mitmproxy.proxy import commands, events, layer, server
from mitmproxy.proxy.layers.http import HttpLayer
from mitmproxy.proxy.layers.http._hooks import (
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpRequestHook,
)
from mitmproxy.proxy.layers.http._http2 import Http2Connection

from haltwire_proxy.transport import GatedWriter

HTTP2_PIECE = 8 * 1024
"Bytes of frames that are parsed in one go: 30 ms of the worst, and 5 % of what a download costs."
MAX_UNREAD_BYTES = 8 * 1024 * 1024
"""That a peer may leave unread of what we have for it while it goes on sending: more than any window that
opens lets go of at once, so what a peer reaches by pings or settings whose answers it never reads."""
MAX_STREAMS = 256
"""Of one HTTP/2 client at a time. 100 may be open; what is beyond, the client has reset while its
upstream was still dialled, and each would be dialled for all the same."""


class FloodError(Exception):
    """Raised by `handled` and the layers; the caller cuts the connection."""

    def __init__(self, message: str, limit: str | None = None) -> None:
        super().__init__(message)
        self.limit = limit


@dataclass(repr=False)
class Overdue(events.Event):
    """The client has taken too long (see patience.py): its connection is to be ended politely."""

    limit: str


@dataclass(repr=False)
class Rest(commands.Command):
    """Nothing is to be done: other connections may go on."""


def handled(
    top: layer.Layer,
    event: events.Event,
    perform: Callable[[commands.Command, list[events.Event]], None],
    is_severed: Callable[[], bool],
    is_over: Callable[[], bool],
) -> Iterator[None]:
    """Give the event to the layers and perform their commands, as long as the connection is not severed.

    `perform` adds to its list the hooks that are done. When it `is_over`, this yields as soon as it
    may rest: other connections go on and a cut may come, and what that reports is true. What has
    been counted has then been written.
    """
    waiting = [event]
    while waiting and not is_severed():
        done: list[events.Event] = []
        for command in top.handle_event(waiting.pop()):
            # A cut ends sockets, which mitmproxy could take for the end of a response without a
            # length, or for a reason to connect anew.
            if is_severed():
                return
            perform(command, done)
            if isinstance(command, _RESTS):
                if is_over() and not _is_completing(*waiting, *done):
                    yield
            elif isinstance(command, HttpRequestHeadersHook) and _is_flood(top.context.layers):
                raise FloodError("streams are opened and reset in a flood", "streams")
        waiting += reversed(done)


_RESTS = (Rest, commands.SendData, commands.OpenConnection, HttpErrorHook)
"Commands behind which nothing is counted that is not written."


def pieces(event: events.Event) -> Sequence[events.Event]:
    """The event, in parts if it holds too many HTTP/2 frames for one."""
    if (
        not isinstance(event, events.DataReceived)
        or event.connection.alpn != b"h2"
        or len(event.data) <= HTTP2_PIECE
    ):
        return (event,)
    return [
        events.DataReceived(event.connection, event.data[start : start + HTTP2_PIECE])
        for start in range(0, len(event.data), HTTP2_PIECE)
    ]


def check_unread(
    event: events.Event, transports: Mapping[connection.Connection, server.ConnectionIO]
) -> None:
    """FloodError when the peer that has sent this reads nothing of what it makes us answer."""
    io = transports.get(event.connection) if isinstance(event, events.DataReceived) else None
    side = None if io is None else io.writer
    if isinstance(side, GatedWriter) and side.unwritten() > MAX_UNREAD_BYTES:
        raise FloodError("what is answered is not read", "unread_bytes")


def header_block_bytes(http2: Http2Connection) -> int:
    """What has been read of a header block that has not ended: h2 itself takes 8 MB (64 frames of 128 KB)."""
    frames = http2.h2_conn.incoming_buffer
    unfinished = len(frames._data) if len(frames._data) > 3 and frames._data[3] in _HEADERS else 0
    return unfinished + sum(len(frame.data) for frame in frames._headers_buffer)


_HEADERS = (1, 5, 9)
"HEADERS, PUSH_PROMISE, CONTINUATION: RFC 9113, section 6."


def _is_flood(layers: Iterable[layer.Layer]) -> bool:
    return any(isinstance(one, HttpLayer) and len(one.streams) > MAX_STREAMS for one in layers)


def _is_completing(*pending: events.Event) -> bool:
    """Whether a request has been noted as complete whose end is yet to be written."""
    return any(
        isinstance(event, events.HookCompleted) and isinstance(event.command, HttpRequestHook)
        for event in pending
    )
