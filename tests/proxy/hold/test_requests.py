"""Hold, where we read: a request waits inside, its upstream hears nothing, and a client may give up."""

import asyncio
import gc
import hashlib
import os

import h2.events
import pytest
from haltwire_proxy.streams import Http
from haltwire_proxy.transport import GatedWriter
from support.client import Http2, Wire, tunnel
from support.held import AGENT, READER, lift, opened
from support.scripted import QUIET_S, Stage, decoded, leave, until
from support.world import SECRET, basic

WAITING_BYTES = 640 * 1024
"What may be kept in memory for one that waits."


@pytest.fixture
async def plain_stage():
    async with Stage() as running:
        yield running


async def asking(world, stage, method="GET", **options):
    wire = await opened(world, stage)
    await wire.request(method, "/x", f"Host: {stage.host}", read=False, **options)
    await waiting(world)
    return wire


async def waiting(world, count=1):
    connections = world.enforcer.connections
    await until(lambda: sum(len(one.waiters) for one in connections.everything()) == count)


async def silent(wire):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.reader.read(1), QUIET_S)


def lost(enforced):
    return sum(instance.lost_while_held for instance in enforced.reports()[-1].instances)


async def test_tls_is_answered_and_the_request_waits_inside(world, stage):
    hold = world.hold(AGENT)
    wire = await asking(world, stage)
    await silent(wire)
    assert stage.played == []
    lift(world, hold)
    await (await stage.asked()).answer(b"late")
    assert (await wire.answer()).body == b"late"
    (usage,) = world.enforcer.tallies.all()
    assert (usage.requests, usage.refused) == (1, 0)


