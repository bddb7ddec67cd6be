"""gRPC as its own library speaks it: calls of all four kinds are cut in the middle."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import grpc
import pytest
from support.operator import Operator
from support.rpc import METHODS, SERVICE, RpcClient, RpcServer
from support.streams import in_flight_of


@pytest.mark.parametrize("tls", ["tunnel", "intercept"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_calls_in_progress_are_cut(shared_system, authority, scheme, tls):
    system, way = shared_system, f"{scheme}-{tls}"
    victim, bystander = f"agent://acme/{way}/mailer", f"agent://acme/{way}/bystander"
    secure = scheme == "https"
    trusted = (system.ca_file if tls == "intercept" else authority.ca_file) if secure else None
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        servers, clients = {}, {}
        for agent in (victim, bystander):
            server = RpcServer(authority.certificate("localhost") if secure else None)
            servers[agent] = await stack.enter_async_context(server)
            target, proxy_url = f"localhost:{server.port}", await system.token(agent, tls)
            client = RpcClient(target, proxy_url, trusted)
            clients[agent] = await stack.enter_async_context(client)
            assert await client.ask() == b"done"
            client.start()
        async with asyncio.timeout(10):
            for agent, server in servers.items():
                while server.live != set(METHODS) or not server.messages:
                    await asyncio.sleep(0.01)
                while not clients[agent].received:
                    await asyncio.sleep(0.01)
        receipt = await operator.kill(victim)
        messages = servers[victim].messages
        async with asyncio.timeout(5):
            ends = {name: await end for name, end in clients[victim].ends.items()}
            while servers[victim].live:
                await asyncio.sleep(0.01)
        # A reset in the middle of a TLS record is INTERNAL to the library.
        assert set(ends.values()) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
        assert servers[victim].messages - messages <= 2, "one of each stream may have been read"
        assert receipt.cut == 1
        if tls == "intercept":
            sent = {"Unary": "whole", "Down": "whole", "Up": "partly", "Both": "partly"}
            expected = {("POST", "localhost", f"/{SERVICE}/{n}", w): 1 for n, w in sent.items()}
        else:
            expected = {("CONNECT", "localhost", None, "unknown"): 1}
        assert in_flight_of(receipt.body) == Counter(expected)
        with pytest.raises(grpc.aio.AioRpcError, match=r"403|killed|UNAVAILABLE"):
            await clients[victim].ask()
        counted = servers[bystander].messages, clients[bystander].received
        async with asyncio.timeout(10):
            while servers[bystander].messages < counted[0] + 4:
                await asyncio.sleep(0.01)
            while clients[bystander].received < counted[1] + 4:
                await asyncio.sleep(0.01)
        assert servers[bystander].live == set(METHODS)
        assert await clients[bystander].ask() == b"done"


async def test_calls_whose_turn_has_not_come_have_sent_nothing(shared_system, authority):
    """A server that lets one call at a time begin: the others wait in the proxy, and the receipt knows it."""
    agent = "agent://acme/turns/mailer"
    async with (
        Operator(shared_system) as operator,
        RpcServer(authority.certificate("localhost"), at_once=1) as server,
        RpcClient(
            f"localhost:{server.port}",
            await shared_system.token(agent, "intercept"),
            shared_system.ca_file,
        ) as client,
    ):
        assert await client.ask() == b"done"  # now the proxy knows the server's settings
        client.start()
        async with asyncio.timeout(10):
            while not server.live or await _requests(operator, agent) < 1 + len(METHODS):
                await asyncio.sleep(0.02)
        (begun,) = server.live
        receipt = await operator.kill(agent)
        sent = {flight[2].rpartition("/")[2]: flight[3] for flight in in_flight_of(receipt.body)}
        word = "partly" if begun in ("Up", "Both") else "whole"
        assert sent == {**dict.fromkeys(METHODS, "none"), begun: word}


async def _requests(operator: Operator, agent: str) -> int:
    """How many requests of the agent have reached a proxy, as it has told."""
    name = agent.removeprefix("agent://").replace("/", ".")
    shown = await operator.call("GET", f"/v1/mesh/agents/{name}")
    return shown["agent"]["requests"] if "agent" in shown else 0
