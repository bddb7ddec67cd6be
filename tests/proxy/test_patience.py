"""A client inside TLS may be slow, but not for ever: to shake hands, to send a head, to ask for anything."""

from __future__ import annotations

import asyncio

import h2.events
import pytest
from support.client import Http2, tls_tunnel, tunnel
from support.scripted import until
from support.world import INTERCEPTED

READER = ("acme.prod.reader", INTERCEPTED)
AGENT = "agent://acme/prod/reader"


def hits(world):
    return {
        name: n for name, n in world.enforcer.tallies.totals.items() if name.startswith("limit.")
    }


async def inside(world, origin, *alpn):
    return await tls_tunnel(world.port, origin.host, *READER, world.ca_file, alpn=alpn)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a beginning"])
async def test_a_handshake_that_does_not_end(world, tls_origin, said):
    world.limit(handshake_s=0.1)
    wire = await tunnel(world.port, tls_origin.host, *READER)
    await wire.send(said)
    assert await wire.ended() == b""
    assert hits(world) == {"limit.handshake_s": 1}
    assert world.enforcer.connections.count == 0


@pytest.mark.parametrize("said", [b"GET / HT", b"GET / HTTP/1.1\r\nA: b\r\n"])
async def test_a_head_that_does_not_end(world, tls_origin, said):
    world.limit(head_s=0.1)
    wire = await inside(world, tls_origin)
    await wire.send(said)
    answer = await wire.answer()
    assert (answer.status, answer.json()["error"]) == (408, "request_timeout")
    assert await wire.ended() == b""
    assert hits(world) == {"limit.head_s": 1}


async def test_a_byte_now_and_then_does_not_make_a_head_last(world, tls_origin):
    """Slowloris: between any two bytes nothing is ever late."""
    world.limit(head_s=0.2)
    wire = await inside(world, tls_origin)

    async def drip():
        while True:
            await wire.send(b"a")
            await asyncio.sleep(0.02)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(drip(), 5)


async def test_the_second_head_of_a_connection_is_waited_for_no_longer(world, tls_origin):
    world.limit(head_s=0.1)
    wire = await inside(world, tls_origin)
    assert (await wire.request("GET", "/echo", f"Host: {tls_origin.host}")).status == 200
    await asyncio.sleep(0.4)  # between two requests nothing is late
    await wire.send(b"GET /echo HT")
    assert (await wire.answer()).status == 408


async def test_nothing_asked_at_all_is_ended_without_a_word(world, tls_origin):
    """A client that has connected ahead would take a word for the answer to what it asks next."""
    world.limit(head_s=0.1)
    wire = await inside(world, tls_origin)
    assert await wire.ended() == b""


async def test_a_long_answer_is_no_slow_client(world, tls_origin):
    world.limit(head_s=0.05, idle_s=0.05, handshake_s=2)
    wire = await inside(world, tls_origin)
    await wire.request("GET", "/events", f"Host: {tls_origin.host}", read=False)
    for _ in range(30):
        assert await asyncio.wait_for(wire.reader.readline(), 2)
    assert hits(world) == {}


async def goes_away(client) -> int:
    async with asyncio.timeout(3):
        while True:
            for event in await client.events():
                if isinstance(event, h2.events.ConnectionTerminated):
                    return int(event.error_code)


async def ping_for_ever(client):
    while True:
        client.connection.ping(bytes(8))
        await client.flush()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("has_asked", [False, True], ids=["never asked", "asked once"])
async def test_pings_alone_keep_no_connection(world, tls_origin, has_asked):
    world.limit(head_s=0.2, idle_s=0.2)
    client = Http2(await inside(world, tls_origin, "h2"), tls_origin.host)
    await client.flush()
    if has_asked:
        await client.begin("GET", end_stream=True)
        ended = False
        while not ended:
            ended = any(isinstance(e, h2.events.StreamEnded) for e in await client.events())
    pinging = asyncio.ensure_future(ping_for_ever(client))
    calm, no_error = 11, 0
    assert await goes_away(client) == (no_error if has_asked else calm)
    pinging.cancel()
    await asyncio.gather(pinging, return_exceptions=True)
    assert hits(world) == {"limit.idle_s" if has_asked else "limit.head_s": 1}
    await until(lambda: world.enforcer.connections.count == 0)


async def test_a_header_block_without_an_end(world, tls_origin):
    """CVE-2024-27316 and its kin: a HEADERS frame whose CONTINUATION never comes."""
    world.limit(head_s=0.2)
    client = Http2(await inside(world, tls_origin, "h2"), tls_origin.host)
    await client.flush()
    await client._wire.send(b"\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82")
    assert await goes_away(client) == 11
    assert hits(world) == {"limit.head_s": 1}


async def test_no_time_counts_while_an_order_holds(world, tls_origin):
    world.limit(head_s=0.1, idle_s=0.1)
    wire = await inside(world, tls_origin)
    order = world.hold(AGENT).ack.kills[0]
    await wire.request("GET", "/echo", f"Host: {tls_origin.host}", read=False)
    await asyncio.sleep(0.4)
    world.resume(order)
    assert (await wire.answer()).status == 200


async def test_of_many_that_ask_nothing_the_oldest_make_way(world, tls_origin, monkeypatch):
    """One agent could else have as many as handshakes are granted in the time of a head, of 70 KB each."""
    monkeypatch.setattr("haltwire_proxy.lobby.SPARED_S", 0.3)
    world.limit(agent_waiting=2)
    asking = await inside(world, tls_origin)
    assert (await asking.request("GET", "/echo", f"Host: {tls_origin.host}")).status == 200
    slow = [await inside(world, tls_origin) for _ in range(4)]
    for wire in slow[:3]:
        await wire.send(b"GET / HT")
    for wire in slow[:2]:
        answer = await wire.answer()
        assert (answer.status, answer.json()["error"]) == (429, "rate_exceeded")
    assert hits(world) == {"limit.agent_waiting": 2}
    assert (await asking.request("GET", "/echo", f"Host: {tls_origin.host}")).status == 200
    await slow[2].send(f"TP/1.1\r\nHost: {tls_origin.host}\r\n\r\n".encode())
    assert (await slow[2].answer()).status == 200