async def test_a_plain_request_waits_and_nothing_of_ours_reaches_its_origin(world, plain_stage):
    hold = world.hold("agent://acme/prod/mailer")
    wire = await Wire.open(world.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
    fields = (f"Host: {plain_stage.host}", auth, "X-Agent-Trace: 1")
    await wire.request("GET", f"http://{plain_stage.host}/x", *fields, read=False)
    await waiting(world)
    lift(world, hold)
    played = await plain_stage.asked()
    assert b"agent" not in played.received.lower()
    assert b"authorization" not in played.received.lower()
    await played.answer()
    assert (await wire.answer()).status == 200


async def test_an_idle_upstream_is_let_go_of_and_dialled_anew(world, stage):
    """Its peer would give it up during the hold, and the request that waited would run into that."""
    wire = await opened(world, stage)
    await wire.request("GET", "/x", f"Host: {stage.host}", read=False)
    await (await stage.asked()).answer()
    await wire.answer()
    hold = world.hold(AGENT)
    await wire.request("GET", "/y", f"Host: {stage.host}", read=False)
    await waiting(world)
    await until(lambda: stage.played[0].end)
    assert b"/y" not in stage.played[0].received
    lift(world, hold)
    await (await stage.asked(2)).answer(b"second")
    assert (await wire.answer()).body == b"second"


@pytest.mark.parametrize("chunk", [65536, 1])
async def test_what_a_waiting_client_sends_ahead_is_bounded_and_all_arrives(world, stage, chunk):
    body = os.urandom(3_000_000 if chunk > 1 else 100_000)
    hold = world.hold(AGENT)
    wire = await opened(world, stage)
    head = f"POST /x HTTP/1.1\r\nHost: {stage.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    coded = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    wire.writer.write(head.encode() + coded + b"0\r\n\r\n")
    await waiting(world)
    await asyncio.sleep(QUIET_S)
    (handler,) = inspected(world)
    assert in_memory(handler) < WAITING_BYTES
    lift(world, hold)
    played = await stage.asked()
    await until(lambda: played.received.endswith(b"\r\n0\r\n\r\n"))
    assert hashlib.sha256(decoded(played.body)).digest() == hashlib.sha256(body).digest()
    await played.answer()
    assert (await wire.answer()).status == 200


async def test_what_an_http_2_client_sends_ahead_is_bounded_and_all_arrives(world, stage):
    body = os.urandom(3_000_000)
    hold = world.hold(AGENT)
    wire = await opened(world, stage, alpn=("h2",))
    client = Http2(wire, stage.host)
    await client.begin("POST", end_stream=False)
    while client.connection.local_flow_control_window(1) < len(body):
        await client.events()
    for start in range(0, len(body), 10_000):
        client.connection.send_data(1, body[start : start + 10_000])
    client.connection.end_stream(1)
    wire.writer.write(client.connection.data_to_send())
    await waiting(world)
    await asyncio.sleep(QUIET_S)
    (handler,) = inspected(world)
    assert in_memory(handler) < WAITING_BYTES
    lift(world, hold)
    played = await stage.asked()
    await until(lambda: played.received.endswith(b"\r\n0\r\n\r\n"))
    assert hashlib.sha256(decoded(played.body)).digest() == hashlib.sha256(body).digest()


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_client_that_gives_up_is_forgotten_at_once_and_counted(world, stage, how):
    hold = world.hold(AGENT)
    wire = await asking(world, stage)
    leave(wire, how)
    await until(lambda: not world.enforcer.connections.count and not world.inspector.handlers)
    assert lost(lift(world, hold)) == 1
    await asyncio.sleep(QUIET_S)
    assert stage.played == []


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_one_that_gives_up_in_the_middle_of_its_body_is_forgotten(world, stage, how):
    hold = world.hold(AGENT)
    wire = await opened(world, stage)
    head = f"POST /x HTTP/1.1\r\nHost: {stage.host}\r\nContent-Length: 9000\r\n\r\n"
    await wire.send(head.encode() + b"part of it")
    await waiting(world)
    leave(wire, how)
    await until(lambda: not world.enforcer.connections.count and not world.inspector.handlers)
    assert lost(lift(world, hold)) == 1
    assert stage.played == []


async def test_one_that_resets_what_we_no_longer_read_is_found_by_looking(world, stage):
    hold = world.hold(AGENT)
    wire = await opened(world, stage)
    head = f"POST /x HTTP/1.1\r\nHost: {stage.host}\r\nContent-Length: 90000000\r\n\r\n"
    wire.writer.write(head.encode() + b"x" * 20_000_000)
    await waiting(world)
    await asyncio.sleep(QUIET_S)
    leave(wire, "reset")

    def looked():
        world.enforcer.connections.look_for_lost()
        return not world.enforcer.connections.count and not world.inspector.handlers

    await until(looked)
    assert lost(lift(world, hold)) == 1
    assert stage.played == []


async def test_each_http_2_stream_waits_and_is_taken_back_on_its_own(world, authority):
    async with Stage(authority.server_context("localhost")) as stage:
        hold = world.hold(AGENT)
        wire = await opened(world, stage, alpn=("h2",))
        client = Http2(wire, stage.host)
        for number in (1, 3, 5):
            ask(client, number)
        client.connection.reset_stream(5)  # in one piece with its head
        await client.flush()
        await waiting(world, 2)
        client.connection.reset_stream(1)
        await client.flush()
        await waiting(world, 1)
        lifted = lift(world, hold)
        played = await stage.asked()
        assert b"GET /3 " in played.received
        await played.answer()
        done = []
        while not done:
            done = [e for e in await client.events() if isinstance(e, h2.events.StreamEnded)]
        assert done[0].stream_id == 3
        assert len(stage.played) == 1
        assert lost(lifted) == 1
        (usage,) = world.enforcer.tallies.all()
        assert usage.requests == 1


async def test_a_waiting_request_that_becomes_killed_is_cut(world, stage):
    hold = world.hold(AGENT)
    wire = await asking(world, stage)
    assert world.kill(AGENT).ack.connections_cut == 1
    assert await wire.ended() == b""
    lift(world, hold)
    await asyncio.sleep(QUIET_S)
    assert stage.played == []


async def test_a_waiting_request_that_comes_under_a_drain_is_refused(world, stage, monkeypatch):
    monkeypatch.setattr("haltwire_proxy.inspector.LINGER_S", 0.1)
    world.hold(AGENT)
    wire = await opened(world, stage)
    head = f"POST /x HTTP/1.1\r\nHost: {stage.host}\r\nContent-Length: 9000\r\n\r\n"
    await wire.send(head.encode() + b"part of it")
    await waiting(world)
    world.drain(AGENT)
    answer = await wire.answer()
    assert (answer.status, answer.json()["error"]) == (403, "agent_killed")
    assert await wire.ended() == b""
    assert stage.played == []


async def test_what_is_refused_while_its_client_stands_still_is_told_when_it_goes_on(
    world, stage, monkeypatch
):
    """It had been let through, and its upstream was being dialled, when the hold came; then a drain."""
    dialling = asyncio.Event()

    async def hang(*_):
        dialling.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.dialer, "dial", hang)
    wire = await opened(world, stage)
    await wire.request("GET", "/x", f"Host: {stage.host}", read=False)
    await asyncio.wait_for(dialling.wait(), 5)
    hold = world.hold(AGENT)
    await waiting(world)
    world.drain("agent://acme/prod/*")
    await silent(wire)
    lift(world, hold)
    answer = await wire.answer()
    assert (answer.status, answer.json()["error"]) == (403, "agent_killed")
    assert await wire.ended() == b""
    await until(lambda: not world.inspector.handlers)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (421, ["Host: other.test"]),
        (400, ["Host: {}", "Content-Length: 4", "Transfer-Encoding: chunked"]),
    ],
)
async def test_what_is_wrong_in_any_case_is_told_at_once(world, stage, status, headers):
    world.hold(AGENT)
    wire = await opened(world, stage)
    answer = await wire.request("POST", "/x", *(line.format(stage.host) for line in headers))
    assert answer.status == status
    assert stage.played == []


