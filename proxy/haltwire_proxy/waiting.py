"""How much of what has been read waits in mitmproxy's layers, and how much may."""

from __future__ import annotations

from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http._events import RequestData
from mitmproxy.proxy.layers.http._http2 import Http2Connection

MAX_PIPELINED_BYTES = 64 * 1024
"What is read of requests behind the one that is being answered."
MAX_WAITING_BYTES = 128 * 1024
"What is read for a request that waits: for a hold to end, or for its upstream."
_PIECE_BYTES = 512
"What each piece of it costs us beside its bytes, generously."
MAX_HELD_BYTES = 4 * 1024 * 1024
"What is kept for HTTP/2 windows that are shut before we stop reading for them."


def waiting_bytes(one: layer.Layer) -> int:
    """What has been read for a layer that waits for something."""
    waiting = one._paused_event_queue
    return sum(_PIECE_BYTES + len(getattr(event, "data", b"")) for event in waiting)


def held_bytes(http2: Http2Connection) -> int:
    """What HTTP/2 keeps back until its peer opens a window or lets it begin another stream."""
    waiting = sum(
        len(piece.data) for pieces in http2.h2_conn.stream_buffers.values() for piece in pieces
    )
    for unsent in getattr(http2, "stream_queue", {}).values():
        waiting += 1 + sum(len(event.data) for event in unsent if isinstance(event, RequestData))
    return waiting


def kept_back(http2: Http2Connection, stream_id: int) -> int | None:
    """What HTTP/2 keeps back of one request for its peer's window; None when it has not let it begin.

    `stream_id` is the client's.
    """
    if stream_id in getattr(http2, "stream_queue", {}):
        return None
    theirs = getattr(http2, "our_stream_id", {}).get(stream_id, 0)
    return sum(len(piece.data) for piece in http2.h2_conn.stream_buffers.get(theirs) or ())
