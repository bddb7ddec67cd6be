"""Hold, where we read, for what is more than a request and its answer: upgrades, WebSocket, gRPC, HTTP/2."""

import asyncio
import os
import ssl

import aiohttp
import grpc
import h2.events
import pytest
from aiohttp import web
from support.client import Http2
from support.held import AGENT, READER, asked, lift, opened, same
from support.rpc import SERVICE, RpcServer
from support.scripted import stood_still, until


async def test_bytes_behind_an_upgrade(world, stage):
    up, down = os.urandom(3_000_000), os.urandom(3_000_000)
    wire, client, origin = await asked(world, stage, "GET", "Connection: Upgrade", "Upgrade: raw")
    await origin.head("Connection: Upgrade\r\nUpgrade: raw\r\n", "101 Switching Protocols")
    await until(lambda: client.got)
    wire.writer.write(up)
    origin.writer.write(down)
    await until(lambda: client.body and origin.body)
    hold = world.hold(AGENT)
    await stood_still(lambda: len(client.got), lambda: len(origin.received))
    assert len(client.body) < len(down)
    lift(world, hold)
    await until(lambda: len(client.body) >= len(down) and len(origin.body) >= len(up))
    assert same(client.body, down)
    assert same(origin.body, up)


async def test_websocket_messages_in_both_directions(world, authority):
    async def serve(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"{message.data} {'x' * 500}")
        return socket

    app = web.Application()
    app.router.add_get("/ws", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server_context("localhost"))
    await site.start()
    url = f"wss://localhost:{runner.addresses[0][1]}/ws"
    proxy, trust = world.proxy_url(*READER), ssl.create_default_context(cafile=str(world.ca_file))
    got = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, proxy=proxy, ssl=trust) as socket,
    ):

        async def talk():
            for number in range(2000):
                await socket.send_str(str(number))

        async def listen():
            while len(got) < 2000:
                got.append(await socket.receive_str())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(talk())
            tasks.create_task(listen())
            await until(lambda: len(got) > 10)
            hold = world.hold(AGENT)
            await stood_still(lambda: len(got))
            assert len(got) < 2000
            lift(world, hold)
    await runner.cleanup()
    assert got == [f"{number} {'x' * 500}" for number in range(2000)]


async def test_grpc_messages_in_both_directions(world, authority):
    async with RpcServer(authority.certificate("localhost")) as server:
        credentials = grpc.ssl_channel_credentials(world.ca_file.read_bytes())
        options = [("grpc.http_proxy", world.proxy_url(*READER))]
        target = f"localhost:{server.port}"
        async with grpc.aio.secure_channel(target, credentials, options) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Both")()
            got = []

            async def talk():
                for number in range(500):
                    await call.write(b"%d" % number * 100)
                await call.done_writing()

            async def listen():
                async for message in call:
                    got.append(message)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(talk())
                tasks.create_task(listen())
                await until(lambda: len(got) > 10)
                hold = world.hold(AGENT)
                await stood_still(lambda: len(got), lambda: server.messages)
                assert len(got) < 500
                lift(world, hold)
            assert got == [b"%d" % number * 100 for number in range(500)]


async def test_a_freeze_while_a_clients_http_2_window_is_shut(world, stage):
    body = os.urandom(400_000)
    wire = await opened(world, stage, alpn=("h2",))
    client = Http2(wire, stage.host)
    await client.begin("GET", end_stream=True)
    origin = await stage.asked()
    await origin.head(f"Content-Length: {len(body)}\r\n")
    await origin.send(body)
    got = bytearray()

    async def take(acknowledge):
        for event in await client.events():
            if isinstance(event, h2.events.DataReceived):
                got.extend(event.data)
                if acknowledge:
                    client.connection.acknowledge_received_data(event.flow_controlled_length, 1)
        await client.flush()

    while len(got) < 65535:
        await take(acknowledge=False)
    hold = world.hold(AGENT)
    client.connection.increment_flow_control_window(1_000_000)
    client.connection.increment_flow_control_window(1_000_000, 1)
    await client.flush()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.reader.readexactly(1_000), 0.3)
    assert len(got) == 65535
    lift(world, hold)
    while len(got) < len(body):
        await take(acknowledge=True)
    assert same(got, body)


async def test_streams_of_a_frozen_http_2_connection_and_new_ones(world, stage):
    """What is under way stands still, what comes new waits, and all goes on."""
    wire = await opened(world, stage, alpn=("h2",))
    client = Http2(wire, stage.host)
    await client.begin("GET", end_stream=True)
    first = await stage.asked()
    await first.head("Content-Length: 6\r\n")
    hold = world.hold(AGENT)
    head = [*_PSEUDO, (":authority", stage.host)]
    client.connection.send_headers(3, head, end_stream=True)
    await client.flush()
    await first.send(b"first.")
    await stood_still(lambda: len(stage.played), lambda: len(first.received))
    lift(world, hold)
    await (await stage.asked(2)).answer(b"second")
    got = {}
    while b"".join(map(bytes, got.values())) not in (b"first.second", b"secondfirst."):
        for event in await client.events():
            if isinstance(event, h2.events.DataReceived):
                got.setdefault(event.stream_id, bytearray()).extend(event.data)
    assert got == {1: b"first.", 3: b"second"}


_PSEUDO = [(":method", "GET"), (":scheme", "https"), (":path", "/y")]


async def test_what_a_drain_lets_finish_is_not_ended_by_what_it_refuses(world, stage, monkeypatch):
    """The refused stream's connection would else be closed after a moment, with all that is on it."""
    monkeypatch.setattr("haltwire_proxy.inspector.LINGER_S", 0.05)
    wire = await opened(world, stage, alpn=("h2",))
    client = Http2(wire, stage.host)
    await client.begin("GET", end_stream=True)
    first = await stage.asked()
    world.drain(AGENT)
    client.connection.send_headers(3, [*_PSEUDO, (":authority", stage.host)], end_stream=True)
    await client.flush()
    ended = {}
    while 3 not in ended:
        note(ended, await client.events())
    await asyncio.sleep(0.2)
    await first.answer()
    while 1 not in ended:
        note(ended, await client.events())
    assert ended == {3: b"403", 1: b"200"}
    await wire.ended()


def note(ended, events):
    for event in events:
        if isinstance(event, h2.events.ResponseReceived):
            ended[event.stream_id] = dict(event.headers)[b":status"]
