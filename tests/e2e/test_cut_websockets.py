"""WebSockets of the websockets library, talking both ways at once: cut in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from contextlib import AsyncExitStack

import pytest
import websockets
from support.operator import Operator
from support.streams import WAYS, in_flight_of
from websockets.exceptions import ConnectionClosed

SOCKETS = 5
TICK_S = 0.02


async def _chatter(socket) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.send("word")
            await asyncio.sleep(TICK_S)


class Speaker:
    """One side: talks on every socket, and counts what it hears."""

    def __init__(self) -> None:
        self.heard = 0
        self.live: set[object] = set()
        self.codes: list[int | None] = []
        "How those that ended were closed."

    async def serve(self, socket) -> None:
        """Talk and listen until the other side has gone."""
        self.live.add(socket)
        talking = asyncio.get_running_loop().create_task(_chatter(socket), name="talk")
        try:
            async for _ in socket:
                self.heard += 1
        except ConnectionClosed:
            pass
        finally:
            talking.cancel()
            self.codes.append(socket.close_code)
            self.live.discard(socket)

    async def hears(self, more: int) -> None:
        """Return when so many more messages have come."""
        goal = self.heard + more
        async with asyncio.timeout(15):
            while self.heard < goal:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", [way for way in WAYS if way.tls], ids=str)
async def test_both_directions_end_at_once(shared_system, authority, way):
    system = shared_system
    victim, bystander = f"agent://acme/{way}/mailer", f"agent://acme/{way}/bystander"
    secure = way.scheme == "https"
    trusted = system.ca_file if way.tls == "intercept" else authority.ca_file
    ours = ssl.create_default_context(cafile=str(trusted)) if secure else None
    theirs = authority.server_context("localhost") if secure else None
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        servers, clients = {}, {}
        for name in (victim, bystander):
            servers[name], clients[name] = Speaker(), Speaker()
            server = await stack.enter_async_context(
                websockets.serve(servers[name].serve, "127.0.0.1", 0, ssl=theirs)
            )
            port = next(iter(server.sockets)).getsockname()[1]
            url = f"{'wss' if secure else 'ws'}://localhost:{port}/talk?key=not-for-receipts"
            proxy = await system.token(name, way.tls)
            for _ in range(SOCKETS):
                socket = await stack.enter_async_context(
                    websockets.connect(url, ssl=ours, proxy=proxy)
                )
                task = asyncio.get_running_loop().create_task(clients[name].serve(socket))
                stack.callback(task.cancel)
            await servers[name].hears(2 * SOCKETS)
            await clients[name].hears(2 * SOCKETS)
        receipt = await operator.kill(victim)
        heard = servers[victim].heard
        async with asyncio.timeout(5):
            while servers[victim].live or clients[victim].live:
                await asyncio.sleep(0.01)
        assert servers[victim].heard - heard <= SOCKETS, "one of each may have been there already"
        assert clients[victim].codes == servers[victim].codes == [1006] * SOCKETS
        assert receipt.cut == SOCKETS
        flight = (
            ("CONNECT", "localhost", None, "unknown")
            if way.tls == "tunnel"
            else ("GET", "localhost", "/talk", "unknown")
        )
        assert in_flight_of(receipt.body) == {flight: SOCKETS}
        await servers[bystander].hears(2 * SOCKETS)
        await clients[bystander].hears(2 * SOCKETS)
        assert len(clients[bystander].live) == len(servers[bystander].live) == SOCKETS
