"""What is read inside TLS: every kind of live request is cut, every refusal is typed."""

import asyncio
import ssl

import pytest
from haltwire_proxy import layers
from support.client import Wire, serving, tls_tunnel, tunnel
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


@pytest.mark.parametrize("path", ["/hang", "/events"])
async def test_a_live_request_is_cut_on_both_sides(world, tls_origin, path):
    wire, target = await _open(world, tls_origin)
    await wire.request("GET", path, f"Host: {target}", read=False)
    await asyncio.wait_for(tls_origin.arrived.wait(), 2)
    enforced = world.kill("agent://acme/prod/reader")
    await wire.ended()
    await asyncio.wait_for(tls_origin.connections[0].ended.wait(), 2)
    assert enforced.ack.connections_cut == 1
    (instance,) = enforced.reports()[0].instances
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
    (flight,) = enforced.reports()[0].instances[0].in_flight
    assert flight.sent == "partly"
    assert flight.path == "/send"
    assert 300_000 <= flight.bytes_up_acked <= flight.bytes_up < size
    reset.set()
    await wire.ended()
    server.close()
    assert len(received) < size


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

    monkeypatch.setattr(layers, "choose", fail)
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
    (instance,) = enforced.reports()[0].instances
    (flight,) = instance.in_flight
    assert (flight.method, flight.sent, flight.path) == ("CONNECT", "unknown", None)
    assert not instance.completed_known


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

    server, port = await serving(serve)
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


async def test_a_download_that_outgrows_its_upload_does_not_block_it(world):
    """Both directions of mitmproxy wait for both writers, and then for each other."""

    async def grow(reader, writer):
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk * 4)
                await writer.drain()
        except ConnectionError:
            pass

    server, port = await serving(grow, limit=16384)
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
