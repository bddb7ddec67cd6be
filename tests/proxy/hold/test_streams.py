"""Hold, where we read: what is under way stands still at both peers, and every byte goes on in its order."""

import asyncio
import os
import struct
from socket import SO_LINGER, SOL_SOCKET

import pytest
from support.client import serving, tunnel
from support.held import AGENT, READER, asked, lift, opened, same
from support.scripted import decoded, leave, stood_still, until

QUICK = 50


async def test_events_stand_still_and_none_is_lost(world, stage):
    _, client, origin = await asked(world, stage)
    await origin.head("Content-Type: text/event-stream\r\n")
    sent = bytearray()

    async def tick():
        for number in range(100_000):
            sent.extend(b"data: %d\n\n" % number)
            await origin.send(b"data: %d\n\n" % number)
            await asyncio.sleep(0.001)

    ticking = asyncio.get_running_loop().create_task(tick())
    await until(lambda: client.body)
    hold = world.hold(AGENT)
    await stood_still(lambda: len(client.got), lambda: len(origin.received))
    behind = len(sent)
    assert len(client.body) < behind
    lift(world, hold)
    await until(lambda: len(client.body) >= behind)
    ticking.cancel()
    assert sent.startswith(client.body)


@pytest.mark.parametrize("full", [False, True], ids=["flowing", "backed up"])
async def test_an_upload_goes_on_where_it_stood(world, stage, full):
    body = os.urandom(6_000_000)
    wire, client, origin = await asked(world, stage, "POST", f"Content-Length: {len(body)}")
    if full:
        origin.reading.clear()
    wire.writer.write(body)
    (connection,) = world.enforcer.connections.everything()
    if full:
        await stood_still(lambda: connection.bytes_up)
    else:
        await until(lambda: len(origin.body) > 100_000)
    hold = world.hold(AGENT)
    taken = connection.bytes_up
    origin.reading.set()
    await stood_still(lambda: len(origin.received), lambda: len(client.got))
    assert len(origin.body) < taken < len(body)
    assert connection.bytes_up == taken
    lift(world, hold)
    await until(lambda: len(origin.body) >= len(body))
    assert same(origin.body, body)
    await origin.answer()
    await until(lambda: client.got.endswith(b"ok"))


@pytest.mark.parametrize("full", [False, True], ids=["flowing", "backed up"])
async def test_a_download_goes_on_where_it_stood(world, stage, full):
    body = os.urandom(24_000_000)  # two kernels may take a few megabytes
    _, client, origin = await asked(world, stage)
    if full:
        client.reading.clear()
    await origin.head(f"Content-Length: {len(body)}\r\n")
    sending = asyncio.get_running_loop().create_task(origin.send(body))
    (connection,) = world.enforcer.connections.everything()
    if full:
        await stood_still(lambda: connection.bytes_down)
    else:
        await until(lambda: len(client.body) > 100_000)
    hold = world.hold(AGENT)
    client.reading.set()
    await stood_still(lambda: len(client.got), lambda: len(origin.received))
    assert len(client.body) < len(body)
    lift(world, hold)
    await until(lambda: len(client.body) >= len(body))
    assert same(client.body, body)
    await sending


async def test_hold_resume_hold_resume_loses_nothing_in_either_direction(world, stage):
    up, down = os.urandom(4_000_000), os.urandom(4_000_000)
    wire, client, origin = await asked(world, stage, "POST", f"Content-Length: {len(up)}")
    await origin.head(f"Content-Length: {len(down)}\r\n")
    wire.writer.write(up)
    origin.writer.write(down)
    for turn in range(QUICK):
        hold = world.hold(AGENT)
        await asyncio.sleep(0.002 * (turn % 2))
        lift(world, hold)
        await asyncio.sleep(0.002 * (turn % 3 > 0))
    await until(lambda: len(client.body) >= len(down) and len(origin.body) >= len(up))
    assert same(client.body, down)
    assert same(origin.body, up)


