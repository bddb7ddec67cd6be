"""What is read inside TLS: every kind of live request is cut, every refusal is typed."""

import asyncio
import json
import ssl
import struct
import time
from socket import SO_LINGER, SOL_SOCKET

import h2.config
import h2.connection
import h2.events
import pytest
from haltwire_proxy import inspector
from support.client import Wire, tls_tunnel, tunnel
from support.origin import Origin
from support.world import INTERCEPTED, SECRET, basic

READER = ("acme.prod.reader~i-1", INTERCEPTED)


async def _open(world, origin, **options):
    target = f"localhost:{origin.port}"
    return await tls_tunnel(world.port, target, *READER, world.ca_file, **options), target


async def test_a_request_is_read_and_passed_on(world, tls_origin):
    wire, target = await _open(world, tls_origin)
    answer = await wire.request("POST", "/echo?q=1", f"Host: {target}", body=b"hello")
    assert (answer.status, answer.json()["length"], answer.json()["target"]) == (
        200,
        5,
        "/echo?q=1",
    )
    again = await wire.request("GET", "/echo", f"Host: {target}")
    assert again.status == 200
    wire.close()
    assert len(tls_origin.connections) == 1
    (usage,) = world.enforcer.tallies.all()
    assert (str(usage.agent), usage.instance, usage.requests) == (
        "agent://acme/prod/reader",
        "i-1",
        2,
    )


async def test_a_killed_agents_upload_is_refused_before_its_body_is_read(world, tls_origin):
    """Stock mitmproxy would first read the whole body, and answer 100 Continue."""
    world.kill("agent://acme/prod/reader")
    wire, target = await _open(world, tls_origin)
    head = f"POST /echo HTTP/1.1\r\nHost: {target}\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n\r\n"
    await wire.send(head.encode() + b"x" * 1000)
    answer = await wire.answer()
    assert (answer.status, answer.json()["error"]) == (403, "agent_killed")
    wire.close()
    assert tls_origin.connections == []


async def test_http_2_clients_get_the_typed_refusal_too(world, tls_origin):
    world.kill("agent://acme/prod/reader")
    process = await asyncio.create_subprocess_exec(
        "curl",
        "-sS",
        "--http2",
        "-w",
        "\n%{http_version} %{http_code}",
        "--cacert",
        str(world.ca_file),
        "-x",
        world.proxy_url(*READER),
        f"https://localhost:{tls_origin.port}/echo",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 10)
    body, _, summary = out.decode().rpartition("\n")
    assert summary == "2 403"
    assert json.loads(body)["error"] == "agent_killed"
    assert tls_origin.connections == []


@pytest.mark.parametrize("path", ["/hang", "/events"])
async def test_a_live_request_is_cut_on_both_sides(world, tls_origin, path):
    wire, target = await _open(world, tls_origin)
    await wire.request("GET", path, f"Host: {target}", read=False)
    await asyncio.wait_for(tls_origin.arrived.wait(), 2)
    enforced = world.kill("agent://acme/prod/reader")
    await wire.ended()
    await asyncio.wait_for(tls_origin.connections[0].ended.wait(), 2)
    assert enforced.ack.connections_cut == 1
    (instance,) = enforced.reports[0].instances
    (flight,) = instance.in_flight
    assert (flight.method, flight.host, flight.path) == ("GET", "localhost", path)
    assert flight.sent == "whole"
    assert instance.last_byte_at is not None


async def test_an_upload_in_progress_is_reported_as_partly_sent(world, authority):
    """The origin reads one half and stops; the rest waits in buffers and never arrives."""
    read = asyncio.Event()
    received = bytearray()
    reset = asyncio.Event()

    async def slow(reader, writer):
        while len(received) < 300_000:
            received.extend(await reader.read(8192))
        read.set()
        await reset.wait()
        try:
            while chunk := await reader.read(65536):
                received.extend(chunk)
        except (ConnectionError, ssl.SSLError):
            pass
        writer.transport.abort()

    server = await asyncio.start_server(
        slow, "127.0.0.1", 0, ssl=authority.server_context("localhost"), limit=16384
    )
    target = f"localhost:{server.sockets[0].getsockname()[1]}"
    wire = await tls_tunnel(world.port, target, *READER, world.ca_file)
    size = 30_000_000
    head = f"POST /send?to=ada HTTP/1.1\r\nHost: {target}\r\nContent-Length: {size}\r\n\r\n"
    wire.writer.write(head.encode() + b"x" * size)
    await asyncio.wait_for(read.wait(), 5)
    enforced = world.kill("agent://acme/prod/reader")
    (flight,) = enforced.reports[0].instances[0].in_flight
    assert flight.sent == "partly"
    assert flight.path == "/send"
    assert 300_000 <= flight.bytes_up_acked <= flight.bytes_up < size
    reset.set()
    await wire.ended()
    server.close()
    assert len(received) < size


