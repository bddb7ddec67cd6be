"""An event is handled in pieces, rests only where a cut would report the truth, and a flood of streams is cut."""

import asyncio
import contextlib
import socket
import ssl
from types import SimpleNamespace

import h2.config
import h2.connection
import h2.events
import pytest
from h2.frame_buffer import FrameBuffer
from haltwire_proxy import floods
from haltwire_proxy.floods import HTTP2_PIECE, MAX_STREAMS, handled, header_block_bytes, pieces
from mitmproxy.connection import Client
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.test.tflow import tflow
from support.client import Wire, tls_tunnel
from support.scripted import Stage, until
from support.world import INTERCEPTED, basic

READER = ("acme.prod.reader~i-1", INTERCEPTED)
AGENT = "agent://acme/prod/reader"
CLIENT = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0.0)


class Layer:
    """Answers each event with the next of the given lists of commands."""

    def __init__(self, *answers):
        self._answers = iter(answers)
        self.events = []

    def handle_event(self, event):
        self.events.append(event)
        yield from next(self._answers, ())


def perform(command, done):
    if isinstance(command, HttpRequestHook):
        done.append(events.HookCompleted(command))


def yes():
    return True


def no():
    return False


def data(size, alpn=None):
    client = CLIENT.copy()
    client.alpn = alpn
    return events.DataReceived(client, bytes(size))


@pytest.mark.parametrize(
    ("alpn", "sizes"),
    [
        pytest.param(b"http/1.1", [40_000], id="HTTP/1 is read as it comes"),
        pytest.param(b"h2", [HTTP2_PIECE] * 4 + [40_000 - 4 * HTTP2_PIECE], id="frames"),
    ],
)
def test_many_frames_are_parsed_in_pieces(alpn, sizes):
    assert [len(piece.data) for piece in pieces(data(40_000, alpn))] == sizes


def test_an_event_rests_behind_what_it_has_written():
    """Not before a write: what has just been counted would be reported as sent."""
    wrote = []
    top = Layer([commands.Log("counted"), commands.SendData(CLIENT, b"1"), commands.Log("counted")])
    steps = handled(top, data(1), lambda command, _: wrote.append(command), no, yes)
    next(steps)
    assert [type(command) for command in wrote] == [commands.Log, commands.SendData]


def test_an_event_does_not_rest_as_long_as_its_turn_lasts():
    top = Layer([commands.SendData(CLIENT, b"1"), commands.SendData(CLIENT, b"2")])
    assert list(handled(top, data(1), perform, no, no)) == []


def test_no_rest_comes_between_the_end_of_a_request_and_its_being_written():
    hook = HttpRequestHook(tflow())
    top = Layer(
        [hook, commands.SendData(CLIENT, b"another stream")], [commands.SendData(CLIENT, b"end")]
    )
    steps = handled(top, data(1), perform, no, yes)
    next(steps)
    assert [type(event) for event in top.events] == [events.DataReceived, events.HookCompleted]


def test_a_severed_connection_is_handled_no_further():
    severed = []
    top = Layer([commands.SendData(CLIENT, b"1"), commands.SendData(CLIENT, b"2")])
    wrote = []

    def write(command, _):
        wrote.append(command.data)
        severed.append(True)

    list(handled(top, data(1), write, lambda: bool(severed), yes))
    assert wrote == [b"1"]


async def test_a_flood_of_tiny_chunks_leaves_the_loop_time_and_is_cut_truthfully(world, authority):
    """64 KB of them were half a second of the loop: two such events, and the lease was lost."""
    piece = b"1\r\nx\r\n" * 10_000
    async with Stage(authority.server_context("localhost")) as origin:
        wire = await tls_tunnel(world.port, origin.host, *READER, world.ca_file)
        head = f"POST / HTTP/1.1\r\nHost: {origin.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await wire.send(head.encode())
        played = await origin.asked()
        sending = asyncio.ensure_future(wire.send(piece * 20))
        await until(lambda: len(played.body) > 0)
        seen = set()
        while len(played.body) < len(piece):
            seen.add(len(played.body))
            await asyncio.sleep(0)
        assert len(seen) > 20, "the loop has hardly turned while 10,000 chunks were read"
        enforced = world.kill(AGENT)
        (flight,) = enforced.reports()[0].instances[0].in_flight
        sending.cancel()
        await until(lambda: played.end is not None)
        assert flight.sent == "partly"
        assert flight.bytes_up_acked <= played.body.count(b"x")
        await asyncio.gather(sending, return_exceptions=True)


