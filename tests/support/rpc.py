"""A real gRPC server and client without generated code: one method of each of the four kinds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

SERVICE = "haltwire.test.Work"
METHODS = ("Unary", "Down", "Up", "Both")
TICK_S = 0.05


class RpcServer:
    """Calls last until their client ends them. What arrives is counted."""

    def __init__(self, certificate: Path | None, at_once: int = 100) -> None:
        self._certificate = certificate
        self.live: set[str] = set()
        "Names of the methods whose call is in progress."
        self.messages = 0
        self.server = grpc.aio.server(options=[("grpc.max_concurrent_streams", at_once)])

    async def __aenter__(self) -> RpcServer:
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Down": grpc.unary_stream_rpc_method_handler(self._down),
            "Up": grpc.stream_unary_rpc_method_handler(self._up),
            "Both": grpc.stream_stream_rpc_method_handler(self._both),
        }
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self.server.add_generic_rpc_handlers((generic,))
        if self._certificate is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            pem = self._certificate.read_bytes()
            credentials = grpc.ssl_server_credentials([(pem, pem)])
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(0)

    async def _unary(self, request: bytes, context) -> bytes:
        self._began("Unary", context)
        if request == b"now":
            return b"done"
        await asyncio.Event().wait()
        return b""

    async def _down(self, request: bytes, context) -> AsyncIterator[bytes]:
        self._began("Down", context)
        while True:
            yield b"tick"
            await asyncio.sleep(TICK_S)

    async def _up(self, requests: AsyncIterator[bytes], context) -> bytes:
        self._began("Up", context)
        async for _ in requests:
            self.messages += 1
        return b"done"

    async def _both(self, requests: AsyncIterator[bytes], context) -> AsyncIterator[bytes]:
        self._began("Both", context)
        async for request in requests:
            self.messages += 1
            yield request

    def _began(self, name: str, context) -> None:
        self.live.add(name)
        context.add_done_callback(lambda _: self.live.discard(name))


class RpcClient:
    """One channel with one call of each kind in progress."""

    def __init__(self, target: str, proxy_url: str, trusted: Path | None) -> None:
        options = [("grpc.http_proxy", proxy_url), ("grpc.enable_retries", 0)]
        if trusted is None:
            self._channel = grpc.aio.insecure_channel(target, options)
        else:
            credentials = grpc.ssl_channel_credentials(trusted.read_bytes())
            self._channel = grpc.aio.secure_channel(target, credentials, options)
        self.received = 0
        self.ends: dict[str, asyncio.Task[grpc.StatusCode]] = {}
        "How each call ended, once it has."

    async def __aenter__(self) -> RpcClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
        await asyncio.gather(*self.ends.values(), return_exceptions=True)

    def start(self) -> None:
        """Begin one call of each kind; none ends by itself."""
        loop = asyncio.get_running_loop()
        channel, path = self._channel, f"/{SERVICE}/"
        calls = {
            "Unary": channel.unary_unary(path + "Unary")(b"wait"),
            "Down": channel.unary_stream(path + "Down")(b"go"),
            "Up": channel.stream_unary(path + "Up")(self._pieces()),
            "Both": channel.stream_stream(path + "Both")(self._pieces()),
        }
        for name, call in calls.items():
            self.ends[name] = loop.create_task(self._follow(call), name=name)

    async def ask(self) -> bytes:
        """A unary call that is answered at once."""
        return await self._channel.unary_unary(f"/{SERVICE}/Unary")(b"now", timeout=10)

    async def _pieces(self) -> AsyncIterator[bytes]:
        while True:
            yield b"piece"
            await asyncio.sleep(TICK_S)

    async def _follow(self, call) -> grpc.StatusCode:
        try:
            if isinstance(call, (grpc.aio.UnaryStreamCall, grpc.aio.StreamStreamCall)):
                async for _ in call:
                    self.received += 1
            else:
                await call
        except grpc.aio.AioRpcError:
            pass
        return await call.code()
