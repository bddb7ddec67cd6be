"""One agent's load is refused where its limit is, with a type and a count; another's is not."""

from __future__ import annotations

import asyncio

import pytest
from haltwire.wire.names import AgentRef
from haltwire_proxy.limits import BURST_S
from support.client import Wire, tls_tunnel, tunnel
from support.scripted import until
from support.world import BYSTANDER, INTERCEPTED, SECRET, basic

AGENT = AgentRef.parse("agent://acme/prod/reader")
MAILER, READER = ("acme.prod.mailer", SECRET), ("acme.prod.reader", INTERCEPTED)
BYSTANDS = ("acme.prod.bystander", BYSTANDER)


async def connect(world, target, label, secret):
    wire = await Wire.open(world.port)
    credentials = f"Proxy-Authorization: {basic(label, secret)}"
    return wire, await wire.request("CONNECT", target, f"Host: {target}", credentials)


def is_too_many(answer, agent):
    told = answer.json()
    assert (answer.status, told["error"], answer.headers["retry-after"]) == (
        429,
        "rate_exceeded",
        "1",
    )
    assert told["agent_uri"] == agent
    return True


async def test_connections_of_one_agent(world, origin):
    world.limit(agent_connections=2)
    wires = [await tunnel(world.port, origin.host, *MAILER) for _ in range(2)]
    _, answer = await connect(world, origin.host, *MAILER)
    assert is_too_many(answer, "agent://acme/prod/mailer")
    await tunnel(world.port, origin.host, *BYSTANDS)
    wires[0].close()
    await until(lambda: world.enforcer.connections.count == 2)
    await tunnel(world.port, origin.host, *MAILER)
    assert world.enforcer.tallies.totals["limit.agent_connections"] == 1
    assert world.enforcer.tallies.totals["refused.rate_exceeded"] == 1


async def test_a_killed_agent_is_told_that_first(world, origin):
    """Whatever else it does too much of: only that says that retrying is in vain."""
    world.limit(agent_connections=0, agent_handshakes=0)
    world.kill("agent://acme/prod/reader")
    _, answer = await connect(world, origin.host, *READER)
    assert (answer.status, answer.json()["error"]) == (403, "agent_killed")


async def test_handshakes_of_one_agent(world, tls_origin):
    world.limit(agent_handshakes=1)
    for _ in range(BURST_S):
        wire, answer = await connect(world, tls_origin.host, *READER)
        assert answer.status == 200
        wire.close()
    _, answer = await connect(world, tls_origin.host, *READER)
    assert is_too_many(answer, "agent://acme/prod/reader")
    (await tunnel(world.port, tls_origin.host, *MAILER)).close()
    assert world.enforcer.tallies.totals["limit.agent_handshakes"] == 1


async def test_requests_of_one_agent_over_all_its_connections(world, tls_origin):
    world.limit(agent_requests=2)
    first = await tls_tunnel(world.port, tls_origin.host, *READER, world.ca_file)
    await first.request("GET", "/hang", f"Host: {tls_origin.host}", read=False)
    await until(lambda: world.enforcer.tallies.totals.get("requests") == 1)
    second = await tls_tunnel(world.port, tls_origin.host, *READER, world.ca_file)
    assert (await second.request("GET", "/echo", f"Host: {tls_origin.host}")).status == 200
    await second.request("GET", "/hang", f"Host: {tls_origin.host}", read=False)
    await until(lambda: world.enforcer.tallies.totals.get("requests") == 3)
    third = await tls_tunnel(world.port, tls_origin.host, *READER, world.ca_file)
    answer = await third.request("GET", "/echo", f"Host: {tls_origin.host}")
    assert is_too_many(answer, "agent://acme/prod/reader")
    first.close()
    await until(lambda: world.enforcer.connections.load_of(AGENT).requests == 1)
    fourth = await tls_tunnel(world.port, tls_origin.host, *READER, world.ca_file)
    assert (await fourth.request("GET", "/echo", f"Host: {tls_origin.host}")).status == 200


async def test_requests_that_wait_under_a_hold_are_under_way(world, tls_origin):
    """A frozen agent could pile them up without end."""
    world.limit(agent_requests=1)
    order = world.hold("agent://acme/prod/reader").ack.kills[0]
    first = await tls_tunnel(world.port, tls_origin.host, *READER, world.ca_file)
    await first.request("GET", "/echo", f"Host: {tls_origin.host}", read=False)
    await until(lambda: world.enforcer.connections.load_of(AGENT).requests == 1)
    second = await tls_tunnel(world.port, tls_origin.host, *READER, world.ca_file)
    answer = await second.request("GET", "/echo", f"Host: {tls_origin.host}")
    assert is_too_many(answer, "agent://acme/prod/reader")
    world.resume(order)
    assert (await first.answer()).status == 200
    await until(lambda: world.enforcer.connections.load_of(AGENT).requests == 0)


async def test_calls_of_the_agent_api(world):
    world.limit(agent_calls=1)
    host = "Host: haltwire.internal"
    head = f"Proxy-Authorization: {basic(*MAILER)}"
    waiting = await Wire.open(world.port)
    body = (host, "Content-Length: 10", head)
    await waiting.request("POST", "http://haltwire.internal/x", *body, read=False)
    await until(lambda: len(world.agent_api.sessions) == 1)
    wire = await Wire.open(world.port)
    answer = await wire.request("GET", "http://haltwire.internal/ca.pem", host, head)
    assert is_too_many(answer, "agent://acme/prod/mailer")
    other = await Wire.open(world.port)
    head = f"Proxy-Authorization: {basic(*BYSTANDS)}"
    assert (await other.request("GET", "http://haltwire.internal/ca.pem", host, head)).status == 200


@pytest.mark.parametrize("credentials", [MAILER, READER], ids=["tunnel", "inside"])
async def test_descriptors_that_run_out_end_a_dial_with_a_type(world, tls_origin, credentials):
    """Those that are reserved carry the link, over which kills come and are acknowledged."""
    world.enforcer.descriptors = 1
    head = f"Host: {tls_origin.host}"
    if credentials is MAILER:
        _, answer = await connect(world, tls_origin.host, *credentials)
    else:
        wire = await tls_tunnel(world.port, tls_origin.host, *credentials, world.ca_file)
        answer = await wire.request("GET", "/echo", head)
    assert (answer.status, answer.json()["error"]) == (503, "proxy_full")
    assert answer.headers["retry-after"] == "1"
    await until(lambda: all(seen.ended.is_set() for seen in tls_origin.connections))
    assert tls_origin.requests == []


async def test_strangers_make_way_and_agents_do_not(world, origin, monkeypatch):
    monkeypatch.setattr("haltwire_proxy.lobby.SPARED_S", 0.05)
    world.limit(address_waiting=2)
    agent = await tunnel(world.port, origin.host, *MAILER)
    strangers = [await Wire.open(world.port) for _ in range(6)]
    for stranger in strangers:
        await stranger.send(b"GET http://a.test/ HT")
    await until(lambda: world.services.overload.lobby.count == 2)
    answer = await strangers[0].answer()
    assert (answer.status, answer.json()["error"]) == (429, "rate_exceeded")
    assert await asyncio.wait_for(strangers[0].ended(), 2) == b""
    assert (await agent.request("GET", "/echo", f"Host: {origin.host}")).status == 200
    assert world.enforcer.tallies.totals["limit.address_waiting"] == 4
