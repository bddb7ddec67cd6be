"""Live traffic whose every byte is known: streams that take their time, either way, and an origin that counts."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
import time

import aiohttp
from aiohttp import web

PIECES, PIECE = 150, 10_000
REQUEST_PIECES = 10
PAUSE_S = 0.02
"Between two pieces: a stream takes three seconds."


def pieces(seed: int, count: int = PIECES):
    source = random.Random(seed)
    return (source.randbytes(PIECE) for _ in range(count))


def digest(seed: int, count: int = PIECES) -> str:
    return hashlib.sha256(b"".join(pieces(seed, count))).hexdigest()


async def paced(seed: int, moved: asyncio.Event):
    for piece in pieces(seed):
        yield piece
        moved.set()
        await asyncio.sleep(PAUSE_S)


class Theatre:
    """An origin whose streams take their time, and which counts all that it gets."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self.requests = 0
        self.bytes_in = 0
        self.heard: list[float] = []
        "When bytes came in, on the monotonic clock."

    async def __aenter__(self):
        app = web.Application(client_max_size=0)
        app.router.add_get("/download/{seed}", self._download)
        app.router.add_post("/upload", self._upload)
        app.router.add_get("/socket", self._socket)
        app.router.add_put("/number/{number}", self._number)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        self.url = (
            f"{'https' if self._context else 'http'}://localhost:{self._runner.addresses[0][1]}"
        )
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    async def _download(self, request):
        self.requests += 1
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in paced(int(request.match_info["seed"]), asyncio.Event()):
            await response.write(piece)
        return response

    async def _upload(self, request):
        self.requests += 1
        found = hashlib.sha256()
        async for piece in request.content.iter_any():
            self._hear(piece)
            found.update(piece)
        return web.Response(text=found.hexdigest())

    async def _number(self, request):
        self.requests += 1
        self._hear(b"")
        return web.Response(text=request.match_info["number"])

    def _hear(self, data: bytes) -> None:
        self.bytes_in += len(data)
        self.heard.append(time.monotonic())

    async def _socket(self, request):
        self.requests += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            self._hear(message.data)
            await socket.send_bytes(message.data)
        return socket


class Agent:
    """Streams and requests of one way through the proxy."""

    def __init__(self, session: aiohttp.ClientSession, url: str, proxy: str) -> None:
        self._session, self._url, self._proxy = session, url, proxy

    async def download(self, seed: int, moved: asyncio.Event) -> str:
        found = hashlib.sha256()
        async with self._session.get(f"{self._url}/download/{seed}", proxy=self._proxy) as answer:
            async for piece in answer.content.iter_any():
                found.update(piece)
                moved.set()
        return found.hexdigest()

    async def upload(self, seed: int, moved: asyncio.Event) -> str:
        return await self._post(paced(seed, moved))

    async def talk(self, seed: int, moved: asyncio.Event) -> str:
        found = hashlib.sha256()
        async with self._session.ws_connect(f"{self._url}/socket", proxy=self._proxy) as socket:
            for piece in pieces(seed):
                await socket.send_bytes(piece)
                found.update(await socket.receive_bytes())
                moved.set()
                await asyncio.sleep(PAUSE_S)
        return found.hexdigest()

    async def request(self, seed: int) -> str:
        return await self._post(b"".join(pieces(seed, REQUEST_PIECES)))

    async def put(self, number: str) -> str:
        """A small request, which is answered with its number."""
        async with self._session.put(f"{self._url}/number/{number}", proxy=self._proxy) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.text()

    async def _post(self, body) -> str:
        async with self._session.post(
            f"{self._url}/upload", data=body, proxy=self._proxy
        ) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.text()