async def test_an_upstream_that_is_not_trusted_is_a_typed_502(world, tmp_path):
    from support.authority import TestAuthority

    stranger = TestAuthority(tmp_path)
    async with Origin(stranger.server_context("localhost")) as origin:
        wire, target = await _open(world, origin)
        answer = await wire.request("GET", "/echo", f"Host: {target}")
        wire.close()
        assert (answer.status, answer.json()["error"]) == (502, "upstream_unreachable")
        assert origin.requests == []


async def test_an_upstream_that_is_not_there_is_a_typed_502(world):
    wire = await tls_tunnel(world.port, "localhost:1", *READER, world.ca_file)
    answer = await wire.request("GET", "/echo", "Host: localhost:1")
    wire.close()
    assert (answer.status, answer.json()["error"]) == (502, "upstream_unreachable")


async def test_bytes_that_are_neither_tls_nor_http_pass_unread_and_are_cut(world):
    async def echo(reader, writer):
        while chunk := await reader.read(100):
            writer.write(chunk)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    wire = await tunnel(world.port, target, *READER)
    await wire.send(b"\x00\x01\x02\x03")
    assert await asyncio.wait_for(wire.reader.readexactly(4), 2) == b"\x00\x01\x02\x03"
    world.kill("agent://acme/prod/reader")
    assert await wire.ended() == b""
    server.close()


async def test_plain_http_inside_connect_is_read_as_http(world, origin):
    wire = await tunnel(world.port, origin.host, *READER)
    answer = await wire.request("GET", "/echo", f"Host: {origin.host}")
    assert answer.status == 200
    wire.close()


async def test_a_handshake_in_progress_is_cut(world, tls_origin):
    wire = await tunnel(world.port, f"localhost:{tls_origin.port}", *READER)
    await wire.send(b"\x16\x03\x01")
    world.kill("agent://acme/prod/reader")
    assert await wire.ended() == b""


async def test_a_fault_inside_mitmproxy_cuts_the_connection(world, tls_origin, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(inspector, "_next_layer", fail)
    wire = await tunnel(world.port, f"localhost:{tls_origin.port}", *READER)
    await wire.send(b"\x16\x03\x01\x00\x05hello")
    assert await wire.ended() == b""
    assert tls_origin.connections == []
    assert world.enforcer.connections.count == 0


async def test_nothing_is_left_behind(world, tls_origin):
    for _ in range(3):
        wire, target = await _open(world, tls_origin)
        await wire.request("GET", "/echo", f"Host: {target}")
        wire.close()
    async with asyncio.timeout(2):
        while world.inspector.handlers:
            await asyncio.sleep(0.01)
    assert world.enforcer.connections.count == 0


async def test_plain_requests_of_a_killed_agent_are_refused_on_a_live_connection(world, origin):
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    wire = await Wire.open(world.port)
    target = f"{origin.url}/echo"
    assert (await wire.request("GET", target, f"Host: {origin.host}", auth)).status == 200
    enforced = world.kill("agent://acme/prod/mailer")
    assert enforced.ack.connections_cut == 1
    assert await wire.ended() == b""


async def _serving(handler, context=None, **options):
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context, **options)
    return server, server.sockets[0].getsockname()[1]


async def test_a_killed_agents_unreadable_bytes_are_not_dialled_for(world, origin, monkeypatch):
    """They pass no hook: the gate has to be asked before the dial, not only after it."""
    dialled = []
    dial = world.dialer.dial
    monkeypatch.setattr(world.dialer, "dial", lambda *to: dialled.append(to) or dial(*to))
    world.kill("agent://acme/prod/reader")
    wire = await tunnel(world.port, origin.host, *READER)
    await wire.send(b"\x00\x01\x02\x03")
    assert await wire.ended() == b""
    assert dialled == []
    assert origin.connections == []


