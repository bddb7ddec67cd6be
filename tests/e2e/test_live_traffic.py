"""The first row of the README's table: every kind of live traffic is cut on both sides, and only the killed agent's."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import websockets
from support.client import Wire, tls_tunnel
from websockets.exceptions import ConnectionClosed

VICTIM, BYSTANDER = "agent://acme/prod/mailer", "agent://acme/prod/bystander"


def _credentials(proxy_url: str) -> tuple[str, str]:
    label, _, secret = proxy_url.removeprefix("http://").partition("@")[0].rpartition(":")
    return label, secret


async def _wait(wire: Wire, host: str) -> None:
    await wire.request("GET", "/hang", f"Host: {host}", read=False)


async def _events(wire: Wire, host: str) -> None:
    await wire.request("GET", "/events", f"Host: {host}", read=False)
    await asyncio.wait_for(wire.reader.readuntil(b"tick"), 5)


async def _upload(wire: Wire, host: str) -> None:
    head = f"POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
    await wire.send(head.encode() + b"4\r\nhalf\r\n")


async def _idle(wire: Wire, host: str) -> None:
    answer = await wire.request("GET", "/echo", f"Host: {host}")
    assert answer is not None
    assert answer.status == 200


KINDS = {"waiting": _wait, "events": _events, "upload": _upload, "idle": _idle}


@pytest.mark.parametrize("tls", ["tunnel", "intercept"])
async def test_each_kind_is_cut_and_no_bystander_is(system, tls_origin, authority, tls):
    trusted = authority.ca_file if tls == "tunnel" else system.ca_file
    host = f"localhost:{tls_origin.port}"
    wires: dict[str, list[Wire]] = {VICTIM: [], BYSTANDER: []}
    for agent, opened in wires.items():
        label, secret = _credentials(await system.token(agent, tls))
        for start in KINDS.values():
            wire = await tls_tunnel(system.port, host, label, secret, trusted)
            await start(wire, host)
            opened.append(wire)
    async with asyncio.timeout(5):
        while len(tls_origin.requests) < 2 * len(KINDS):
            await asyncio.sleep(0.01)
    status, receipt = await system.api("POST", "/v1/mesh/kill", {"selector": VICTIM})
    assert (status, receipt["confirmed"]) == (200, True)
    assert sum(proxy["connections_cut"] for proxy in receipt["proxies"]) == len(KINDS)
    async with asyncio.timeout(1):  # the origin's loop is this one: let it see what has come
        while sum(seen.ended.is_set() for seen in tls_origin.connections) < len(KINDS):
            await asyncio.sleep(0)
    for wire in wires[VICTIM]:
        await wire.ended()
    alive = [seen for seen in tls_origin.connections if not seen.ended.is_set()]
    assert len(alive) == len(KINDS)
    idle = wires[BYSTANDER][-1]
    assert (await idle.request("GET", "/echo", f"Host: {host}")).status == 200


@pytest.mark.parametrize("tls", ["tunnel", "intercept"])
async def test_a_websocket_is_cut_and_no_message_gets_through(system, site, authority, tls):
    proxy_url = await system.token(VICTIM, tls)
    trusted = authority.ca_file if tls == "tunnel" else system.ca_file
    context = ssl.create_default_context(cafile=str(trusted))
    async with websockets.connect(
        f"wss://{site.host('wss')}/ws", ssl=context, proxy=proxy_url
    ) as socket:
        await socket.send("before")
        assert await asyncio.wait_for(socket.recv(), 5) == "echo before"
        _, receipt = await system.api("POST", "/v1/mesh/kill", {"selector": VICTIM})
        assert receipt["confirmed"] is True

        async def talk() -> None:
            while True:
                await socket.send("after")
                await socket.recv()

        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(talk(), 2)
