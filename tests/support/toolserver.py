"""A real MCP server over streamable HTTP and TLS, with a tool that works until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.transport_security import TransportSecuritySettings

TICK_S = 0.05


class ToolServer:
    """Its one tool, `work`, reports its progress again and again and never returns."""

    def __init__(self, certificate: Path) -> None:
        self.requests = 0
        "HTTP requests that have begun."
        mcp = MCPServer("work")
        mcp.tool()(self.work)
        anybody = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        self._app = mcp.streamable_http_app(transport_security=anybody)
        config = uvicorn.Config(
            self._count,
            interface="asgi3",
            lifespan="on",
            log_config=None,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(certificate),
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    async def __aenter__(self) -> ToolServer:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._serving = loop.create_task(self._server.serve([listener]), name="tool server")
        async with asyncio.timeout(10):
            while not self._server.started:
                await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(self._serving, 10)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    async def work(self, context: Context) -> str:
        """Work for ever."""
        done = 0
        while True:
            done += 1
            await context.report_progress(done)
            await asyncio.sleep(TICK_S)

    async def _count(self, scope, receive, send) -> None:
        self.requests += scope["type"] == "http"
        await self._app(scope, receive, send)