async def test_bytes_that_pass_unread_are_told_as_such(world, origin):
    wire = await tunnel(world.port, origin.host, *READER)
    await wire.send(b"\x00\x01\x02\x03")
    async with asyncio.timeout(2):
        while not origin.connections:
            await asyncio.sleep(0.01)
    enforced = world.kill("agent://acme/prod/reader")
    await wire.ended()
    (instance,) = enforced.reports[0].instances
    (flight,) = instance.in_flight
    assert (flight.method, flight.sent, flight.path) == ("CONNECT", "unknown", None)
    assert not instance.completed_known


async def test_a_response_without_a_length_is_not_complete_when_it_is_cut(world, tls_origin):
    """To mitmproxy the end of the socket is the end of such a response."""
    wire, target = await _open(world, tls_origin)
    await wire.request("GET", "/events", f"Host: {target}", read=False)
    await asyncio.wait_for(wire.reader.readuntil(b"tick"), 2)
    killed = world.kill("agent://acme/prod/reader")
    await wire.ended()
    await asyncio.wait_for(tls_origin.connections[0].ended.wait(), 2)
    world.resume(killed.ack.kills[0])
    (instance,) = world.kill("agent://acme/prod/reader").reports[0].instances
    assert instance.completed_at == ()


async def test_a_response_without_a_length_is_not_complete_when_its_upstream_resets(world):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        await writer.drain()
        await asyncio.sleep(0.05)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    server, port = await _serving(serve)
    wire = await tunnel(world.port, f"127.0.0.1:{port}", *READER)
    await wire.request("GET", "/", f"Host: 127.0.0.1:{port}", read=False)
    await wire.ended()
    server.close()
    (instance,) = world.kill("agent://acme/prod/reader").reports[0].instances
    assert instance.completed_at == ()


async def test_a_cut_leaves_no_task_behind(world, tls_origin):
    """mitmproxy's idle timer would sleep on for ten minutes, with all of its connection in memory."""
    before = asyncio.all_tasks()
    for _ in range(3):
        wire, target = await _open(world, tls_origin)
        await wire.request("GET", "/hang", f"Host: {target}", read=False)
        await asyncio.wait_for(tls_origin.arrived.wait(), 2)
        tls_origin.arrived.clear()
        killed = world.kill("agent://acme/prod/reader")
        await wire.ended()
        world.resume(killed.ack.kills[0])
    async with asyncio.timeout(2):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def test_upstreams_that_have_gone_are_not_remembered(world):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server, port = await _serving(serve)
    wire = await Wire.open(world.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    host = f"127.0.0.1:{port}"
    for _ in range(5):
        assert (await wire.request("GET", f"http://{host}/", f"Host: {host}", auth)).status == 200
        await asyncio.sleep(0.02)
    (connection,) = world.enforcer.connections.everything()
    assert len(connection.upstreams) == 1
    wire.close()
    server.close()


async def test_a_head_that_does_not_end_is_not_waited_for(world, tls_origin):
    wire, _ = await _open(world, tls_origin)
    await wire.send(b"GET /echo HTTP/1.1\r\n")
    try:
        async with asyncio.timeout(5):
            for _ in range(100):
                await wire.send(b"X-A: " + b"a" * 60_000 + b"\r\n")
    except (ConnectionError, ssl.SSLError):
        pass
    else:
        pytest.fail("6 MB of head were taken")
    assert world.enforcer.connections.count == 0
    assert tls_origin.connections == []


@pytest.mark.parametrize(
    "endless",
    [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"],
)
async def test_an_upstreams_endless_line_is_a_fault_of_the_upstream(world, endless):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(endless)
        try:
            while True:
                writer.write(b"a" * 60_000)
                await writer.drain()
        except ConnectionError:
            pass

    server, port = await _serving(serve)
    wire = await tunnel(world.port, f"127.0.0.1:{port}", *READER)
    await wire.request("GET", "/", f"Host: 127.0.0.1:{port}", read=False)
    answer = await wire.ended()
    server.close()
    if b"chunked" not in endless:
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"upstream_unreachable" in answer


async def test_a_download_that_outgrows_its_upload_does_not_block_it(world):
    """Both directions of mitmproxy wait for both writers, and then for each other."""

    async def grow(reader, writer):
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk * 4)
                await writer.drain()
        except ConnectionError:
            pass

    server, port = await _serving(grow, limit=16384)
    wire = await tunnel(world.port, f"127.0.0.1:{port}", *READER)
    pieces, received = 300, 0

    async def feed():
        for _ in range(pieces):
            await wire.send(b"\0" * 65536)

    async def eat():
        nonlocal received
        while received < pieces * 65536 * 4:
            received += len(await wire.reader.read(65536))

    async with asyncio.timeout(20):
        await asyncio.gather(feed(), eat())
    wire.close()
    server.close()


async def test_what_is_uploaded_while_an_upstream_is_dialled_waits_outside(world):
    world.dialer._lookups._resolve = lambda *_: time.sleep(1) or []
    wire = await tls_tunnel(world.port, "slow.test:443", *READER, world.ca_file)
    await wire.send(b"POST /x HTTP/1.1\r\nHost: slow.test\r\nContent-Length: 900000000\r\n\r\n")
    sent = 0
    try:
        async with asyncio.timeout(0.7):
            while sent < 64_000_000:
                await wire.send(b"x" * 65536)
                sent += 65536
    except TimeoutError:
        pass
    wire.close()
    assert sent < 64_000_000


class Http2:
    """An HTTP/2 client that shows its windows."""

    def __init__(self, wire, target):
        self._wire, self._target = wire, target
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration())
        self.connection.initiate_connection()

    async def begin(self, method, *, end_stream):
        head = {":method": method, ":scheme": "https", ":authority": self._target, ":path": "/x"}
        self.connection.send_headers(1, list(head.items()), end_stream=end_stream)
        await self.flush()

    async def flush(self):
        await self._wire.send(self.connection.data_to_send())

    async def events(self):
        data = await asyncio.wait_for(self._wire.reader.read(65536), 2)
        return self.connection.receive_data(data)


