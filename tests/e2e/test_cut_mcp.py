"""MCP over streamable HTTP, with the real client and server: a tool call in progress is cut."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from support.operator import Operator
from support.streams import in_flight_of
from support.toolserver import ToolServer

CONNECTIONS = {"legacy": 2, "auto": 1}
"The older protocol listens for notifications on one more."


class Call:
    """A client that is calling the tool."""

    def __init__(self, port: int, proxy_url: str, trusted: Path, mode: str) -> None:
        self._url = f"https://localhost:{port}/mcp"
        self._proxy_url, self._mode = proxy_url, mode
        self._tls = ssl.create_default_context(cafile=str(trusted))
        self.progress = 0
        self.running = asyncio.get_running_loop().create_task(self._run(), name=f"mcp {mode}")

    async def _run(self) -> None:
        # The read timeout is for those who get no word at all: nobody here should need it.
        timeout = httpx2.Timeout(60)
        async with (
            httpx2.AsyncClient(proxy=self._proxy_url, verify=self._tls, timeout=timeout) as http,
            Client(streamable_http_client(self._url, http_client=http), mode=self._mode) as client,
        ):
            await client.call_tool("work", progress_callback=self._note)

    async def _note(self, done: float, *_: object) -> None:
        self.progress += 1

    async def moves(self) -> None:
        """Return when two more notifications have come."""
        before = self.progress
        async with asyncio.timeout(15):
            while self.progress < before + 2:
                if self.running.done():
                    self.running.result()
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("tls", ["tunnel", "intercept"])
async def test_a_tool_call_in_progress_is_cut(shared_system, authority, tls, mode):
    system, way = shared_system, f"{tls}-{mode}"
    victim, bystander = f"agent://acme/{way}/mailer", f"agent://acme/{way}/bystander"
    trusted = system.ca_file if tls == "intercept" else authority.ca_file
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        servers, calls = {}, {}
        for agent in (victim, bystander):
            server = ToolServer(authority.certificate("localhost"))
            servers[agent] = await stack.enter_async_context(server)
            call = Call(server.port, await system.token(agent, tls), trusted, mode)
            calls[agent] = call
            stack.push_async_callback(call.stop)
            await call.moves()
            async with asyncio.timeout(5):  # the older protocol listens on a connection of its own
                while server.connections < CONNECTIONS[mode]:
                    await asyncio.sleep(0.01)
        live = servers[victim].connections
        receipt = await operator.kill(victim)
        requests = servers[victim].requests
        flights = in_flight_of(receipt.body)
        # The client may just have asked for one more, which has reached nobody.
        begun = flights.pop(("CONNECT", "localhost", None, "none"), 0)
        assert receipt.cut - begun == live
        if tls == "intercept":
            assert flights["POST", "localhost", "/mcp", "whole"] == 1
        else:
            assert set(flights) == {("CONNECT", "localhost", None, "unknown")}
        with pytest.raises(ExceptionGroup) as stopped:
            await asyncio.wait_for(calls[victim].running, 10)
        assert stopped.group_contains(MCPError, match="ended without a response")
        async with asyncio.timeout(5):
            while servers[victim].connections:
                await asyncio.sleep(0.01)
        assert servers[victim].requests == requests
        await calls[bystander].moves()