async def test_streams_that_are_opened_and_reset_in_a_flood_are_cut(world):
    """Each would be dialled for although nobody wants it any more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"localhost:{silent.getsockname()[1]}"
        wire = await tls_tunnel(world.port, target, *READER, world.ca_file, alpn=("h2",))
        client = h2.connection.H2Connection(h2.config.H2Configuration())
        client.initiate_connection()
        opened = 0
        while await answers(wire, client):
            for stream in range(2 * opened + 1, 2 * opened + 161, 2):
                client.send_headers(stream, head_for(target), end_stream=True)
            if await answers(wire, client):
                for stream in range(2 * opened + 1, 2 * opened + 161, 2):
                    client.reset_stream(stream)
                opened += 80
            assert opened <= 4 * MAX_STREAMS
    assert opened > MAX_STREAMS - 80
    assert world.enforcer.connections.count == 0


def head_for(target):
    head = {":method": "GET", ":scheme": "https", ":authority": target, ":path": "/"}
    return list(head.items())


async def answers(wire, client):
    """Whether a ping behind all that is to be sent is answered; then all of it has been handled."""
    client.ping(bytes(8))
    try:
        await wire.send(client.data_to_send())
        while chunk := await asyncio.wait_for(wire.reader.read(65536), 5):
            events = client.receive_data(chunk)
            if any(isinstance(event, h2.events.PingAckReceived) for event in events):
                return True
    except ConnectionError:
        pass
    return False


async def test_a_client_that_pings_and_never_reads_is_cut(world, tls_origin, monkeypatch):
    """Each answer is as long as its question: 200 MB of pings would be 200 MB in our memory.

    With `check_unread` left out, pings were taken for twenty seconds, until the test ended.
    """
    monkeypatch.setattr(floods, "MAX_UNREAD_BYTES", 100_000)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", world.port))
    wire = Wire(*await asyncio.open_connection(sock=sock, limit=4096))
    head = f"Proxy-Authorization: {basic(*READER)}"
    assert (await wire.request("CONNECT", tls_origin.host, head)).status == 200
    context = ssl.create_default_context(cafile=str(world.ca_file))
    context.set_alpn_protocols(["h2"])
    await wire.start_tls(context, "127.0.0.1")
    client = h2.connection.H2Connection(h2.config.H2Configuration())
    client.initiate_connection()
    await wire.send(client.data_to_send())
    for _ in range(1000):
        client.ping(bytes(8))
    pings = client.data_to_send()

    async def flood():
        while world.enforcer.connections.count:
            await wire.send(pings)

    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(flood(), 20)
    assert world.enforcer.tallies.totals["limit.unread_bytes"] == 1
    assert world.enforcer.connections.count == 0


@pytest.mark.parametrize(
    ("frames", "size"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"\x00\x00\x08\x06\x00\x00\x00", 0, id="the beginning of a ping"),
        pytest.param(b"\x00\x40\x00\x00\x00\x00\x00\x00\x01" + bytes(500), 0, id="of data"),
        pytest.param(b"\x00\x40\x00\x01\x04\x00\x00\x00\x01" + bytes(500), 509, id="of a head"),
        pytest.param(b"\x00\x00\x02\x01\x00\x00\x00\x00\x01\x82\x84", 2, id="a head to continue"),
        pytest.param(
            b"\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82"
            b"\x00\x00\x03\x09\x00\x00\x00\x00\x01abc\x00\x00\x03\x09",
            8,
            id="continued, and the beginning of more",
        ),
        pytest.param(b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82", 0, id="a head that has ended"),
    ],
)
def test_what_is_kept_of_a_header_block_is_known(frames, size):
    buffer = FrameBuffer()
    buffer.max_frame_size = 1 << 17
    buffer.add_data(frames)
    list(buffer)
    http2 = SimpleNamespace(h2_conn=SimpleNamespace(incoming_buffer=buffer))
    assert header_block_bytes(http2) == size