async def test_an_upload_that_waits_for_an_http_2_window_was_sent_partly(world, authority):
    """mitmproxy takes all of it at once; what the upstream's window keeps back has gone nowhere."""
    taken = []

    async def serve(reader, writer):
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        server.initiate_connection()
        while data := await reader.read(65536):
            for event in server.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    taken.append(len(event.data))
            writer.write(server.data_to_send())

    server, port = await _serving(serve, authority.server_context("localhost", alpn=("h2",)))
    target = f"localhost:{port}"
    wire = await tls_tunnel(world.port, target, *READER, world.ca_file, alpn=("h2",))
    client = Http2(wire, target)
    await client.begin("POST", end_stream=False)
    while client.connection.local_flow_control_window(1) < 200_000:
        await client.events()
    for rest in range(9, -1, -1):
        client.connection.send_data(1, b"x" * 16_000, end_stream=rest == 0)
    await client.flush()
    async with asyncio.timeout(2):
        while sum(taken) < 65535:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    (flight,) = world.kill("agent://acme/prod/reader").reports[0].instances[0].in_flight
    server.close()
    assert (flight.sent, flight.bytes_up) == ("partly", 160_000)
    assert flight.bytes_up_acked <= sum(taken) == 65535


async def test_a_download_that_waits_for_an_http_2_window_waits_at_its_origin(world, authority):
    sent = 0

    async def serve(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
        except ConnectionError:
            pass

    server, port = await _serving(serve, authority.server_context("localhost"))
    target = f"localhost:{port}"
    wire = await tls_tunnel(world.port, target, *READER, world.ca_file, alpn=("h2",))
    client = Http2(wire, target)
    await client.begin("GET", end_stream=True)
    async with asyncio.timeout(10):
        before = -1
        while before != sent or not sent:
            before = sent
            await asyncio.sleep(0.3)
    assert sent < 64_000_000
    received = 0
    while received < sent:
        for event in await client.events():
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data)
                client.connection.acknowledge_received_data(event.flow_controlled_length, 1)
        await client.flush()
    wire.close()
    server.close()