async def test_chunked_bodies_keep_their_chunks(world, stage):
    pieces = [os.urandom(size) for size in (1, 10, 5000, 70_000, 3)]
    coded = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
    wire, client, origin = await asked(world, stage, "POST", "Transfer-Encoding: chunked")
    await origin.head("Transfer-Encoding: chunked\r\n")
    for part in coded:
        hold = world.hold(AGENT)
        await wire.send(part[:2])
        await origin.send(part[:2])
        await asyncio.sleep(0.01)
        lift(world, hold)
        await wire.send(part[2:])
        await origin.send(part[2:])
    await until(lambda: client.got.endswith(b"\r\n0\r\n\r\n"))
    await until(lambda: origin.received.endswith(b"\r\n0\r\n\r\n"))
    assert decoded(client.body) == decoded(origin.body) == b"".join(pieces)


async def test_a_freeze_between_head_and_body(world, stage):
    _, client, origin = await asked(world, stage)
    await origin.head("Content-Length: 4\r\n")
    await until(lambda: client.got)
    hold = world.hold(AGENT)
    await origin.send(b"body")
    await stood_still(lambda: len(client.got))
    assert client.body == b""
    lift(world, hold)
    await until(lambda: client.body == b"body")


async def test_a_freeze_within_a_request_head(world, stage):
    wire = await opened(world, stage)
    await wire.send(b"GET /x HTTP/1.1\r\nHo")
    await asyncio.sleep(0.05)
    hold = world.hold(AGENT)
    await wire.send(f"st: {stage.host}\r\n\r\n".encode())
    await stood_still(lambda: len(stage.played))
    assert stage.played == []
    lift(world, hold)
    await (await stage.asked()).answer()
    assert (await wire.answer()).body == b"ok"


async def test_a_cut_during_the_hold_lets_nothing_out_and_tells_what_was_sent(world, stage):
    body = os.urandom(6_000_000)
    wire, _, origin = await asked(world, stage, "POST", f"Content-Length: {len(body)}")
    origin.reading.clear()
    wire.writer.write(body)
    (connection,) = world.enforcer.connections.everything()
    await stood_still(lambda: connection.bytes_up)
    hold = world.hold(AGENT)
    (held,) = hold.reports()
    cut = world.kill(AGENT)
    (flight,) = cut.reports()[0].instances[0].in_flight
    origin.reading.set()
    await until(lambda: origin.end)
    assert origin.end == "reset"
    assert (flight.sent, held.instances[0].in_flight[0].sent) == ("partly", "partly")
    assert flight.bytes_up_acked <= flight.bytes_up < len(body)
    assert len(origin.body) < flight.bytes_up
    assert held.residual_bytes_max > 0
    await wire.ended()


async def test_an_answer_that_ends_during_the_hold_is_whole_after_it(world, stage):
    _, client, origin = await asked(world, stage)
    await origin.head()
    await until(lambda: client.got)
    hold = world.hold(AGENT)
    await origin.send(b"x" * 300_000)
    origin.writer.close()
    await stood_still(lambda: len(client.got))
    lift(world, hold)
    await until(lambda: client.ended)
    assert client.body == b"x" * 300_000
    (instance,) = world.kill(AGENT).reports()[0].instances
    assert len(instance.completed_at) == 1


async def test_an_upstream_that_resets_during_the_hold_has_not_answered(world):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        await gone.wait()
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    gone = asyncio.Event()
    server, port = await serving(serve)
    wire = await tunnel(world.port, f"127.0.0.1:{port}", *READER)
    await wire.request("GET", "/", f"Host: 127.0.0.1:{port}", read=False)
    await asyncio.wait_for(wire.reader.readuntil(b"half of it"), 5)
    hold = world.hold(AGENT)
    gone.set()
    connections = world.enforcer.connections
    (connection,) = connections.everything()

    def noticed():
        connections.look_for_lost()
        return connection.lost

    await until(noticed)
    lifted = lift(world, hold)
    await wire.ended()
    server.close()
    (instance,) = lifted.reports()[-1].instances
    assert (instance.lost_while_held, instance.completed_at) == (1, ())


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_client_that_leaves_a_frozen_stream_takes_its_upstream_along(world, stage, how):
    wire, _, origin = await asked(world, stage)
    await origin.head("Content-Type: text/event-stream\r\n")
    hold = world.hold(AGENT)
    await origin.send(b"data: never read\n\n")
    leave(wire, how)

    def looked():
        world.enforcer.connections.look_for_lost()
        return not world.enforcer.connections.count and not world.inspector.handlers

    await until(looked)
    await until(lambda: origin.end)
    (instance,) = lift(world, hold).reports()[-1].instances
    assert instance.lost_while_held == 1