async def test_a_fault_while_waiting_refuses(world, stage, monkeypatch, caplog):
    hold = world.hold(AGENT)
    wire = await asking(world, stage)

    def fail(_):
        raise RuntimeError("injected")

    monkeypatch.setattr("haltwire_proxy.addon.another_sni", fail)
    lift(world, hold)
    answer = await wire.answer()
    assert (answer.status, answer.json()["error"]) == (503, "enforcement_failed")
    assert stage.played == []


async def test_bytes_that_nobody_reads_wait_before_the_dial(world, plain_stage):
    hold = world.hold(AGENT)
    wire = await tunnel(world.port, plain_stage.host, *READER)
    await wire.send(b"\0\1\2\3")
    await waiting(world)
    assert plain_stage.played == []
    lift(world, hold)
    played = await plain_stage.connection()
    await played.has(b"\0\1\2\3")
    await played.send(b"\4")
    assert await asyncio.wait_for(wire.reader.readexactly(1), 2) == b"\4"


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_bytes_whose_sender_gives_up_are_forgotten(world, plain_stage, how):
    hold = world.hold(AGENT)
    wire = await tunnel(world.port, plain_stage.host, *READER)
    await wire.send(b"\0\1\2\3")
    await waiting(world)
    leave(wire, how)
    await until(lambda: not world.enforcer.connections.count and not world.inspector.handlers)
    assert lost(lift(world, hold)) == 1
    assert plain_stage.played == []


async def test_nothing_is_left_of_two_hundred_that_have_given_up(world, stage):
    hold = world.hold(AGENT)
    before = len(asyncio.all_tasks())
    for _ in range(4):
        wires = await asyncio.gather(*(opened(world, stage) for _ in range(50)))
        for wire in wires:
            await wire.request("GET", "/x", f"Host: {stage.host}", read=False)
        await waiting(world, 50)
        for number, wire in enumerate(wires):
            leave(wire, ("end", "reset")[number % 2])
        await until(lambda: not world.enforcer.connections.count and not world.inspector.handlers)
        assert world.enforcer.connections.held == {}
        await until(lambda: len(asyncio.all_tasks()) <= before)
    assert lost(lift(world, hold)) == 200
    assert stage.played == []

    def is_gone():
        gc.collect()
        return not [one for one in gc.get_objects() if isinstance(one, (Http, GatedWriter))]

    await until(is_gone)  # each connection is taken apart in its turn


def ask(client, number):
    head = {
        ":method": "GET",
        ":scheme": "https",
        ":authority": client._target,
        ":path": f"/{number}",
    }
    client.connection.send_headers(number, list(head.items()), end_stream=True)


def inspected(world):
    return [
        task.get_coro().cr_frame.f_locals["handler"] for task in tuple(world.inspector.handlers)
    ]


def in_memory(handler):
    """All that is kept of a client's request, in whichever layer."""
    http = next(one for one in handler.layer.context.layers if hasattr(one, "streams"))
    reader = handler.transports[handler.client].reader
    queued = [event for one in http.streams.values() for event in one._paused_event_queue]
    size = sum(len(getattr(event, "data", b"")) + 200 for event in queued)
    return size + len(reader._buffer) + len(getattr(http.protocol(handler.client), "buf", b""))
