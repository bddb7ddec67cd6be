"""mitmproxy's HTTP layer with our bounds: refusals at once, typed faults, nothing kept without limit."""

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
from support.client import Http2, serving, tls_tunnel, tunnel
from support.origin import Origin
from support.scripted import Stage, until
from support.world import INTERCEPTED

READER = ("acme.prod.reader~i-1", INTERCEPTED)


@pytest.fixture
async def stage(authority):
    async with Stage(authority.server_context("localhost")) as running:
        yield running


async def _open(world, origin, **options):
    target = f"localhost:{origin.port}"
    return await tls_tunnel(world.port, target, *READER, world.ca_file, **options), target


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


async def test_a_response_without_a_length_is_not_complete_when_it_is_cut(world, tls_origin):
    """To mitmproxy the end of the socket is the end of such a response."""
    wire, target = await _open(world, tls_origin)
    await wire.request("GET", "/events", f"Host: {target}", read=False)
    await asyncio.wait_for(wire.reader.readuntil(b"tick"), 2)
    killed = world.kill("agent://acme/prod/reader")
    await wire.ended()
    await asyncio.wait_for(tls_origin.connections[0].ended.wait(), 2)
    world.resume(killed.ack.kills[0])
    (instance,) = world.kill("agent://acme/prod/reader").reports()[0].instances
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

    server, port = await serving(serve)
    wire = await tunnel(world.port, f"127.0.0.1:{port}", *READER)
    await wire.request("GET", "/", f"Host: 127.0.0.1:{port}", read=False)
    await wire.ended()
    server.close()
    (instance,) = world.kill("agent://acme/prod/reader").reports()[0].instances
    assert instance.completed_at == ()


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

    server, port = await serving(serve)
    wire = await tunnel(world.port, f"127.0.0.1:{port}", *READER)
    await wire.request("GET", "/", f"Host: 127.0.0.1:{port}", read=False)
    answer = await wire.ended()
    server.close()
    if b"chunked" not in endless:
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"upstream_unreachable" in answer


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

    server, port = await serving(serve, authority.server_context("localhost", alpn=("h2",)))
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
    (flight,) = world.kill("agent://acme/prod/reader").reports()[0].instances[0].in_flight
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

    server, port = await serving(serve, authority.server_context("localhost"))
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
    received, enough = 0, sent + 5_000_000
    while received < enough:  # and it goes on as soon as the client reads
        for event in await client.events():
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data)
                client.connection.acknowledge_received_data(event.flow_controlled_length, 1)
        await client.flush()
    wire.close()
    server.close()


async def _kept_back(world, stage):
    """A response of which the client's HTTP/2 window has let only the beginning go."""
    wire = await tls_tunnel(world.port, stage.host, *READER, world.ca_file, alpn=("h2",))
    client = Http2(wire, stage.host)
    await client.begin("GET", end_stream=True)
    await (await stage.asked()).answer(b"x" * 200_000)
    (connection,) = world.enforcer.connections.everything()
    await until(lambda: connection.exchanges and connection.exchanges[0].bytes_down == 200_000)
    return client, connection


async def test_a_response_that_waits_for_its_clients_window_is_not_complete(world, stage):
    client, connection = await _kept_back(world, stage)
    await asyncio.sleep(0.1)
    assert len(connection.exchanges) == 1
    assert not connection.tally.completed
    client.connection.increment_flow_control_window(200_000)
    client.connection.increment_flow_control_window(200_000, 1)
    await client.flush()
    await until(lambda: connection.tally.completed)
    assert connection.exchanges == []


@pytest.mark.parametrize("how", ["stream", "connection"])
async def test_one_that_its_client_takes_back_has_ended_and_not_been_answered(world, stage, how):
    client, connection = await _kept_back(world, stage)
    if how == "stream":
        client.connection.reset_stream(1)
    else:
        client.connection.close_connection()
    await client.flush()
    await until(lambda: not connection.exchanges)
    assert not connection.tally.completed


async def test_an_answer_that_comes_early_is_complete_when_its_request_is(world, stage):
    """Until then its upload goes on, and an order must find it."""
    wire = await tls_tunnel(world.port, stage.host, *READER, world.ca_file)
    head = ("POST", "/x", f"Host: {stage.host}", "Content-Length: 8")
    await wire.request(*head, read=False)
    played = await stage.asked()
    await wire.send(b"half")
    await played.answer(b"early")
    assert (await wire.answer()).body == b"early"
    (connection,) = world.enforcer.connections.everything()
    (exchange,) = connection.exchanges
    assert not connection.tally.completed
    await wire.send(b"done")
    await played.has(b"halfdone")
    await until(lambda: connection.tally.completed)
    assert connection.exchanges == []
    assert exchange.request_complete


async def test_a_request_that_is_reset_in_one_read_with_its_head_goes_nowhere(world, stage):
    wire = await tls_tunnel(world.port, stage.host, *READER, world.ca_file, alpn=("h2",))
    client = Http2(wire, stage.host)
    head = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a.test")]
    head[3] = (":authority", stage.host)
    for number in range(1, 400, 2):
        client.connection.send_headers(number, head, end_stream=True)
        client.connection.reset_stream(number)
    client.connection.send_headers(401, head, end_stream=True)
    await client.flush()
    await (await stage.asked()).answer()
    await until(lambda: world.enforcer.tallies.all()[0].requests == 1)
    await asyncio.sleep(0.1)
    assert len(stage.played) == 1
