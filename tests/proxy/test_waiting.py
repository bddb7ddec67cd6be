"""What waits inside mitmproxy is known to the byte, so that reading can stop in time."""

from __future__ import annotations

from types import SimpleNamespace

import h2.config
import h2.connection
import pytest
from haltwire_proxy.waiting import held_bytes, kept_back, waiting_bytes
from mitmproxy.connection import Client
from mitmproxy.proxy import events
from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

CLIENT = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0.0)
HEAD = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")]


@pytest.fixture
def framing():
    """Our side of an upstream whose window holds 65,535 bytes."""
    connection = BufferedH2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    connection.send_headers(1, HEAD)
    return SimpleNamespace(h2_conn=connection, stream_queue={}, our_stream_id={7: 1})


def test_nothing_waits_for_an_open_window(framing):
    framing.h2_conn.send_data(1, bytes(1000))
    assert held_bytes(framing) == 0
    assert kept_back(framing, 7) == 0


def test_what_a_shut_window_keeps_is_counted_for_its_stream(framing):
    framing.h2_conn.send_data(1, bytes(100_000))
    assert held_bytes(framing) == 100_000 - 65_535
    assert kept_back(framing, 7) == 100_000 - 65_535
    assert kept_back(framing, 9) == 0


def test_a_stream_that_may_not_begin_keeps_everything(framing):
    framing.stream_queue[9] = [RequestData(9, bytes(500)), RequestEndOfMessage(9)]
    assert held_bytes(framing) == 501
    assert kept_back(framing, 9) is None


def test_many_small_pieces_weigh_more_than_their_bytes():
    layer = SimpleNamespace(_paused_event_queue=[events.DataReceived(CLIENT, b"x")] * 100)
    assert waiting_bytes(layer) > 100 * 500
